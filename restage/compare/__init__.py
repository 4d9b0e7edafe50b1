"""Compare edit methods on held-out views: against exact truth where it exists, beside anchor rows, over seeds."""

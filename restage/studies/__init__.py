"""Studies: methods x scenes x editors x seeds, run on one footing, with held-out views closed to the methods."""

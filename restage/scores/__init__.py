"""Numbers of results: what each metric is called and means, the tables of rows, and their statistics."""

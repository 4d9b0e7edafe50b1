"""The report: reads a finished or half-finished run folder and writes a page that opens from disk."""

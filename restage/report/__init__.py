"""The report: reads a finished or half-finished run folder and writes a page that opens from disk."""

from restage.report.pictures import compose_grid
from restage.report.stage import ReportConfig, run_report, write_report

__all__ = ["ReportConfig", "compose_grid", "run_report", "write_report"]

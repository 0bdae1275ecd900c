"""The report people look at: report.html of a run, and several runs side by side on one page; no torch."""

from rankwright.report.page import write_report
from rankwright.report.side_page import write_comparison

__all__ = ["write_comparison", "write_report"]

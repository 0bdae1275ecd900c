"""The report people look at: report.html and audit.html of a run, several runs side by side; no torch."""

from rankwright.report.audit import write_audit
from rankwright.report.page import write_report
from rankwright.report.side_page import write_comparison

__all__ = ["write_audit", "write_comparison", "write_report"]

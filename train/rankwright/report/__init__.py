"""The report people look at: report.html and audit.html of a run, several runs side by side; no torch."""

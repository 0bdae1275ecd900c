"""Pages for people: report.html and audit.html of a run, and several runs side by side.

Start with `page`. May import data, retrieval, mining, training and evaluation, and never torch.
"""

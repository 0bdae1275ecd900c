"""Preferences of a judge between two documents, and scores fitted to them; start with fit.py."""

"""Queries that no person asked, written for passages: `templates` first. Imports what supervision may import."""

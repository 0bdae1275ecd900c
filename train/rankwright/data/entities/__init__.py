"""Entities in texts by rules: dates and amounts, names and citations, and placeholders for them.

Read placeholders.py first. Imports nothing but the standard library.
"""

"""Texts and rows larger than memory; start with texts.py."""

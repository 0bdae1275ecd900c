"""The libraries that a proof loads a folder with; start with base.py."""

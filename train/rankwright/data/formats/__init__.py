"""Every format that a set can be read from or written to; start with read.py."""

"""The proof of an exported folder in a fresh process; start with parity.py."""

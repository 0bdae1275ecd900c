"""`rankwright verify`: a folder or a running server checked against its golden pairs; start with folder.py."""

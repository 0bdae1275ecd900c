"""Sets of queries, documents and labels: read, split, checked. Start with collection.py. Imports common and recipe."""

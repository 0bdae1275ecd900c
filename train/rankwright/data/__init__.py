"""Sets of queries, documents and labels: reading, splitting, checking. Imports common and recipe."""

"""First stages that find candidates: BM25, dense, fusion, run files. Imports common, recipe, data."""

"""Tools that know nothing of reranking: errors, files, hashing, processes. Start with errors.py. Imports no room."""

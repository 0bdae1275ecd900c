"""Tools that know nothing of reranking: errors, console, files, hashing, processes. Imports no other room."""

"""Labels that no person gave: a teacher's scores. Imports the rooms up to rerankers."""

"""Labels that no person gave: a teacher's scores, estimates of false negatives. Imports the rooms up to rerankers."""

"""Exports that other libraries load with the same scores. Imports common, data, model, rerankers."""

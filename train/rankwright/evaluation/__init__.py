"""Metrics, results, comparison, gate, calibration. Imports the rooms up to rerankers."""

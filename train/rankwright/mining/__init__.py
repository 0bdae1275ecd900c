"""Hard negatives: pools, filters, samplers. Imports the rooms up to supervision, but not model."""

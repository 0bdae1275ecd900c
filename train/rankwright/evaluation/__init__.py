"""Measures, evaluations and what they show: results, verdict, comparison of runs, gate, calibration, slices, speed.

Start with `results`: it reads a finished evaluation for everything that shows one. May import rerankers and what is
below it; no file here that the report imports needs torch.
"""

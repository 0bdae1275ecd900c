"""Losses and the one training loop. Imports the rooms up to mining."""

"""From text to score: the prompt, the base, packed rows, attention, what is trained. Imports common, recipe, data."""

"""A recipe with its run folder: the stages in order. Imports every room but cli."""

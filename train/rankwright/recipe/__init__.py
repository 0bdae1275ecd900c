"""Recipes: the schema, and the YAML files that fill it. Imports common only."""

"""Recipes: the schema, and the YAML files that fill it. Start with schema.py. Imports common."""

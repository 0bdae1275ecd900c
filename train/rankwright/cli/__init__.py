"""The command line. Imports every room."""

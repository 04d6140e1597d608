"""Mutation testing of the modules that decide an outcome; `tools/mutants.py` is the command."""

"""Carries a run out: plan a rack's cells, build what they need, take each cell from lease to outcome.

The stages decide and do; this package only puts them in order. Used by the pytest plugin and the command line.
"""

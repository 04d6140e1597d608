"""Cells on a distributed engine (Dask): rack hosts offer their phones, compile hosts their memory. See docs/engine.md.

`distributed` is an extra, and imported only by who asks for an engine: `connection.py`, `serve.py` and `join.py`.
"""

"""The runs of weeks in one database: SQLite beside the runs, or PostgreSQL by URL.

A run's folder stays what it is; the history holds a copy of its records, and what they come to: a row a cell and run
(`results`) and a row a session and metric (`sessions`).
"""

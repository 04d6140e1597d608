"""Proof of the gates: minimal graphs, quantised and lowered for each HTP generation as builds are, and what was said.

`marks` says what an answer proves, `graphs` holds the graphs, `worker` is the process that lowers them, `run` starts it
and keeps its answers, `show` prints.
"""

"""Faults that benchmarks/planted_faults.py plants: in the runner, in the build, and on the phone.

fault.py           what a fault is; the tools that plant one by replacing attributes of the harness
runner_inputs.py   prompts, positions, masks
runner_cache.py    the KV cache and its handover from prefill to decode
runner_output.py   logits, the choice of a token, what is written and reported
runner_ahead.py    lookahead, scores, and faults that hide behind right scores
build.py           the compiled graphs; planted in a build worker
phone.py           files on the phone
catalog.py         all of them
launch.py          the runner's process on a virtual phone: plants, listens, runs
tap.py             what a runner answered, and what differs between two of them
cells.py           a rack, and cells run on it
report.py          the table
"""

"""Which cell runs on which phone, and when: pure decisions, without clocks, files or phones.

`Scheduler` answers one question, "this phone is free: what shall it run?"; `simulate` plays whole runs through it in
simulated time; `compiles` says which artifact is built next; `estimates` says how long a cell will take.
"""

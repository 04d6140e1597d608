"""Two runs against each other, a run against its history, accepted baselines, and what follows: the exit status."""

"""A run's results in the formats of others: JUnit XML, GitHub's step summary, PyTorch's records, Prometheus."""

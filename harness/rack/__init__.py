"""Virtual phones: the device side of ADB, a file tree and a view of its own for each, and what starts and ends them."""

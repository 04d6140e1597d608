"""ExecuTorch and the QNN libraries: find them, adapt them, say exactly which they are."""

"""Generation over a `.pte` with ExecuTorch's Python runtime, and a command line that is qnn_llama_runner's."""

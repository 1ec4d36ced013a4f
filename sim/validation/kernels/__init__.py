"""Real kernels: library calls where torch has them, Triton where it has not. Needs the `[gpu]` extra."""

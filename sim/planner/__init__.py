"""Many simulations with one question: sweeps, capacity plans, hardware selection."""

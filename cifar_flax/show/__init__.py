"""Shows runs: on a terminal, as figures, in TensorBoard."""

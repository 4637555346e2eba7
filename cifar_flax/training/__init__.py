"""Training: recipes and schedules, the state, the step, and the compiled program."""

"""A run as a function: settings, session, observers, checkpoints, inference."""

"""Statistics, range curves and predictions: NumPy and SciPy only."""

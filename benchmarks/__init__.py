"""Measurements of this project: PyTorch's peers and grids of rates. Not installed."""

"""Sweeps: their cells, and the launchers that train them."""

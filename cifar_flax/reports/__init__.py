"""Figures and tables from records; never imports JAX."""

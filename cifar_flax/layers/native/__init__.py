"""Convolution kernels for the CPU, built by the system's compiler when first needed."""

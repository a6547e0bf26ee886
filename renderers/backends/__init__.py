"""Kernels for the discrete work of rendering, one module per backend."""

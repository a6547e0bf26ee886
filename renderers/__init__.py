"""Differentiable NeRF and mesh renderers."""

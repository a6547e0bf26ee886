"""Rules that turn a prior's noise predictions into gradients for a 3D scene."""

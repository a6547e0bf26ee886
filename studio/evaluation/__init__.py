"""Judges and metrics with known ground truth."""

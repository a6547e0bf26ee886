"""Implicit scene representations."""

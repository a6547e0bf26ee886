"""A procedural world of captioned objects with exact ground truth."""

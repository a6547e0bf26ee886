"""A procedural world of clothed people with exact ground truth for virtual try-on."""

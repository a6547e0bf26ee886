"""Teaching a prior a subject or a style from a few photos."""

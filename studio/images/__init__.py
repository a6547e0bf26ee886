"""Tasks that make pictures: edits, controls and regions of the 2D prior, from scene files."""

"""2D image tools, usable alone and as guidance priors."""

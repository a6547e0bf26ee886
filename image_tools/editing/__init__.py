"""Edits of images by their prompts: shared attention, inversion, delta denoising scores."""

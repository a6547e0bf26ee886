"""Latents and text states of several caches, as one cache to train on.

latents = MixedLatents(work / "latents", work / "object_latents")
latents.batch(rng, 16, 0.1)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from studio.training.denoiser import LatentCache
from studio.training.image_cache import StackedRows

__all__ = ["MixedLatents"]


class MixedLatents(LatentCache):
    """Caches one after the other; every row is drawn alike, so that shares follow their sizes.

    Attributes are those of :class:`LatentCache`, the arrays being :class:`StackedRows`.
    """

    def __init__(self, *folders: Path) -> None:
        """Open caches written by ``cache_text`` and ``cache_latents``, one or more."""
        parts = [LatentCache(folder) for folder in folders]
        self.latents = StackedRows([part.latents for part in parts])
        self.text = StackedRows([part.text for part in parts])
        starts = self.text.starts[:-1]
        self.text_index = np.concatenate([p.text_index + s for p, s in zip(parts, starts)])

"""The names of the toybox's keypoints: the centres of the parts that its builders name.

A name means the same part on every kind of object (a head, a handle), as OpenPose's do on every
person. The numbers of names do not change when a kind is added at the end of the catalogue.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from scenes.toybox.catalog import KINDS

__all__ = ["keypoint_names"]


@cache
def keypoint_names() -> tuple[str, ...]:
    """All of them, in the order of the catalogue."""
    individuals = (kind.build(np.random.default_rng(0)) for kind in KINDS.values())
    named = (part.name for parts in individuals for part in parts if part.name)
    return tuple(dict.fromkeys(named))

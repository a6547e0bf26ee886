"""Which kinds of objects have a front: measured on renders of the toybox itself."""

from __future__ import annotations

import numpy as np

from renderers.cameras import orbit_cameras
from scenes.toybox.objects import ObjectSpec
from scenes.toybox.render import ToyGeometry, render_rgb
from scenes.toybox.scene import SceneSpec, build_scene

__all__ = ["MIN_DIFFERENCE", "front_back_difference"]

MIN_DIFFERENCE = 0.02
"""Below this difference a kind has no front."""


def front_back_difference(
    kind: str, *, individuals: tuple[int, ...] = (1, 3, 5, 7, 9, 11, 13, 15), size: int = 64
) -> float:
    """How much the mean front of a kind differs from its mean back, per pixel of the silhouette.

    Images are averaged over individuals first, so that what is placed at random (dots, sprinkles)
    does not count as a front.

    Returns:
        Mean absolute difference, in units of the full range of a colour.
    """
    cameras = orbit_cameras(
        2, elevation_deg=15.0, distance=2.6, fovy_deg=40.0, height=size, width=size
    )
    images, masks = [], []
    for individual in individuals:
        spec = ObjectSpec(kind, "blue", "plain", individual)
        geometry = ToyGeometry(build_scene(SceneSpec((spec,))))
        rgb, mask = render_rgb(geometry, cameras, background=np.ones(3))
        images.append(rgb)
        masks.append(mask)
    front, back = np.mean(images, 0)
    covered = np.maximum(*np.mean(masks, 0)).sum()
    return float(np.abs(front - back).mean(-1).sum() / covered)

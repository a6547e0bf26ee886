"""Which kinds of objects have a front, and which a face: measured on renders of the toybox."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from renderers.cameras import orbit_cameras
from scenes.toybox.objects import ObjectSpec
from scenes.toybox.render import ToyGeometry, render_rgb
from scenes.toybox.scene import SceneSpec, build_scene

__all__ = ["MIN_DIFFERENCE", "FrontBack", "front_back_difference"]

MIN_DIFFERENCE = 0.02
"""Below this difference two views are alike."""
INDIVIDUALS = (1, 3, 5, 7, 9, 11, 13, 15)


@dataclass(frozen=True)
class FrontBack:
    """How much the mean front of a kind differs from its mean back.

    Mean absolute differences per pixel of the silhouette, in units of a colour's full range.
    """

    plain: float
    """From the back as it is: small for kinds that look alike from all sides."""
    mirrored: float
    """From the mirror image of the back: small for kinds whose front is told by left and right
    only, such as by a mug's handle."""


def front_back_difference(kind: str, *, size: int = 64) -> FrontBack:
    """Measure it at elevation 15.

    Images are averaged over individuals first, so that what is placed at random (dots, sprinkles)
    does not count as a front.
    """
    cameras = orbit_cameras(
        2, elevation_deg=15.0, distance=2.6, fovy_deg=40.0, height=size, width=size
    )
    images, masks = [], []
    for individual in INDIVIDUALS:
        spec = ObjectSpec(kind, "blue", "plain", individual)
        geometry = ToyGeometry(build_scene(SceneSpec((spec,))))
        rgb, mask = render_rgb(geometry, cameras, background=np.ones(3))
        images.append(rgb)
        masks.append(mask)
    front, back = np.mean(images, 0)
    front_mask, back_mask = np.mean(masks, 0)

    def difference(image: np.ndarray, mask: np.ndarray) -> float:
        covered = np.maximum(front_mask, mask).sum()
        return float(np.abs(front - image).mean(-1).sum() / covered)

    return FrontBack(
        plain=difference(back, back_mask), mirrored=difference(back[:, ::-1], back_mask[:, ::-1])
    )

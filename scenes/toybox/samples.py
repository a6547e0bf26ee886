"""Random captioned views of the toybox, as training and evaluation data.

One :class:`ToySample` is one image with everything that is known about it. Cameras look at the
origin with constant apparent size, most backgrounds are white, and one scene in ten has two
objects, seen from near the front so that left and right mean the same in the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from renderers.cameras import Cameras, orbit_cameras
from scenes.toybox.captions import caption, spoken_view, view_word
from scenes.toybox.render import ToyGeometry, render_rgb
from scenes.toybox.scene import RELATIONS, SceneSpec, build_scene
from scenes.toybox.splits import combinations, sample_object

__all__ = [
    "SampleConfig",
    "ToySample",
    "ToySampler",
    "ToyViewSet",
    "random_background",
    "random_cameras",
]


@dataclass(frozen=True)
class SampleConfig:
    """How the images of a data set are drawn."""

    image_size: int = 64
    """Height and width in pixels."""
    held_out: bool = False
    """Draw the held-out combinations instead of the training ones."""
    evaluation: bool = False
    """Draw the individuals that training never sees."""
    white_background: float = 0.8
    """Share of pure white backgrounds; the others are random light or saturated colours."""
    pairs: float = 0.1
    """Share of scenes with two objects."""
    caption_view: float = 0.85
    """Share of captions that end in a view word."""
    elevation_deg: tuple[float, float] = (-10.0, 75.0)
    """Range of camera elevations; half of all views are drawn from 0..30."""


@dataclass(frozen=True)
class ToySample:
    """One image: ``rgb [h, w, 3]`` and ``mask [h, w]`` in 0..1, its caption and its truth."""

    rgb: np.ndarray
    mask: np.ndarray
    caption: str
    scene: SceneSpec
    view: str
    azimuth_deg: float
    elevation_deg: float


@dataclass(frozen=True)
class ToyViewSet:
    """Views of one scene at equal steps of azimuth, from one elevation over one background."""

    rgb: np.ndarray
    """``[views, h, w, 3]`` in 0..1."""
    caption: str
    """Without a view word."""
    scene: SceneSpec
    cameras: Cameras


class ToySampler:
    """An endless source of samples; the same generator state gives the same sample."""

    def __init__(self, config: SampleConfig) -> None:
        """Fix the distribution; nothing is rendered yet."""
        self.config = config
        self._pairs = combinations(config.held_out)
        self._parity = 1 if config.evaluation else 0

    def sample(self, rng: np.random.Generator) -> ToySample:
        """Draw one view."""
        scene = self.scene(rng)
        return self.view(ToyGeometry(build_scene(scene)), scene, rng)

    def view(self, geometry: ToyGeometry, scene: SceneSpec, rng: np.random.Generator) -> ToySample:
        """Draw one view of a given scene."""
        camera = self._camera(rng, front=len(scene.objects) > 1)
        azimuth, elevation = float(camera.azimuth_deg[0]), float(camera.elevation_deg[0])
        view = view_word(azimuth, elevation)
        rgb, mask = render_rgb(geometry, camera, background=self._background(rng))
        is_told = rng.random() < self.config.caption_view
        told = spoken_view(azimuth, elevation, rng) if is_told else None
        return ToySample(
            rgb=rgb[0],
            mask=mask[0],
            caption=caption(scene, told, rng),
            scene=scene,
            view=view,
            azimuth_deg=azimuth,
            elevation_deg=elevation,
        )

    def view_set(self, rng: np.random.Generator, views: int) -> ToyViewSet:
        """Draw ``views`` views around a scene, the first at any azimuth."""
        scene = self.scene(rng)
        cameras = self._camera(rng, front=False, views=views)
        geometry = ToyGeometry(build_scene(scene))
        rgb, _ = render_rgb(geometry, cameras, background=self._background(rng))
        return ToyViewSet(rgb, caption(scene, None, rng), scene, cameras)

    def scene(self, rng: np.random.Generator) -> SceneSpec:
        """Draw objects and their relations."""
        count = 2 if rng.random() < self.config.pairs else 1
        objects = tuple(
            sample_object(rng, self._pairs, individual_parity=self._parity) for _ in range(count)
        )
        names = list(RELATIONS)
        relations = tuple(names[int(rng.integers(len(names)))] for _ in range(count - 1))
        return SceneSpec(objects, relations)

    def _camera(self, rng: np.random.Generator, *, front: bool, views: int = 1) -> Cameras:
        config = self.config
        return random_cameras(
            rng,
            image_size=config.image_size,
            elevation_deg=config.elevation_deg,
            front=front,
            views=views,
        )

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        return random_background(rng, self.config.white_background)


def random_cameras(
    rng: np.random.Generator,
    *,
    image_size: int,
    elevation_deg: tuple[float, float],
    front: bool = False,
    views: int = 1,
) -> Cameras:
    """Cameras at equal steps of azimuth that look at the origin, with constant apparent size.

    Args:
        rng: draws elevation, azimuth, field of view and distance.
        image_size: height and width in pixels.
        elevation_deg: range of elevations; half of all draws are from 0..30.
        front: start within 35 degrees of the front, not anywhere.
        views: how many.
    """
    low, high = elevation_deg
    elevation = rng.uniform(0, 30) if rng.random() < 0.5 else rng.uniform(low, high)
    azimuth = rng.uniform(-35, 35) if front else rng.uniform(-180, 180)
    fovy = rng.uniform(30, 50)
    distance = rng.uniform(0.93, 1.12) * 0.95 / np.tan(np.deg2rad(fovy / 2))
    return orbit_cameras(
        views,
        elevation_deg=elevation,
        distance=distance,
        fovy_deg=fovy,
        height=image_size,
        width=image_size,
        azimuth_start_deg=azimuth,
    )


def random_background(rng: np.random.Generator, white_share: float) -> np.ndarray:
    """White, or in the rest of the draws a random light or saturated colour, ``[3]``."""
    if rng.random() < white_share:
        return np.ones(3)
    if rng.random() < 0.5:
        return np.full(3, rng.uniform(0.3, 0.95)) + rng.uniform(-0.05, 0.05, 3)
    return rng.uniform(0.1, 1.0, 3)

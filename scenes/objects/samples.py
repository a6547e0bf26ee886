"""Random captioned views of the pack's objects, as training and evaluation data.

Cameras, backgrounds and light are the toybox's (``scenes/toybox/samples.py``), so that a cache can
mix both. A share of the objects whose main colour may be painted gets another colour, and the
caption says so, which teaches to bind a colour to a thing.

    sampler = ObjectSampler(ObjectSampleConfig())
    sample = sampler.sample(np.random.default_rng(0))
    sample.rgb, sample.caption
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from renderers.cameras import Cameras
from scenes.objects.captions import caption
from scenes.objects.colors import RECOLORS
from scenes.objects.pack import ObjectInfo, ObjectPack, default_pack
from scenes.objects.render import ObjectGeometry, Recolor, render_rgb
from scenes.objects.splits import Split
from scenes.toybox.captions import spoken_view, view_word
from scenes.toybox.samples import random_background, random_cameras

__all__ = ["ObjectSample", "ObjectSampleConfig", "ObjectSampler", "ObjectViewSet"]


@dataclass(frozen=True)
class ObjectSampleConfig:
    """How the images of a data set are drawn."""

    image_size: int = 64
    """Height and width in pixels."""
    split: Split = "train"
    """Which objects are drawn."""
    white_background: float = 0.8
    """Share of pure white backgrounds; the others are random light or saturated colours."""
    recolor: float = 0.4
    """Share of views of paintable objects in another colour."""
    caption_view: float = 0.85
    """Share of captions that end in a view word."""
    elevation_deg: tuple[float, float] = (-10.0, 75.0)
    """Range of camera elevations; half of all views are drawn from 0..30."""
    supersample: int = 4
    """Samples along each axis of a pixel."""


@dataclass(frozen=True)
class ObjectSample:
    """One image: ``rgb [h, w, 3]`` and ``mask [h, w]`` in 0..1, its caption and its truth."""

    rgb: np.ndarray
    mask: np.ndarray
    caption: str
    name: str
    color: str | None
    """The colour it was painted in, None as it came."""
    view: str
    azimuth_deg: float
    elevation_deg: float


@dataclass(frozen=True)
class ObjectViewSet:
    """Views of one object at equal steps of azimuth, from one elevation over one background."""

    rgb: np.ndarray
    """``[views, h, w, 3]`` in 0..1."""
    caption: str
    """Without a view word."""
    name: str
    cameras: Cameras


class ObjectSampler:
    """An endless source of samples; the same generator state gives the same sample.

    Nouns with many objects, such as chairs, are drawn with the square root of their number.
    """

    def __init__(self, config: ObjectSampleConfig, pack: ObjectPack | None = None) -> None:
        """Fix the distribution; nothing is rendered yet."""
        self.config = config
        self.pack = pack or default_pack()
        self._names = self.pack.names(config.split)
        nouns = [self.pack.info(name).noun for name in self._names]
        count = Counter(nouns)
        weights = np.array([count[noun] ** -0.5 for noun in nouns])
        self._cumulative = np.cumsum(weights / weights.sum())

    def sample(self, rng: np.random.Generator) -> ObjectSample:
        """Draw one view of any object."""
        return self.view(self._name(rng), rng)

    def view(self, name: str, rng: np.random.Generator) -> ObjectSample:
        """Draw one view of the object ``name``, of whichever split.

        Raises:
            UnknownObject: there is none of this name.
        """
        info, geometry, colors, painted = self._object(name, rng)
        camera = random_cameras(
            rng, image_size=self.config.image_size, elevation_deg=self.config.elevation_deg
        )
        azimuth, elevation = float(camera.azimuth_deg[0]), float(camera.elevation_deg[0])
        view = view_word(azimuth, elevation)
        rgb, mask = self._render(geometry, camera, rng)
        is_told = rng.random() < self.config.caption_view
        told = spoken_view(azimuth, elevation, rng) if is_told else None
        return ObjectSample(
            rgb=rgb[0],
            mask=mask[0],
            caption=caption(info.noun, colors, told, rng),
            name=info.name,
            color=painted,
            view=view,
            azimuth_deg=azimuth,
            elevation_deg=elevation,
        )

    def view_set(self, rng: np.random.Generator, views: int) -> ObjectViewSet:
        """Draw ``views`` views around an object, the first at any azimuth."""
        info, geometry, colors, _ = self._object(self._name(rng), rng)
        cameras = random_cameras(
            rng,
            image_size=self.config.image_size,
            elevation_deg=self.config.elevation_deg,
            views=views,
        )
        rgb, _ = self._render(geometry, cameras, rng)
        return ObjectViewSet(rgb, caption(info.noun, colors, None, rng), info.name, cameras)

    def _name(self, rng: np.random.Generator) -> str:
        index = int(np.searchsorted(self._cumulative, rng.random(), side="right"))
        return self._names[min(index, len(self._names) - 1)]

    def _object(
        self, name: str, rng: np.random.Generator
    ) -> tuple[ObjectInfo, ObjectGeometry, tuple[str, ...], str | None]:
        info, mesh = self.pack.info(name), self.pack.load(name)
        if not info.recolor or rng.random() >= self.config.recolor:
            return info, ObjectGeometry(mesh), info.colors, None
        word = list(RECOLORS)[int(rng.integers(len(RECOLORS)))]
        varied = np.clip(np.array(RECOLORS[word]) + rng.uniform(-0.04, 0.04, 3), 0.0, 1.0)
        geometry = ObjectGeometry(mesh, Recolor(info.recolor, tuple(varied)))
        return info, geometry, (word,), word

    def _render(
        self, geometry: ObjectGeometry, cameras: Cameras, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        background = random_background(rng, self.config.white_background)
        return render_rgb(
            geometry, cameras, background=background, supersample=self.config.supersample
        )

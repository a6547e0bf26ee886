"""A disk cache of edits: images before and after, and the instruction between them.

The folder is an image cache of twice as many images: row 2k is the image before edit k, row 2k + 1
the one after, and the instruction is the caption of both. So latents and text states are cached by
the same functions as the pocket prior's. Rendering is resumable, and edit k depends only on
(seed, k).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES, PATTERNS
from scenes.toybox.objects import ObjectSpec
from scenes.toybox.render import ToyGeometry, render_rgb
from scenes.toybox.samples import SampleConfig, random_background, random_cameras
from studio.errors import ConfigError
from studio.training.image_cache import ImageCache
from studio.training.pairs import EDITS, EditSampler
from studio.training.render_pool import draw_rows

__all__ = ["PairCache", "PairConfig", "PairWriter", "render_pairs"]

CHUNK = 250  # edits between two saves


@dataclass(frozen=True)
class PairConfig:
    """What the exact pairs show."""

    edits: int = 10_000
    """Rendered edits."""
    seed: int = 41
    """Seed of scenes, cameras and words."""
    samples: SampleConfig = field(default_factory=SampleConfig)
    """Distribution of the scenes before the edit."""
    names: tuple[str, ...] = tuple(EDITS)
    """Which edits, in the proportions of ``pairs.EDITS``."""


class PairCache(ImageCache):
    """Read access to a finished or growing cache.

    Attributes:
        names: which edit each of the n pairs is.
        labels: ``[n, 2, 3]`` int: kind, colour and pattern of the edited object, before and after.
    """

    def __init__(self, folder: Path) -> None:
        """Open ``folder``; only finished edits are visible."""
        super().__init__(folder)
        state = json.loads((folder / "state.json").read_text())
        self.names: list[str] = state["names"]
        self.labels = np.array(state["labels"], dtype=np.int64).reshape(-1, 2, 3)


class PairWriter:
    """A cache that is being filled, from where an earlier filling stopped."""

    def __init__(self, folder: Path, *, pairs: int, size: int, key: object) -> None:
        """Open or begin a cache.

        Args:
            folder: created if absent.
            pairs: room for so many.
            size: height and width of the images.
            key: settings that everything in the cache depends on; plain JSON values.

        Raises:
            ConfigError: ``folder`` holds pairs of other settings.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._path = folder, folder / "state.json"
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        empty = {"captions": [], "names": [], "labels": []}
        self.state = {"done": 0, "drawn": 0, "key": digest, **empty}
        open_array = np.lib.format.open_memmap
        if self._path.exists():
            self.state = json.loads(self._path.read_text())
            self._images = open_array(folder / "images.npy", "r+")
        else:
            shape = (2 * pairs, size, size, 3)
            self._images = open_array(folder / "images.npy", "w+", np.uint8, shape)
        if self.state["key"] != digest:
            raise ConfigError(
                f"{folder} holds pairs of other settings. Name another folder, or delete this one."
            )

    @property
    def drawn(self) -> int:
        """Draws so far, those included of which nothing was kept."""
        return self.state["drawn"]

    def add(
        self, images: np.ndarray, instruction: str, name: str, specs: tuple[ObjectSpec, ObjectSpec]
    ) -> None:
        """Keep a pair ``[2, h, w, 3]`` in 0..1; it counts with the next save."""
        self.add_unnamed(images, instruction)
        self.state["names"].append(name)
        self.state["labels"].append([_label(spec) for spec in specs])

    def add_unnamed(self, images: np.ndarray, instruction: str) -> None:
        """Keep a pair of which nobody knows what it shows; not in one cache with others."""
        row = len(self.state["captions"])
        self._images[row : row + 2] = np.round(images * 255)
        self.state["captions"] += [instruction] * 2

    def save(self, drawn: int) -> None:
        """Make everything that was added count, after so many draws in all."""
        self._images.flush()
        self.state |= {"done": len(self.state["captions"]), "drawn": drawn}
        partial = self._path.with_suffix(".tmp")
        partial.write_text(json.dumps(self.state))
        partial.replace(self._path)


def _label(spec: ObjectSpec) -> list[int]:
    kind, color = KIND_NAMES.index(spec.kind), COLOR_NAMES.index(spec.color)
    return [kind, color, PATTERNS.index(spec.pattern)]


def render_pairs(folder: Path, config: PairConfig, *, log: Callable[[str], None]) -> PairCache:
    """Render exact pairs into ``folder``, continuing where an earlier call stopped.

    Raises:
        ConfigError: ``folder`` holds pairs of other settings.
    """
    size = config.samples.image_size
    writer = PairWriter(folder, pairs=config.edits, size=size, key=asdict(config))
    drawn = draw_rows(partial(_draw, config), range(writer.drawn, config.edits))
    while edits := list(islice(drawn, CHUNK)):
        for edit in edits:
            writer.add(*edit)
        writer.save(writer.drawn + len(edits))
        log(f"edits {writer.drawn}/{config.edits}")
    return PairCache(folder)


def _draw(config: PairConfig, k: int) -> tuple[np.ndarray, str, str, tuple[ObjectSpec, ObjectSpec]]:
    """What :meth:`PairWriter.add` takes, of edit k."""
    samples, rng = config.samples, np.random.default_rng([config.seed, k])
    edit = EditSampler(samples, config.names).edit(rng)
    camera = random_cameras(
        rng,
        image_size=samples.image_size,
        elevation_deg=samples.elevation_deg,
        front=max(len(edit.before.objects), len(edit.after.objects)) > 1,
    )
    background = random_background(rng, samples.white_background)
    images = [
        render_rgb(ToyGeometry(scene), camera, background=background)[0][0]
        for scene in (edit.before, edit.after)
    ]
    return np.stack(images), edit.instruction, edit.name, (edit.old, edit.new)

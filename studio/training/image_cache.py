"""A disk cache of rendered images, so that several training stages share one rendering.

The cache is a folder with ``images.npy`` (uint8, memory mapped) and ``state.json``: captions, a
count of what is finished, and a key of what is drawn. Rendering is resumable and image k depends
only on (seed, k). Toybox and object pack have a folder each; several folders open as one cache.

    images = ImageCache(work / "images", work / "objects")
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from scenes.objects.pack import ObjectPack
from scenes.objects.samples import ObjectSampleConfig, ObjectSampler
from scenes.toybox.samples import SampleConfig, ToySampler
from studio.errors import ConfigError
from studio.training.render_pool import draw_rows

__all__ = ["ImageCache", "StackedRows", "cache_key", "render_cache"]

CHUNK = 1000
KEPT_OBJECTS = 1000  # the whole pack: its objects come in random order


class StackedRows:
    """Arrays of equal row shape, read as if they were one."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        """Keep ``parts`` in order; nothing is copied before it is read."""
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.starts[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all parts together."""
        return (len(self), *self.parts[0].shape[1:])

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """A row, or several by a slice or by their numbers."""
        numbers = np.arange(len(self))[index]
        flat = np.atleast_1d(numbers)
        owner = np.searchsorted(self.starts, flat, side="right") - 1
        rows = np.empty((len(flat), *self.shape[1:]), self.parts[0].dtype)
        for k, part in enumerate(self.parts):
            rows[owner == k] = part[flat[owner == k] - self.starts[k]]
        return rows.reshape(*numbers.shape, *self.shape[1:])


class ImageCache:
    """Read access to finished or growing caches.

    Attributes:
        images: ``[n, h, w, 3]`` uint8, indexed by row numbers; captions: list of n strings.
    """

    def __init__(self, *folders: Path) -> None:
        """Open ``folders``, one after the other; only finished images are visible."""
        states = [json.loads((folder / "state.json").read_text()) for folder in folders]
        parts = [
            np.load(folder / "images.npy", mmap_mode="r")[: state["done"]]
            for folder, state in zip(folders, states)
        ]
        self.images = parts[0] if len(parts) == 1 else StackedRows(parts)
        self.captions: list[str] = [text for state in states for text in state["captions"]]

    def __len__(self) -> int:
        """Number of finished images."""
        return len(self.images)


def cache_key(folder: Path) -> str:
    """What the images of a cache depend on, with their number: a key of whatever is made of them.

    Raises:
        ConfigError: ``folder`` has none, being made before there were keys.
    """
    state = json.loads((folder / "state.json").read_text())
    if "key" not in state:
        raise ConfigError(f"{folder} is a cache without a key. Delete it to render it again.")
    return f"{state['key']}-{state['done']}"


@lru_cache(maxsize=2)
def _sampler(config: SampleConfig | ObjectSampleConfig) -> ToySampler | ObjectSampler:
    if isinstance(config, SampleConfig):
        return ToySampler(config)
    return ObjectSampler(config, ObjectPack(kept=KEPT_OBJECTS))


def _key(config: SampleConfig | ObjectSampleConfig, seed: int) -> str:
    """A key of everything that the images depend on besides the code."""
    told: list[object] = [type(config).__name__, asdict(config), seed]
    if isinstance(config, ObjectSampleConfig):
        told.append(ObjectPack().digest)
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _draw(config: SampleConfig | ObjectSampleConfig, seed: int, k: int) -> tuple[np.ndarray, str]:
    """Image ``[h, w, 3]`` uint8 and caption of row k."""
    sample = _sampler(config).sample(np.random.default_rng([seed, k]))
    return np.round(sample.rgb * 255).astype(np.uint8), sample.caption


def _open(folder: Path, shape: tuple[int, ...], key: str) -> tuple[np.ndarray, dict]:
    """The images, writable where some are missing, and the state of ``folder``."""
    state_path = folder / "state.json"
    if not state_path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape)
        return images, {"done": 0, "captions": [], "key": key}
    state = json.loads(state_path.read_text())
    is_done = state["done"] == shape[0]
    images = np.load(folder / "images.npy", mmap_mode="r" if is_done else "r+")
    if images.shape != shape:
        raise ConfigError(
            f"{folder} is a cache of {len(images)} images of {images.shape[1]} pixels, but "
            f"{shape[0]} of {shape[1]} are asked for. Name another folder, or delete this one."
        )
    # Caches from before there were keys have none.
    if state.setdefault("key", key) != key:
        raise ConfigError(
            f"{folder} is a cache of other settings, seed or objects than are asked for. "
            "Name another folder, or delete this one."
        )
    return images, state


def render_cache(
    folder: Path,
    config: SampleConfig | ObjectSampleConfig,
    *,
    count: int,
    seed: int,
    log: Callable[[int, int], None] | None = None,
) -> ImageCache:
    """Render ``count`` samples into ``folder``, continuing where an earlier call stopped.

    Args:
        folder: created if absent.
        config: the distribution, of the toybox or of the object pack.
        count: how many images in the end.
        seed: image k is drawn from ``default_rng([seed, k])``.
        log: called with (done, count) after each chunk.

    Raises:
        ConfigError: ``folder`` holds a cache of another size or of another distribution.
    """
    shape = (count, config.image_size, config.image_size, 3)
    images, state = _open(folder, shape, _key(config, seed))
    rows = range(state["done"], count)
    for k, (image, caption) in zip(rows, draw_rows(partial(_draw, config, seed), rows)):
        images[k] = image
        state["captions"].append(caption)
        state["done"] = k + 1
        if state["done"] % CHUNK and state["done"] < count:
            continue
        images.flush()
        partial_state = folder / "state.tmp"
        partial_state.write_text(json.dumps(state))
        partial_state.replace(folder / "state.json")
        if log:
            log(state["done"], count)
    return ImageCache(folder)

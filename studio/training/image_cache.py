"""A disk cache of rendered toybox images, so that several training stages share one rendering.

The cache is a folder with ``images.npy`` (uint8, memory mapped), ``captions.json`` and a count of
what is finished; rendering is resumable and image k depends only on (seed, k).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES
from scenes.toybox.samples import SampleConfig, ToySampler

__all__ = ["ImageCache", "render_cache"]

CHUNK = 1000


class ImageCache:
    """Read access to a finished or growing cache.

    Attributes:
        images: ``[n, h, w, 3]`` uint8; captions: list of n strings.
        labels: ``[n, 3]`` int: kind, colour (of the first object), number of objects.
    """

    def __init__(self, folder: Path) -> None:
        """Open ``folder``; only finished images are visible."""
        state = json.loads((folder / "state.json").read_text())
        self.images = np.load(folder / "images.npy", mmap_mode="r")[: state["done"]]
        self.captions = state["captions"]
        self.labels = np.array(state["labels"], dtype=np.int64)

    def __len__(self) -> int:
        """Number of finished images."""
        return len(self.images)


def render_cache(
    folder: Path,
    config: SampleConfig,
    *,
    count: int,
    seed: int,
    log: Callable[[int, int], None] | None = None,
) -> ImageCache:
    """Render ``count`` samples into ``folder``, continuing where an earlier call stopped.

    Args:
        folder: created if absent.
        config: the distribution.
        count: how many images in the end.
        seed: image k is drawn from ``default_rng([seed, k])``.
        log: called with (done, count) after each chunk.

    Raises:
        ValueError: ``folder`` holds a cache of another size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state_path, size = folder / "state.json", config.image_size
    state = {"done": 0, "captions": [], "labels": []}
    if state_path.exists():
        state = json.loads(state_path.read_text())
        images = np.load(folder / "images.npy", mmap_mode="r+")
        if len(images) != count:
            raise ValueError(
                f"{folder} is a cache of {len(images)} images, but {count} are asked for. "
                "Name another folder, or delete this one."
            )
    else:
        shape = (count, size, size, 3)
        images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape)
    sampler = ToySampler(config)
    while state["done"] < count:
        start = state["done"]
        for k in range(start, min(start + CHUNK, count)):
            sample = sampler.sample(np.random.default_rng([seed, k]))
            images[k] = np.round(sample.rgb * 255)
            first = sample.scene.objects[0]
            state["captions"].append(sample.caption)
            state["labels"].append(
                [
                    KIND_NAMES.index(first.kind),
                    COLOR_NAMES.index(first.color),
                    len(sample.scene.objects),
                ]
            )
        state["done"] = k + 1
        images.flush()
        partial = state_path.with_suffix(".tmp")
        partial.write_text(json.dumps(state))
        partial.replace(state_path)
        if log:
            log(state["done"], count)
    return ImageCache(folder)

"""Rendered toybox objects for the judge: colour and coverage apart, so that backgrounds come later.

The judge may see every combination of kind and colour, because it only judges; but its individuals
are its own. A prior trains on even individuals below ``N_INDIVIDUALS``, evaluation uses odd ones
below it, the judge trains on those from ``N_INDIVIDUALS`` upwards. Object k depends only on
(seed, k); rendering is resumable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from renderers.cameras import Cameras, orbit_cameras
from scenes.toybox.captions import view_word
from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES, PATTERNS
from scenes.toybox.objects import ObjectSpec, ToyObject, build_object
from scenes.toybox.render import ToyGeometry, render_rgb
from scenes.toybox.scene import ToyScene
from scenes.toybox.splits import N_INDIVIDUALS
from studio.errors import ConfigError
from studio.evaluation.janus_objects import with_fronts
from studio.evaluation.judge import SYMMETRIC_KINDS, VIEWS

__all__ = [
    "JudgeData",
    "JudgeDataConfig",
    "draw_janus_views",
    "draw_object",
    "draw_views",
    "render_judge_data",
    "seen_view",
]

CHUNK = 300  # objects between two saves
WHITE = 255
JANUS_FRONTS = (
    (True, False, True, False),
    (True, True, False, False),
    (True, True, False, True),
    (True, True, True, True),
    (True, True, True, True),
)
"""Quarters with a front; four fronts are as common as any two of the other cases."""


@dataclass(frozen=True)
class JudgeDataConfig:
    """What the judge's training images show."""

    objects: int = 7_200
    """Rendered objects."""
    janus_objects: int = 1_300
    """Objects with two to four fronts, on top; what faces the camera then decides the view."""
    views: int = 3
    """Cameras around each object."""
    image_size: int = 64
    """Height and width in pixels."""
    plain: float = 0.55
    """Share of plain objects; the others are evenly striped, dotted and checked."""
    seed: int = 77
    """Seed of objects and cameras."""


class JudgeData:
    """Read access to a finished or growing folder of images.

    Attributes:
        images: ``[n, h, w, 4]`` uint8: colour over white, and coverage.
        labels: ``[n, 4]`` int64: kind, colour, pattern and view, as indices.
    """

    def __init__(self, folder: Path) -> None:
        """Open ``folder``; only finished images are visible."""
        state = json.loads((folder / "state.json").read_text())
        self.labels = np.array(state["labels"], dtype=np.int64)
        self.images = np.load(folder / "images.npy", mmap_mode="r")[: len(self.labels)]

    def __len__(self) -> int:
        """Number of finished images."""
        return len(self.labels)


def _cameras(rng: np.random.Generator, config: JudgeDataConfig) -> Cameras:
    """Any azimuth; elevations mostly 0..30, some odd ones, some from overhead."""
    low, high = ((0, 30), (-15, 60), (60, 88))[int(rng.choice(3, p=(0.65, 0.23, 0.12)))]
    elevation, fovy = rng.uniform(low, high), rng.uniform(20, 60)
    distance = rng.uniform(0.9, 1.1) * 0.95 / np.tan(np.deg2rad(fovy / 2))
    views = []
    for _ in range(config.views):
        camera = orbit_cameras(
            1,
            elevation_deg=elevation,
            distance=distance,
            fovy_deg=fovy,
            height=config.image_size,
            width=config.image_size,
            azimuth_start_deg=rng.uniform(-180, 180),
        )
        views.append(camera)
    return _joined(views)


def _joined(cameras: list[Cameras]) -> Cameras:
    names = ("c2w", "fovy", "azimuth_deg", "elevation_deg", "camera_distance", "light_position")
    parts = {name: torch.cat([getattr(c, name) for c in cameras]) for name in names}
    return Cameras(**parts, height=cameras[0].height, width=cameras[0].width)


def draw_object(rng: np.random.Generator, plain: float) -> ObjectSpec:
    """An object of any combination; its individual is used for nothing else."""
    pattern = PATTERNS[0] if rng.random() < plain else PATTERNS[1 + int(rng.integers(3))]
    return ObjectSpec(
        kind=KIND_NAMES[int(rng.integers(len(KIND_NAMES)))],
        color=COLOR_NAMES[int(rng.integers(len(COLOR_NAMES)))],
        pattern=pattern,
        individual=N_INDIVIDUALS + int(rng.integers(N_INDIVIDUALS)),
    )


def draw_views(
    rng: np.random.Generator, config: JudgeDataConfig
) -> tuple[np.ndarray, list[list[int]]]:
    """One object: images ``[views, h, w, 4]`` uint8 and their label rows."""
    spec = draw_object(rng, config.plain)
    return _look(build_object(spec), spec, (True, False, False, False), _cameras(rng, config))


def draw_janus_views(
    rng: np.random.Generator, config: JudgeDataConfig
) -> tuple[np.ndarray, list[list[int]]]:
    """The same of an object with two, three or four fronts."""
    while (spec := draw_object(rng, config.plain)).kind in SYMMETRIC_KINDS:
        pass
    fronts = JANUS_FRONTS[int(rng.integers(len(JANUS_FRONTS)))]
    toy = with_fronts(build_object(spec), fronts)
    return _look(toy, spec, fronts, _cameras(rng, config))


def seen_view(fronts: tuple[bool, ...], azimuth_deg: float, elevation_deg: float) -> str:
    """The side that a camera sees of an object with a front at azimuth 90 k where ``fronts[k]``."""
    view = view_word(azimuth_deg, elevation_deg).split()[0]
    facing = fronts[round(azimuth_deg / 90.0) % 4]
    return "front" if facing and view != "overhead" else view


def _look(
    toy: ToyObject, spec: ObjectSpec, fronts: tuple[bool, ...], cameras: Cameras
) -> tuple[np.ndarray, list[list[int]]]:
    geometry = ToyGeometry(ToyScene((toy,), np.zeros((1, 3)), np.ones(1)))
    rgb, mask = render_rgb(geometry, cameras, background=np.ones(3))
    images = np.round(np.concatenate([rgb, mask[..., None]], -1) * WHITE).astype(np.uint8)
    what = [
        KIND_NAMES.index(spec.kind),
        COLOR_NAMES.index(spec.color),
        PATTERNS.index(spec.pattern),
    ]
    angles = zip(cameras.azimuth_deg.tolist(), cameras.elevation_deg.tolist())
    return images, [[*what, VIEWS.index(seen_view(fronts, a, e))] for a, e in angles]


def _open(folder: Path, config: JudgeDataConfig) -> tuple[np.ndarray, list[list[int]], str]:
    """The images, writable where some are missing, the labels so far, and the settings' key."""
    key = hashlib.sha256(json.dumps(asdict(config)).encode()).hexdigest()[:16]
    total = (config.objects + config.janus_objects) * config.views
    shape = (total, config.image_size, config.image_size, 4)
    path = folder / "images.npy"
    if not (folder / "state.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        return np.lib.format.open_memmap(path, "w+", np.uint8, shape), [], key
    state = json.loads((folder / "state.json").read_text())
    images = np.load(path, mmap_mode="r" if len(state["labels"]) == total else "r+")
    # Folders from before there were keys have none.
    if images.shape != shape or state.get("key", key) != key:
        raise ConfigError(
            f"{folder} holds the judge's images of other settings. Name another folder, or "
            "delete this one."
        )
    return images, state["labels"], key


def render_judge_data(
    folder: Path, config: JudgeDataConfig, *, log: Callable[[str], None]
) -> JudgeData:
    """Render into ``folder``, continuing where an earlier call stopped.

    Raises:
        ConfigError: ``folder`` holds images of other settings.
    """
    images, labels, key = _open(folder, config)
    state_path, objects = folder / "state.json", config.objects + config.janus_objects
    total = objects * config.views
    while len(labels) < total:
        first = len(labels) // config.views
        for k in range(first, min(first + CHUNK, objects)):
            draw = draw_views if k < config.objects else draw_janus_views
            drawn, rows = draw(np.random.default_rng([config.seed, k]), config)
            images[k * config.views : (k + 1) * config.views] = drawn
            labels += rows
        images.flush()
        partial = state_path.with_suffix(".tmp")
        partial.write_text(json.dumps({"labels": labels, "key": key}))
        partial.replace(state_path)
        log(f"rendered {len(labels)}/{total}")
    return JudgeData(folder)

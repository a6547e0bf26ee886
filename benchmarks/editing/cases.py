"""What the rows of the editing benchmark ask for: prompts, their edits, and true renders.

Case k depends on the seed and on k alone, so more cases keep the ones before. Combinations of kind
and colour are those of the prior's training: what is measured is the tool, not the prior's reach.
Individuals of true renders are ones that no training saw.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from renderers.cameras import orbit_cameras
from scenes.toybox.captions import plain_caption
from scenes.toybox.catalog import KIND_NAMES, KINDS, PATTERNS
from scenes.toybox.objects import ObjectSpec
from scenes.toybox.render import ToyGeometry, render_buffers
from scenes.toybox.scene import SceneSpec, build_scene
from scenes.toybox.splits import N_INDIVIDUALS, is_held_out
from studio.evaluation.views import DISTANCE, ELEVATION_DEG, FOVY_DEG

__all__ = ["Case", "Render", "pair_cases", "render", "row_cases", "single_cases"]

VIEWS = {"front": 0.0, "side": 90.0, "back": 180.0}
VIVID = ("red", "green", "blue", "yellow", "orange", "purple")
"""Colours that no part of an object has by nature, and that nobody takes for another one."""
PLAIN_KINDS = tuple(name for name in KIND_NAMES if " " not in KINDS[name].noun)
"""Kinds of one word, which can be swapped word for word."""


@dataclass(frozen=True)
class Case:
    """One image that is asked for, and what else could stand in its prompt."""

    number: int
    scene: SceneSpec
    view: str | None
    other_color: str
    """Another colour of the first object."""
    other_kind: str
    """Another kind of the first object."""
    pattern: str
    """A pattern for the first object, which has none."""

    @property
    def spec(self) -> ObjectSpec:
        """The first object."""
        return self.scene.objects[0]

    @property
    def prompt(self) -> str:
        """Such as "a red mug, side view"."""
        return self.told(self.scene)

    @property
    def recolored(self) -> Case:
        """The first object in the other colour."""
        return self._with(replace(self.spec, color=self.other_color))

    @property
    def swapped(self) -> Case:
        """The first object of the other kind."""
        return self._with(replace(self.spec, kind=self.other_kind))

    @property
    def patterned(self) -> Case:
        """The first object with the pattern."""
        return self._with(replace(self.spec, pattern=self.pattern))

    def words(self, place: int = 0) -> tuple[str, ...]:
        """Words of an object's kind."""
        return tuple(KINDS[self.scene.objects[place].kind].noun.split())

    def told(self, scene: SceneSpec) -> str:
        """A scene in words."""
        view = f", {self.view} view" if self.view else ""
        return plain_caption(scene) + view

    def _with(self, spec: ObjectSpec) -> Case:
        return replace(self, scene=replace(self.scene, objects=(spec, *self.scene.objects[1:])))


def single_cases(count: int, *, seed: int) -> list[Case]:
    """Single plain objects of vivid colours, seen from the front, the side and behind in turn."""
    return [_single(number, seed) for number in range(count)]


def pair_cases(count: int, *, seed: int) -> list[Case]:
    """One thing left of another of another kind and colour."""
    return [_pair(number, seed) for number in range(count)]


def row_cases(count: int, things: int, *, seed: int) -> list[Case]:
    """Three or four things from left to right, all of other kinds and colours."""
    return [_row(number, things, seed) for number in range(count)]


@dataclass(frozen=True)
class Render:
    """The true image of a case."""

    rgb: Float[Tensor, "h w 3"]
    instances: Bool[Tensor, "objects h w"]
    """Where each object is seen."""


def render(case: Case, *, size: int) -> Render:
    """Draw a case exactly, over white, from the view that it names."""
    cameras = orbit_cameras(
        1,
        elevation_deg=ELEVATION_DEG,
        distance=DISTANCE,
        fovy_deg=FOVY_DEG,
        height=size,
        width=size,
        azimuth_start_deg=VIEWS[case.view] if case.view else 0.0,
    )
    buffers = render_buffers(ToyGeometry(build_scene(case.scene)), cameras, background=np.ones(3))
    instance = torch.from_numpy(buffers.instance[0])
    places = range(1, 1 + len(case.scene.objects))
    masks = torch.stack([instance == place for place in places])
    return Render(torch.from_numpy(buffers.rgb[0]).float(), masks)


def _single(number: int, seed: int) -> Case:
    rng = np.random.default_rng([seed, 1, number])
    spec, other_color, other_kind = _object(rng)
    view = list(VIEWS)[number % len(VIEWS)]
    pattern = PATTERNS[1 + number % (len(PATTERNS) - 1)]
    return Case(number, SceneSpec((spec,)), view, other_color, other_kind, pattern)


def _pair(number: int, seed: int) -> Case:
    rng = np.random.default_rng([seed, 2, number])
    first, other_color, other_kind = _object(rng)
    while True:
        second, _, _ = _object(rng)
        if second.kind not in (first.kind, other_kind) and second.color not in (
            first.color,
            other_color,
        ):
            break
    scene = SceneSpec((first, second), ("left of",))
    return Case(number, scene, None, other_color, other_kind, PATTERNS[1])


def _row(number: int, things: int, seed: int) -> Case:
    rng = np.random.default_rng([seed, things, number])
    first, other_color, other_kind = _object(rng)
    objects = [first]
    while len(objects) < things:
        spec, _, _ = _object(rng)
        is_new = all(spec.kind != one.kind and spec.color != one.color for one in objects)
        if is_new and spec.kind != other_kind:
            objects.append(spec)
    scene = SceneSpec(tuple(objects), ("left of",) * (things - 1))
    return Case(number, scene, None, other_color, other_kind, PATTERNS[1])


def _object(rng: np.random.Generator) -> tuple[ObjectSpec, str, str]:
    """An object, another colour and another kind for it, all of them trained on."""
    while True:
        kind, other_kind = rng.choice(PLAIN_KINDS, 2, replace=False).tolist()
        color, other_color = rng.choice(VIVID, 2, replace=False).tolist()
        trained = [(kind, color), (kind, other_color), (other_kind, color)]
        if not any(is_held_out(*pair) for pair in trained):
            break
    individual = 2 * int(rng.integers(N_INDIVIDUALS // 2)) + 1
    return ObjectSpec(kind, color, individual=individual), other_color, other_kind

"""Scenes of one to four objects with spatial relations.

Relations are in the frame of the front view (azimuth 0): "left of" is towards -y, "right of"
towards +y, "in front of" towards +x, "behind" towards -x, "on top of" towards +z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scenes.toybox.objects import OBJECT_RADIUS, ObjectSpec, ToyObject, build_object

__all__ = ["RELATIONS", "SceneSpec", "ToyScene", "build_scene"]

RELATIONS: dict[str, tuple[float, float, float]] = {
    "left of": (0.0, -1.0, 0.0),
    "right of": (0.0, 1.0, 0.0),
    "in front of": (1.0, 0.0, 0.0),
    "behind": (-1.0, 0.0, 0.0),
    "on top of": (0.0, 0.0, 1.0),
}


@dataclass(frozen=True)
class SceneSpec:
    """Objects, and for each object after the first its relation to the one before it."""

    objects: tuple[ObjectSpec, ...]
    relations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.objects) <= 4:
            raise ValueError(f"a scene has {len(self.objects)} objects; expected 1 to 4.")
        if len(self.relations) != len(self.objects) - 1:
            raise ValueError(
                f"{len(self.objects)} objects need {len(self.objects) - 1} relations, "
                f"got {len(self.relations)}."
            )
        for relation in self.relations:
            if relation not in RELATIONS:
                raise ValueError(
                    f"relation {relation!r} is unknown; expected one of {', '.join(RELATIONS)}."
                )


@dataclass(frozen=True)
class ToyScene:
    """Placed objects, ready to render.

    Attributes:
        objects: the objects in their own coordinates.
        offsets: ``[N, 3]``; scales: ``[N]``; world = object * scale + offset.
    """

    objects: tuple[ToyObject, ...]
    offsets: np.ndarray
    scales: np.ndarray


def _extent(obj: ToyObject, direction: np.ndarray) -> float:
    return float((obj.vertices @ direction).max())


def build_scene(spec: SceneSpec) -> ToyScene:
    """Place the objects so that neighbours do not touch and the whole fits the unit scene."""
    objects = [build_object(s) for s in spec.objects]
    offsets = [np.zeros(3)]
    # Each later object sits next to the one before it: "A left of B" puts A at B's left.
    for k, relation in enumerate(spec.relations):
        direction = -np.asarray(RELATIONS[relation])
        first, second = objects[k], objects[k + 1]
        touching = relation == "on top of"
        gap = _extent(first, direction) + _extent(second, -direction) + (0.0 if touching else 0.15)
        offset = offsets[k] + direction * gap
        if not touching:
            offset[2] = offsets[k][2] + first.vertices[:, 2].min() - second.vertices[:, 2].min()
        offsets.append(offset)
    placed = np.concatenate([o.vertices + t for o, t in zip(objects, offsets)])
    centre = (placed.min(0) + placed.max(0)) / 2
    scale = OBJECT_RADIUS / np.linalg.norm(placed - centre, axis=1).max()
    return ToyScene(
        objects=tuple(objects),
        offsets=(np.stack(offsets) - centre) * scale,
        scales=np.full(len(objects), scale),
    )

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

GAP = 0.15
"""Free space between neighbours, in object units."""
TOUCH = 1e-6
"""Boxes that share less than this along an axis only touch."""


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


def _overlaps(low: np.ndarray, high: np.ndarray, box: tuple[np.ndarray, np.ndarray]) -> bool:
    return bool(np.all(low < box[1] - TOUCH) and np.all(box[0] < high - TOUCH))


def _free_of(
    obj: ToyObject, offset: np.ndarray, direction: np.ndarray, boxes: list[tuple]
) -> np.ndarray:
    """Move ``offset`` on along ``direction`` until the object's box is clear of all ``boxes``."""
    low, high = obj.vertices.min(0), obj.vertices.max(0)
    for _ in boxes:
        for box in boxes:
            if _overlaps(low + offset, high + offset, box):
                corner = np.maximum(box[0] * direction, box[1] * direction).sum()
                offset = offset + direction * (
                    corner + GAP + _extent(obj, -direction) - offset @ direction
                )
    return offset


def build_scene(spec: SceneSpec) -> ToyScene:
    """Place the objects so that no two touch, unless one stands on the other, and fit the scene."""
    objects = [build_object(s) for s in spec.objects]
    offsets, boxes = [np.zeros(3)], [(objects[0].vertices.min(0), objects[0].vertices.max(0))]
    # Each later object sits next to the one before it: "A left of B" puts A at B's left.
    for k, relation in enumerate(spec.relations):
        direction = -np.asarray(RELATIONS[relation])
        first, second = objects[k], objects[k + 1]
        touching = relation == "on top of"
        gap = _extent(first, direction) + _extent(second, -direction) + (0.0 if touching else GAP)
        offset = offsets[k] + direction * gap
        if not touching:
            offset[2] = offsets[k][2] + first.vertices[:, 2].min() - second.vertices[:, 2].min()
        # "A left of B right of C" puts C where A already is.
        offset = _free_of(second, offset, direction, boxes)
        offsets.append(offset)
        boxes.append((second.vertices.min(0) + offset, second.vertices.max(0) + offset))
    placed = np.concatenate([o.vertices + t for o, t in zip(objects, offsets)])
    centre = (placed.min(0) + placed.max(0)) / 2
    scale = OBJECT_RADIUS / np.linalg.norm(placed - centre, axis=1).max()
    return ToyScene(
        objects=tuple(objects),
        offsets=(np.stack(offsets) - centre) * scale,
        scales=np.full(len(objects), scale),
    )

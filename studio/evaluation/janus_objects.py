"""Toybox objects with more than one front, made from true ones: known Janus cases.

An object is cut into four quarters around +z. Each quarter that shall be a front is the true front
quarter, turned there; the others stay as they are. The judge learns from some of these that a face
is a front whatever stands beside it, and the Janus score is tested on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool

from scenes.toybox.objects import ToyObject

__all__ = ["two_faced", "with_fronts"]

_QUARTER_TURN = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
_MIRROR = np.diag([-1.0, 1.0, 1.0])


def _keep(toy: ToyObject, chosen: Bool[np.ndarray, " faces"]) -> ToyObject:
    """The same object with some of its faces."""
    return replace(
        toy,
        faces=toy.faces[chosen],
        face_color=toy.face_color[chosen],
        face_second=toy.face_second[chosen],
        face_patterned=toy.face_patterned[chosen],
    )


def _moved(toy: ToyObject, matrix: np.ndarray) -> ToyObject:
    """The object under an orthogonal map."""
    faces = toy.faces if np.linalg.det(matrix) > 0 else toy.faces[:, ::-1]
    return replace(
        toy, vertices=toy.vertices @ matrix.T, normals=toy.normals @ matrix.T, faces=faces
    )


def _joined(toys: Sequence[ToyObject]) -> ToyObject:
    """One object of several."""
    starts = np.cumsum([0] + [len(toy.vertices) for toy in toys[:-1]])
    names = ("vertices", "normals", "face_color", "face_second", "face_patterned")
    parts = {name: np.concatenate([getattr(toy, name) for toy in toys]) for name in names}
    faces = np.concatenate([toy.faces + start for toy, start in zip(toys, starts)])
    return replace(toys[0], faces=faces, **parts)


def with_fronts(toy: ToyObject, fronts: Sequence[bool]) -> ToyObject:
    """The object with a front at azimuth 90 k wherever ``fronts[k]``, for k from 0 to 3."""
    centre = toy.vertices[toy.faces].mean(1)
    azimuth = np.rad2deg(np.arctan2(centre[:, 1], centre[:, 0]))
    quarter = np.round(azimuth / 90.0).astype(np.int64) % 4
    parts = [_keep(toy, ~np.asarray(fronts)[quarter])]
    front = _keep(toy, quarter == 0)
    for k in np.nonzero(fronts)[0]:
        parts.append(_moved(front, np.linalg.matrix_power(_QUARTER_TURN, int(k))))
    return _joined(parts)


def two_faced(toy: ToyObject) -> ToyObject:
    """The front half, and its mirror image in place of the back half."""
    front = _keep(toy, toy.vertices[toy.faces][..., 0].mean(1) >= 0)
    return _joined([front, _moved(front, _MIRROR)])

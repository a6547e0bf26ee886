"""The true object of a prompt, as the metrics need it: several individuals that no training saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from renderers.mesh import Mesh
from scenes.toybox.objects import OBJECT_RADIUS, ObjectSpec, ToyObject, build_object
from studio.evaluation.judge import FACELESS_KINDS, SYMMETRIC_KINDS, Judge
from studio.evaluation.metrics_geometry import YAWS, visible_points
from studio.evaluation.views import Views, eval_cameras, render_toy

__all__ = ["INDIVIDUALS", "TrueObject", "toy_mesh", "true_object"]

INDIVIDUALS = (1, 3, 5, 7)
"""Odd seeds of shape: neither a prior nor the judge was trained on them."""
N_POINTS = 2000


@dataclass(frozen=True)
class TrueObject:
    """What the metrics compare an asset with."""

    spec: ObjectSpec
    """Kind, colour and pattern; its individual is not used."""
    views: Views
    """All individuals at the evaluation cameras, one after the other."""
    front: Float[Tensor, " views"] | None
    """The judge's mean probability of "front" at each view; None for kinds without a face."""
    masks: Float[Tensor, "individuals yaws h w"]
    """Silhouettes at equally spaced azimuths."""
    points: Sequence[Float[np.ndarray, "n 3"]]
    """Points on the visible surface of each individual, scaled to unit radius."""


def toy_mesh(toy: ToyObject) -> Mesh:
    """Geometry alone, with the flat colours of faces left out."""
    return Mesh(torch.from_numpy(toy.vertices).float(), torch.from_numpy(toy.faces).long())


def true_object(
    spec: ObjectSpec, judge: Judge, *, n_views: int = 8, size: int = 64, seed: int = 0
) -> TrueObject:
    """Build and look at the individuals of ``spec``."""
    generator = torch.Generator().manual_seed(seed)
    has_face = spec.kind not in SYMMETRIC_KINDS + FACELESS_KINDS
    every, step = eval_cameras(YAWS, size=size), YAWS // n_views
    rgb, masks, fronts, points = [], [], [], []
    for individual in INDIVIDUALS:
        toy = build_object(replace(spec, individual=individual))
        views = render_toy(toy, every)
        masks.append(views.mask)
        rgb.append(views.rgb[::step])
        fronts.append(judge(views.rgb[::step]).front)
        mesh = toy_mesh(toy)
        unit = replace(mesh, v_pos=mesh.v_pos / OBJECT_RADIUS)
        points.append(visible_points(unit, N_POINTS, generator))
    return TrueObject(
        spec=spec,
        views=Views(torch.cat(rgb), torch.cat([m[::step] for m in masks])),
        front=torch.stack(fronts).mean(0) if has_face else None,
        masks=torch.stack(masks),
        points=points,
    )

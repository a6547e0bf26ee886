"""What an asset of a subject is compared with: its true shape and its true views.

* fidelity, identified: ``features`` of eight views around the asset;
* silhouette_iou, chamfer: as of every asset, at the best turn, with the subject's own mesh;
* janus: as of every asset, but a view's front is told by the subject's own renders, because the
  judge was not taught what these objects look like from the front. None without a front.

    metrics = SubjectTruth(case, features).metrics(load_asset(path))
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.personalization.features import SubjectFeatures
from benchmarks.personalization.subjects import Case
from renderers.mesh import Mesh
from scenes.objects.subjects import true_mesh, true_views
from scenes.toybox.objects import OBJECT_RADIUS
from studio.evaluation.metrics import janus
from studio.evaluation.metrics_geometry import YAWS, best_yaw_iou, chamfer, visible_points
from studio.evaluation.truth import N_POINTS
from studio.evaluation.views import eval_cameras, normalized, render_mesh

__all__ = ["N_VIEWS", "SubjectTruth"]

N_VIEWS = 8


class SubjectTruth:
    """The true object of a subject."""

    def __init__(self, case: Case, features: SubjectFeatures) -> None:
        """Look at it from all sides."""
        self.case, self.features = case, features
        rgb, masks = true_views(case.name, eval_cameras(YAWS))
        self.rgb: Float[Tensor, "views h w 3"] = torch.from_numpy(rgb).float()[:: YAWS // N_VIEWS]
        """Its views from the cameras of all assets."""
        self._masks = torch.from_numpy(masks).float()[None]
        self._points = _points(true_mesh(case.name))
        self._front = features.front(self.rgb, case.name)

    def metrics(self, mesh: Mesh) -> dict[str, float | None]:
        """All figures of an asset.

        Raises:
            EmptyGeometry: it has no surface.
        """
        mesh = normalized(mesh)
        views = render_mesh(mesh, eval_cameras(N_VIEWS))
        name = self.case.name
        front = self.features.front(views.rgb, name)
        return {
            "fidelity": self.features.fidelity(views.rgb, name),
            "identified": float(self.features.identified(views.rgb, name).float().mean()),
            "silhouette_iou": best_yaw_iou(views.mask, self._masks).iou,
            "chamfer": chamfer(_points(mesh), [self._points]),
            "janus": janus(front, self._front).score if self.case.has_front else None,
        }


def _points(mesh: Mesh) -> Float[np.ndarray, "n 3"]:
    """Points on the visible surface, scaled to unit radius."""
    unit = replace(mesh, v_pos=mesh.v_pos / OBJECT_RADIUS)
    return visible_points(unit, N_POINTS, torch.Generator().manual_seed(0))

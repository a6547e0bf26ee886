"""The loss of one step: the guidance's and every other term whose weight is not zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from torch import Tensor

from guidance.base import GuidanceOutput
from guidance.schedules import value_at
from renderers.mesh_regularizers import laplacian_loss, normal_consistency_loss
from renderers.outputs import RenderOutput
from renderers.regularizers import compute_regularizers, needs_normals
from studio.configs import LossesConfig, SceneConfig

__all__ = ["active_weights", "used_losses", "wants_normals", "weighted_losses"]

GIVEN = ("guidance", "autoencoder", "reconstruction")
"""Terms that are made before the losses are summed; all others are made of the render here."""
MESH_PENALTIES: dict[str, Callable[[RenderOutput], Tensor]] = {
    "normal_consistency": lambda out: normal_consistency_loss(
        out.mesh.vertex_normals(), out.topology
    ),
    "laplacian": lambda out: laplacian_loss(out.mesh.v_pos, out.topology),
}
"""Penalties that read the rendered mesh, by the name a scene gives them."""


def active_weights(config: LossesConfig, fraction: float) -> dict[str, float]:
    """Weight of each regulariser that counts at a fraction (0 to 1) of the stage."""
    names = [entry.name for entry in fields(config) if entry.name not in GIVEN]
    weights = {name: value_at(getattr(config, name), fraction) for name in names}
    return {name: weight for name, weight in weights.items() if weight != 0.0}


def used_losses(scene: SceneConfig) -> list[str]:
    """Loss terms that have a weight anywhere in the scene, guidance first."""
    names = vars(scene.stages[0].losses)
    used = [
        name for name in names if any(vars(stage.losses)[name] != 0.0 for stage in scene.stages)
    ]
    return [*used, "kept"] if scene.edit and scene.edit.box else used


def wants_normals(config: LossesConfig, fraction: float) -> bool:
    """Whether a regulariser of this step reads normals."""
    return needs_normals(active_weights(config, fraction))


def weighted_losses(
    config: LossesConfig,
    output: RenderOutput,
    guided: GuidanceOutput,
    fraction: float,
    *,
    reconstruction_loss: Tensor | None = None,
    kept_loss: Tensor | None = None,
) -> dict[str, Tensor]:
    """Every term times its weight; their sum is the loss.

    Args:
        config: the weights.
        output: the render.
        guided: what the rule made of it.
        fraction: where in the stage we are, 0..1.
        reconstruction_loss: distance to a subject's views, for stages that have one.
        kept_loss: what changed outside of the part that is edited, weighted; None without a part.
    """
    weights = active_weights(config, fraction)
    of_mesh = {name: MESH_PENALTIES[name](output) for name in weights if name in MESH_PENALTIES}
    others = [name for name in weights if name not in of_mesh]
    penalties = {**compute_regularizers(output, others), **of_mesh}
    terms = {"guidance": value_at(config.guidance, fraction) * guided.loss}
    if unread := value_at(config.autoencoder, fraction):
        terms["autoencoder"] = unread * guided.read_back()
    if reconstruction_loss is not None:
        terms["reconstruction"] = value_at(config.reconstruction, fraction) * reconstruction_loss
    if kept_loss is not None:
        terms["kept"] = kept_loss
    return terms | {name: weights[name] * penalties[name] for name in weights}

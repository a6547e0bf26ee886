"""Colour of a surface point: unlit, or Lambertian under one point light.

DreamFusion (arXiv 2209.14988, section 3.1): after a while of plain albedo, three quarters of the
steps are lit and half of those with white albedo, so that shape cannot hide in paint. A draw is
explicit: :class:`Shading` says what a step shows, and the renderer computes normals only if needed.

Usage::

    shading = draw_shading(config, fraction=0.4, generator=generator)
    rgb = shade(albedo, normal, position, light_position, shading)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from renderers.configs import AlbedoMaterialConfig, MaterialConfig

__all__ = ["ALBEDO", "Shading", "draw_shading", "eval_shading", "shade"]


@dataclass(frozen=True)
class Shading:
    """How one step is lit."""

    kind: Literal["albedo", "textureless", "diffuse"]
    """Unlit, lit with white albedo, or lit with the albedo."""
    ambient: float = 1.0
    """Ambient share of the light."""
    diffuse: float = 0.0
    """Diffuse share of the light."""

    @property
    def needs_normals(self) -> bool:
        """Whether shading reads the normals."""
        return self.kind != "albedo"


ALBEDO = Shading("albedo")


def draw_shading(config: MaterialConfig, fraction: float, generator: torch.Generator) -> Shading:
    """Draw the shading of one training step at a fraction (0 to 1) of the stage."""
    if isinstance(config, AlbedoMaterialConfig):
        return ALBEDO
    # All numbers are drawn at every step, so that the stream does not depend on the outcomes.
    lit, textureless, mix = torch.rand(3, generator=generator, device=generator.device).tolist()
    if fraction < config.ambient_only_until or lit >= config.diffuse_probability:
        return ALBEDO
    ambient, diffuse = config.ambient, config.diffuse
    if config.light_mix == "soft":
        ambient, diffuse = 1.0 - mix, mix
    kind = "textureless" if textureless < config.textureless_probability else "diffuse"
    return Shading(kind, ambient, diffuse)


def eval_shading(config: MaterialConfig) -> Shading:
    """The shading of evaluation renders."""
    if isinstance(config, AlbedoMaterialConfig) or config.eval_shading == "albedo":
        return ALBEDO
    return Shading("diffuse", config.ambient, config.diffuse)


def shade(
    albedo: Float[Tensor, "*points 3"],
    normal: Float[Tensor, "*points 3"] | None,
    position: Float[Tensor, "*points 3"],
    light_position: Float[Tensor, "*#points 3"],
    shading: Shading,
) -> Float[Tensor, "*points 3"]:
    """Colour ``albedo (ambient + diffuse max(0, n . l))`` of surface points, 0..1.

    Raises:
        ValueError: a lit shading without normals.
    """
    albedo = albedo.clamp(0.0, 1.0)
    if shading.kind == "albedo":
        return albedo
    if normal is None:
        raise ValueError(
            f"shade: normal is None, expected normals for {shading.kind!r} shading. "
            "Query the field with normals, or use ALBEDO."
        )
    toward_light = F.normalize(light_position - position, dim=-1)
    facing = (normal * toward_light).sum(-1, keepdim=True).clamp(min=0.0)
    light = shading.ambient + shading.diffuse * facing
    if shading.kind == "textureless":
        return light.expand_as(albedo).clamp(max=1.0)
    return (albedo * light).clamp(max=1.0)

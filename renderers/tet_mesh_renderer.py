"""Renders a mesh field with the calls of the volume renderer, so that stages can swap.

renderer = TetMeshRenderer(MeshRendererConfig(), field, background, material)
output = renderer.render(cameras, generator=generator, shading=shading)
normal_consistency_loss(output.mesh.vertex_normals(), output.topology)
"""

from __future__ import annotations

import torch
from torch import nn

from renderers.backgrounds import Background
from renderers.cameras import Cameras
from renderers.configs import MaterialConfig
from renderers.fields.painted_mesh import PaintedMeshField
from renderers.fields.tet_mesh import TetMeshField
from renderers.materials import Shading
from renderers.mesh_configs import MeshRendererConfig
from renderers.mesh_renderer import FieldAlbedo, MeshRenderer
from renderers.outputs import RenderOutput

__all__ = ["TetMeshRenderer"]


class TetMeshRenderer(nn.Module):
    """Renders a mesh field in front of a background; the state dict holds both.

    Args:
        config: backend, clip planes and supersampling.
        field: geometry and colours.
        background: what stands behind the object.
        material: how evaluation renders are lit (training steps pass their own draw).
    """

    def __init__(
        self,
        config: MeshRendererConfig,
        field: TetMeshField | PaintedMeshField,
        background: Background,
        material: MaterialConfig,
    ) -> None:
        super().__init__()
        self.config = config
        self.field = field
        self.rasteriser = MeshRenderer(config, background, material)

    @property
    def background(self) -> Background:
        """What stands behind the object."""
        return self.rasteriser.background

    def set_fraction(self, fraction: float) -> None:
        """Tell the field how far the stage is (0 to 1)."""
        self.field.set_fraction(fraction)

    def update_occupancy(self, step: int, generator: torch.Generator) -> None:
        """Nothing: a mesh has no empty space to skip."""

    def render(
        self,
        cameras: Cameras,
        *,
        generator: torch.Generator | None = None,
        shading: Shading | None = None,
        with_normals: bool = False,
    ) -> RenderOutput:
        """Render a batch of views; arguments as in :meth:`VolumeRenderer.render`.

        Raises:
            EmptyGeometry: the mesh has vanished.
        """
        return self.rasteriser.render(
            self.field.mesh(),
            cameras,
            FieldAlbedo(self.field),
            generator=generator,
            shading=shading,
            with_normals=with_normals,
        )

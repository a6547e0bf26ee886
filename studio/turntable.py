"""What a turntable shows and from where: the trained field, or the exported asset.

The field is what was optimised; the asset is what the user gets. Both are rendered in the same
frame, so that their pictures can be laid side by side.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from renderers.backgrounds import build_background
from renderers.cameras import Cameras, orbit_cameras
from renderers.configs import AlbedoMaterialConfig, SolidBackgroundConfig
from renderers.materials import Shading
from renderers.mesh import Mesh
from renderers.mesh_configs import MeshRendererConfig
from renderers.mesh_renderer import MeshRenderer, TextureAlbedo, VertexAlbedo
from renderers.outputs import RenderOutput
from renderers.poses import directions_from_angles
from studio.previews import preview_cameras
from studio.stages import LoadedStage
from studio.video import Render

__all__ = ["ASSET_SHADING", "asset_render", "field_render", "orbit_of"]

ELEVATION_DEG = 15.0
# Enough light from the side to read the shape, enough ambient to read the colour.
ASSET_SHADING = Shading("diffuse", ambient=0.6, diffuse=0.5)
# The light of the asset's pictures stands above and left of the camera.
LIGHT_TURN_DEG, LIGHT_ELEVATION_DEG = -35.0, 50.0


def orbit_of(
    stage: LoadedStage, n_views: int, *, size: int, elevation_deg: float = ELEVATION_DEG
) -> Cameras:
    """Views around the object at the middle of the training distances, front first."""
    typical = preview_cameras(stage.stage.cameras, size)
    return orbit_cameras(
        n_views,
        elevation_deg=elevation_deg,
        distance=float(typical.camera_distance[0]),
        fovy_deg=math.degrees(float(typical.fovy[0])),
        height=size,
        width=size,
    )


def field_render(stage: LoadedStage) -> Render:
    """Render the trained field, as training did."""
    device = next(stage.renderer.buffers()).device

    def render(cameras: Cameras) -> RenderOutput:
        """One batch of views, brought to the CPU."""
        output = stage.renderer.render(cameras.to(device), with_normals=True)
        parts = vars(output).items()
        images = {name: value.cpu() for name, value in parts if isinstance(value, Tensor)}
        return RenderOutput(**images)

    return render


def asset_render(mesh: Mesh, *, shading: Shading = ASSET_SHADING) -> Render:
    """Render an exported mesh with its texture or vertex colours, on white."""
    white = build_background(SolidBackgroundConfig(), torch.Generator().manual_seed(0))
    config = MeshRendererConfig()
    renderer = MeshRenderer(config, white, AlbedoMaterialConfig())
    albedo = TextureAlbedo("mip") if mesh.texture is not None else VertexAlbedo()

    def render(cameras: Cameras) -> RenderOutput:
        """One batch of views."""
        lit = dataclasses.replace(cameras, light_position=_key_light(cameras))
        return renderer.render(mesh, lit, albedo, shading=shading, with_normals=True)

    return render


def _key_light(cameras: Cameras) -> Float[Tensor, "b 3"]:
    """Light positions that turn with the camera."""
    azimuth_deg = cameras.azimuth_deg + LIGHT_TURN_DEG
    elevation_deg = torch.full_like(azimuth_deg, LIGHT_ELEVATION_DEG)
    towards = directions_from_angles(azimuth_deg, elevation_deg)
    return 2.0 * cameras.camera_distance[:, None] * towards

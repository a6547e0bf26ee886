"""Differentiable rendering of triangle meshes: visibility, albedo, material, background, outline.

The order of operations is that of Laine et al. (arXiv 2011.03277): rasterise, interpolate, colour,
put over the background, then anti-alias colour, coverage and depth together. Gradients reach the
vertices through the positions and normals at the seen points, and through the silhouettes; they
reach fields and textures through the colour.

    renderer = MeshRenderer(MeshRendererConfig(), background, material)
    output = renderer.render(mesh, cameras, FieldAlbedo(field), generator=generator)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from renderers.antialias import Topology, antialias
from renderers.backgrounds import Background
from renderers.cameras import Cameras
from renderers.configs import MaterialConfig
from renderers.errors import ShapeError
from renderers.materials import Shading, eval_shading, shade
from renderers.mesh import Mesh
from renderers.mesh_configs import MeshRendererConfig
from renderers.outputs import RenderOutput
from renderers.raster import Raster, interpolate, rasterize, to_clip
from renderers.texture import Filter, Wrap, texel_footprint, texture

__all__ = [
    "AlbedoSource",
    "FieldAlbedo",
    "MeshRenderer",
    "Surface",
    "TextureAlbedo",
    "VertexAlbedo",
]


@dataclass(frozen=True)
class Surface:
    """The surface points that the pixels of ``b`` views see."""

    mesh: Mesh
    """The mesh itself."""
    pos_clip: Float[Tensor, "b V 4"]
    """Clip-space positions of its vertices."""
    raster: Raster
    """Faces and weights of the pixels."""
    position: Float[Tensor, "b H W 3"]
    """World position of the seen point, zero on the background."""


@runtime_checkable
class AlbedoSource(Protocol):
    """Where the base colour of a surface comes from."""

    def __call__(self, surface: Surface) -> Float[Tensor, "b H W 3"]:
        """Colour at every pixel, 0..1; anything on the background."""


@runtime_checkable
class PointAlbedo(Protocol):
    """The part of a field that colours a surface."""

    def albedo(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Base colour at world points, 0..1."""


@dataclass(frozen=True)
class FieldAlbedo:
    """Colour from a field, queried at the seen points only."""

    field: PointAlbedo
    """Anything with ``albedo(x)``."""

    def __call__(self, surface: Surface) -> Float[Tensor, "b H W 3"]:
        """The field's albedo; zero on the background."""
        flat = surface.position.reshape(-1, 3)
        seen = surface.raster.tri_id.reshape(-1).nonzero().squeeze(1)
        if len(seen) == 0:
            return torch.zeros_like(surface.position)
        albedo = self.field.albedo(flat.index_select(0, seen))
        return torch.zeros_like(flat).index_copy(0, seen, albedo).view_as(surface.position)


@dataclass(frozen=True)
class TextureAlbedo:
    """Colour from the mesh's UV texture."""

    filter: Filter = "linear"
    """How texels are looked up; ``mip`` for textures much finer than the image."""
    wrap: Wrap = "clamp"
    """Whether coordinates outside 0..1 stop at the border or repeat."""

    def __call__(self, surface: Surface) -> Float[Tensor, "b H W 3"]:
        """The texture at the seen points.

        Raises:
            ShapeError: if the mesh has no texture or no texture coordinates.
        """
        mesh, raster = surface.mesh, surface.raster
        if mesh.texture is None or mesh.v_tex is None or mesh.t_tex_idx is None:
            raise ShapeError(
                "The mesh has no texture or no texture coordinates, but TextureAlbedo needs both. "
                "Give it texture, v_tex and t_tex_idx, or use VertexAlbedo or FieldAlbedo."
            )
        footprint = None
        if self.filter == "mip":
            footprint = texel_footprint(
                mesh.v_tex, mesh.t_tex_idx, raster, surface.pos_clip, mesh.t_pos_idx,
                (mesh.texture.shape[0], mesh.texture.shape[1]),
            )  # fmt: skip
        uv = interpolate(mesh.v_tex, raster, mesh.t_tex_idx)
        return texture(mesh.texture, uv, self.filter, wrap=self.wrap, footprint=footprint)


@dataclass(frozen=True)
class VertexAlbedo:
    """Colour from the mesh's vertices."""

    def __call__(self, surface: Surface) -> Float[Tensor, "b H W 3"]:
        """Vertex colours, interpolated.

        Raises:
            ShapeError: if the mesh has no vertex colours.
        """
        if surface.mesh.v_rgb is None:
            raise ShapeError(
                "The mesh has no vertex colours, but VertexAlbedo needs them. "
                "Give it v_rgb, or use TextureAlbedo or FieldAlbedo."
            )
        return interpolate(surface.mesh.v_rgb, surface.raster, surface.mesh.t_pos_idx)


class MeshRenderer(nn.Module):
    """Renders meshes in front of a background.

    The edge table of the last mesh is kept, and used again while the faces stay the same.

    Args:
        config: backend, clip planes and supersampling.
        background: what stands behind the object.
        material: how evaluation renders are lit (training steps pass their own draw).
    """

    def __init__(
        self, config: MeshRendererConfig, background: Background, material: MaterialConfig
    ) -> None:
        super().__init__()
        self.config = config
        self.background = background
        self.material = material
        self._faces: Tensor | None = None
        self._topology: Topology | None = None

    def topology(self, tri: Int[Tensor, "F 3"]) -> Topology:
        """The edge table of these faces, made only when they changed."""
        if self._topology is None or self._faces is None or not _same(self._faces, tri):
            self._faces, self._topology = tri.clone(), Topology(tri)
        return self._topology

    def render(
        self,
        mesh: Mesh,
        cameras: Cameras,
        albedo: AlbedoSource,
        *,
        generator: torch.Generator | None = None,
        shading: Shading | None = None,
        with_normals: bool = False,
    ) -> RenderOutput:
        """Render a batch of views of one mesh.

        Args:
            mesh: what to render, on the cameras' device.
            cameras: the views.
            albedo: where the colour comes from.
            generator: draws the background; None for a deterministic evaluation render.
            shading: how the object is lit; None for the material's evaluation shading.
            with_normals: also return normals when the shading does not need them.

        Raises:
            ShapeError: the cameras see a part of the scene only.
        """
        if cameras.within is not None:
            raise ShapeError(
                "Cameras.within limits what cameras see to a box, and a mesh is drawn whole. "
                "Expected None, or a volume."
            )
        shading = shading or eval_shading(self.material)
        fine = self.config.supersample
        cameras = cameras.resized(cameras.height * fine, cameras.width * fine)
        rays_o, rays_d = cameras.rays()
        background = self.background(rays_d, generator)
        surface = self._see(mesh, cameras)
        normal = None
        if with_normals or shading.needs_normals:
            normal = self._normals(surface)
        light = cameras.light_position[:, None, None]
        rgb = shade(albedo(surface), normal, surface.position, light, shading)
        mask = surface.raster.mask
        rgb = torch.where(mask > 0, rgb, background)
        distance = ((surface.position - rays_o) * rays_d).sum(-1, keepdim=True) * mask
        topology = self.topology(mesh.t_pos_idx)
        images = [rgb, mask, distance]
        if with_normals:
            images.append(torch.where(mask > 0, 0.5 * normal + 0.5, background))
        layers = antialias(
            torch.cat(images, -1),
            surface.raster, surface.pos_clip, mesh.t_pos_idx, topology,
        )  # fmt: skip
        output = RenderOutput(
            comp_rgb=layers[..., :3],
            opacity=layers[..., 3:4],
            depth=layers[..., 4:5],
            comp_rgb_bg=background,
            normal=normal,
            comp_normal=layers[..., 5:8] if with_normals else None,
            mesh=mesh,
            topology=topology,
        )
        return output if fine == 1 else _reduced(output, fine)

    def _see(self, mesh: Mesh, cameras: Cameras) -> Surface:
        pos_clip = to_clip(mesh.v_pos, cameras.mvp(self.config.near, self.config.far))
        backend = self.config.backend
        size = (cameras.height, cameras.width)
        raster = rasterize(pos_clip, mesh.t_pos_idx, size, backend=backend)
        position = interpolate(mesh.v_pos, raster, mesh.t_pos_idx, backend=backend)
        return Surface(mesh, pos_clip, raster, position)

    def _normals(self, surface: Surface) -> Tensor:
        normals, tri = surface.mesh.vertex_normals(), surface.mesh.t_pos_idx
        smooth = interpolate(normals, surface.raster, tri, backend=self.config.backend)
        return F.normalize(smooth, dim=-1)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.device == b.device and torch.equal(a, b)


def _reduced(output: RenderOutput, factor: int) -> RenderOutput:
    """Means over ``factor`` x ``factor`` pixels; normals get their length back."""

    def mean(image: Tensor) -> Tensor:
        return F.avg_pool2d(image.movedim(-1, 1), factor).movedim(1, -1)

    return replace(
        output,
        comp_rgb=mean(output.comp_rgb),
        opacity=mean(output.opacity),
        depth=mean(output.depth),
        comp_rgb_bg=mean(output.comp_rgb_bg),
        normal=None if output.normal is None else F.normalize(mean(output.normal), dim=-1),
        comp_normal=None if output.comp_normal is None else mean(output.comp_normal),
    )

"""Colours of the surface, from the field into a texture or onto vertices.

The colour *at* the iso-surface is not what the renderer showed: a ray gathers colour from a little
outside it to as deep as light gets, which is far where a field is a fog, as SDS likes to leave it.
``shell_colours`` therefore composites samples along the inward normal with the field's own
densities, which is what a ray at normal incidence shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from renderers.grid_sampling import CHUNK_POINTS
from renderers.mesh_renderer import PointAlbedo
from renderers.raster import interpolate, rasterize
from studio.errors import Diverged
from studio.export.shading import corner_normals
from studio.export.surface import DensityField
from studio.export.triangles import Triangles
from studio.export.unwrap import Atlas

__all__ = [
    "Colours",
    "Texture",
    "bake_texture",
    "shell_colours",
    "surface_colours",
    "vertex_colours",
]

Colours = Callable[[Float[Tensor, "n 3"], Float[Tensor, "n 3"]], Float[Tensor, "n 3"]]
"""Display-referred colours from surface positions and unit outward normals."""

SHELL_SAMPLES = 12
# A shell with less opacity than this has no colour of its own; the surface point's is used.
MIN_SHELL_OPACITY = 1e-2


@dataclass(frozen=True)
class Texture:
    """A baked texture."""

    image: Float[np.ndarray, "h w 3"]
    """Display-referred colours in 0..1, filled everywhere."""
    coverage: float
    """Fraction of the texels that the surface uses."""


def surface_colours(field: PointAlbedo) -> Colours:
    """The field's albedo exactly at the surface."""
    return lambda positions, _: field.albedo(positions).clamp(0.0, 1.0)


def shell_colours(field: DensityField, *, outside: float, inside: float) -> Colours:
    """The field's albedo composited along the inward normal.

    Args:
        field: the radiance field.
        outside: distance from the surface at which the ray begins, world units.
        inside: depth at which it ends.
    """
    step = (outside + inside) / SHELL_SAMPLES
    offsets = outside - (torch.arange(SHELL_SAMPLES) + 0.5) * step
    at_surface = int(offsets.abs().argmin())

    def colours(positions: Tensor, normals: Tensor) -> Tensor:
        """Composite from outside to inside."""
        along = offsets.to(positions)[None, :, None] * normals[:, None, :]
        points = (positions[:, None, :] + along).reshape(-1, 3)
        sigma = field.density(points).reshape(-1, SHELL_SAMPLES)
        albedo = field.albedo(points).reshape(-1, SHELL_SAMPLES, 3).clamp(0.0, 1.0)
        optical = torch.cumsum(sigma * step, dim=1)
        reached = torch.exp(-torch.nn.functional.pad(optical[:, :-1], (1, 0)))
        weights = reached * (1.0 - torch.exp(-sigma * step))
        opacity = weights.sum(dim=1, keepdim=True)
        blended = (weights[..., None] * albedo).sum(dim=1) / opacity.clamp_min(1e-9)
        return torch.where(opacity > MIN_SHELL_OPACITY, blended, albedo[:, at_surface])

    return colours


def bake_texture(
    mesh: Triangles,
    atlas: Atlas,
    colours: Colours,
    *,
    size: int,
    crease_deg: float = 180.0,
    device: torch.device | str = "cpu",
) -> Texture:
    """Colour every texel that the surface touches, and spread the colours over the rest.

    Args:
        mesh: the surface in world coordinates.
        atlas: its texture coordinates.
        colours: where the colours come from.
        size: side of the texture in pixels.
        crease_deg: the normals given to ``colours`` jump at sharper edges.
        device: where ``colours`` is evaluated.
    """
    clip = np.zeros((1, len(atlas.uv), 4), dtype=np.float32)
    clip[0, :, :2] = 2.0 * atlas.uv - 1.0
    clip[0, :, 3] = 1.0
    t_tex_idx = torch.from_numpy(atlas.t_tex_idx)
    raster = rasterize(torch.from_numpy(clip), t_tex_idx, (size, size))
    covered = raster.tri_id[0] > 0
    corners = torch.from_numpy(mesh.corners().astype(np.float32)).reshape(-1, 3)
    normals = torch.from_numpy(corner_normals(mesh, crease_deg=crease_deg)).float().reshape(-1, 3)
    both = torch.cat([corners, normals], dim=1)
    at_texel = interpolate(both, raster, torch.arange(len(both)).reshape(-1, 3))[0][covered]
    unit = torch.nn.functional.normalize(at_texel[:, 3:], dim=-1)
    image = np.full((size, size, 3), 0.5, dtype=np.float32)
    mask = covered.numpy()
    image[mask] = _evaluate(colours, at_texel[:, :3], unit, device).numpy()
    return Texture(_spread(image, mask), float(mask.mean()))


def vertex_colours(
    mesh: Triangles, colours: Colours, *, device: torch.device | str = "cpu"
) -> Float[np.ndarray, "v 3"]:
    """One colour per vertex."""
    normal = np.zeros_like(mesh.v_pos)
    np.add.at(normal, mesh.t_pos_idx.reshape(-1), np.repeat(mesh.area_vectors(), 3, axis=0))
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-30)
    positions, normals = (torch.from_numpy(x.astype(np.float32)) for x in (mesh.v_pos, normal))
    return _evaluate(colours, positions, normals, device).numpy()


def _evaluate(
    colours: Colours, positions: Tensor, normals: Tensor, device: torch.device | str
) -> Float[Tensor, "n 3"]:
    """Evaluate in chunks without gradients; the result is on the CPU.

    Raises:
        Diverged: a colour is NaN or infinite, which bytes would turn into black unsaid.
    """
    size = CHUNK_POINTS // SHELL_SAMPLES
    parts = zip(positions.split(size), normals.split(size), strict=True)
    with torch.no_grad():
        result = [colours(p.to(device), n.to(device)).float().cpu() for p, n in parts]
    rgb = torch.cat(result) if result else torch.empty(0, 3)
    wrong = int((~torch.isfinite(rgb)).any(dim=1).sum())
    if wrong:
        raise Diverged(
            f"The colour is NaN or infinite at {wrong} of {len(rgb)} points of the surface - "
            "expected numbers everywhere. Train again with a lower learning rate or guidance scale."
        )
    return rgb


def _spread(image: Float[np.ndarray, "h w 3"], mask: np.ndarray) -> Float[np.ndarray, "h w 3"]:
    """Give every unused texel the colour of the nearest used one: no seams at any mip level."""
    from scipy.ndimage import distance_transform_edt

    if mask.all() or not mask.any():
        return image
    rows, cols = distance_transform_edt(~mask, return_distances=False, return_indices=True)
    return image[rows, cols]

"""Texture lookups: nearest, bilinear, and trilinear over a pyramid of halved textures.

Texture coordinates have (0, 0) at the corner of the first texel of row 0 and texel centres at
``(i + 0.5) / size``, as in glTF. Minification follows Williams, "Pyramidal Parametrics" (1983):
each level is the mean of 2 x 2 texels of the one before, and a pixel that spans ``s`` texels reads
level ``log2 s``. The pyramid is made anew at each call, so gradients reach the full texture.
Sides that are not powers of two work, but their last texels weigh more in coarse levels.

    uv = interpolate(mesh.v_tex, raster, mesh.t_tex_idx)
    color = texture(mesh.texture, uv)
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from renderers.errors import ShapeError, check_shape
from renderers.raster import Raster

__all__ = ["Filter", "Wrap", "texel_footprint", "texture"]

Filter = Literal["nearest", "linear", "mip"]
Wrap = Literal["clamp", "repeat"]

MAX_FOOTPRINT = 1e6
"""Texels per pixel are bounded by this where a face is seen edge-on."""


def texture(
    tex: Float[Tensor, "H W C"],
    uv: Float[Tensor, "b h w 2"],
    filter: Filter = "linear",
    *,
    wrap: Wrap = "clamp",
    footprint: Float[Tensor, "b h w"] | None = None,
) -> Float[Tensor, "b h w C"]:
    """Look a texture up; differentiable in ``tex`` and, except for ``nearest``, in ``uv``.

    Args:
        tex: the texture, row 0 at v = 0.
        uv: texture coordinates of each pixel.
        filter: ``nearest``, ``linear``, or ``mip`` (trilinear).
        wrap: whether coordinates outside 0..1 stop at the border or repeat.
        footprint: side of each pixel in texels (see ``texel_footprint``); ``mip`` needs it.

    Raises:
        ShapeError: if a tensor has the wrong shape.
        ValueError: if ``filter`` or ``wrap`` is unknown, or ``mip`` lacks its footprint.
    """
    check_shape("tex", tex, "H W C")
    check_shape("uv", uv, "b h w 2")
    _check_choice("filter", filter, get_args(Filter))
    _check_choice("wrap", wrap, get_args(Wrap))
    if filter != "mip":
        return _sample(tex, uv, "nearest" if filter == "nearest" else "bilinear", wrap)
    if footprint is None:
        raise ValueError(
            "filter 'mip' got footprint None, expected texels per pixel [b, h, w]. "
            "Compute it with texel_footprint(...)."
        )
    if footprint.shape != uv.shape[:3]:
        raise ShapeError(
            f"footprint has shape {tuple(footprint.shape)}, expected {tuple(uv.shape[:3])}."
        )
    return _trilinear(tex, uv, wrap, footprint)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}.")


def _sample(tex: Tensor, uv: Tensor, mode: str, wrap: Wrap) -> Tensor:
    height, width, n_channels = tex.shape
    planes = tex.permute(2, 0, 1)[None]  # [1, C, H, W]
    if wrap == "repeat":
        # A border of one texel from the other side; then only 0..1 is read.
        planes = F.pad(planes, (1, 1, 1, 1), mode="circular")
        size = uv.new_tensor([width, height])
        uv = ((uv - torch.floor(uv)) * size + 1) / (size + 2)
    # One tall image instead of a batch: the texture is shared, and so is its gradient.
    grid = (uv * 2 - 1).reshape(1, -1, uv.shape[2], 2)
    found = F.grid_sample(planes, grid, mode=mode, padding_mode="border", align_corners=False)
    return found[0].permute(1, 2, 0).reshape(*uv.shape[:3], n_channels)


def _trilinear(tex: Tensor, uv: Tensor, wrap: Wrap, footprint: Tensor) -> Tensor:
    levels = [tex]
    while min(levels[-1].shape[:2]) > 1:
        planes = levels[-1].permute(2, 0, 1)[None]
        levels.append(F.avg_pool2d(planes, 2, ceil_mode=True)[0].permute(1, 2, 0))
    level = torch.log2(footprint.clamp(1.0, MAX_FOOTPRINT)).clamp(max=len(levels) - 1.0)
    out = tex.new_zeros(*uv.shape[:3], tex.shape[2])
    for index, image in enumerate(levels):
        weight = (1 - (level - index).abs()).clamp(min=0)
        if weight.any():
            out = out + weight[..., None] * _sample(image, uv, "bilinear", wrap)
    return out


@torch.no_grad()
def texel_footprint(
    v_tex: Float[Tensor, "T 2"],
    t_tex_idx: Int[Tensor, "F 3"],
    raster: Raster,
    pos_clip: Float[Tensor, "b V 4"],
    tri: Int[Tensor, "F 3"],
    texture_size: tuple[int, int],
) -> Float[Tensor, "b H W"]:
    """Side in texels of what each pixel sees; 0 on the background. Not differentiable.

    The longer of the steps in texture space when the pixel moves by one column or one row on the
    plane of its face, perspective included (the rule of the OpenGL specification).
    """
    n_views, height, width = raster.tri_id.shape
    view, row, column = raster.tri_id.nonzero(as_tuple=True)
    face = (raster.tri_id[view, row, column] - 1).long()
    corners = pos_clip[view[:, None], tri[face]]  # [n, 3, 4]
    size = v_tex.new_tensor([texture_size[1], texture_size[0]])
    uv = v_tex[t_tex_idx[face]] * size  # [n, 3, 2], in texels
    x = (column + 0.5) * (2 / width) - 1
    y = (row + 0.5) * (2 / height) - 1
    here = _on_plane(corners, uv, x, y)
    right = _on_plane(corners, uv, x + 2 / width, y)
    below = _on_plane(corners, uv, x, y + 2 / height)
    side = torch.maximum((right - here).norm(dim=1), (below - here).norm(dim=1))
    out = v_tex.new_zeros(n_views, height, width)
    out[view, row, column] = side.nan_to_num(MAX_FOOTPRINT).clamp(max=MAX_FOOTPRINT)
    return out


def _on_plane(corners: Tensor, values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Corner values [n, 3, C] continued over the plane of the face to ndc points (x, y)."""
    w = corners[..., 3]
    qx, qy = corners[..., 0] - x[:, None] * w, corners[..., 1] - y[:, None] * w
    edge = qx.roll(-1, 1) * qy.roll(-2, 1) - qy.roll(-1, 1) * qx.roll(-2, 1)
    return (edge[..., None] * values).sum(1) / edge.sum(1, keepdim=True)

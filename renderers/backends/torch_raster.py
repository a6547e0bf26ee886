"""Rasterisation in plain PyTorch: the reference for every kernel, on any device and float type.

Visibility enumerates the (face, pixel) candidates of all bounding boxes and reduces them with
``scatter_reduce``; the weights and interpolation are ordinary differentiable tensor code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["DrawnFaces", "barycentrics", "drawn_faces", "interpolate", "visibility"]

MIN_W = 1e-6
"""A face with a corner at or behind this clip w is dropped: there is no near clipping."""
TINY = 1e-12
"""Keeps the weights of a face that is seen edge-on finite (a third each)."""
MAX_CANDIDATES = 4_000_000
"""Candidates held in memory at once; larger batches of faces are split."""


def visibility(pos_clip: Tensor, tri: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """``(tri_id, zw)``, both ``[b, H, W]``, of positions ``[b, V, 4]`` and faces ``[F, 3]``."""
    n_views = pos_clip.shape[0]
    zw = pos_clip.new_ones(n_views * height * width)
    tri_id = torch.zeros_like(zw, dtype=torch.int32)
    faces = drawn_faces(pos_clip, tri, height, width)
    # Faces in order, split so that one piece stays within the memory bound.
    total = torch.cumsum(faces.count, 0)
    piece = torch.div(total - 1, MAX_CANDIDATES, rounding_mode="floor")
    sizes = torch.unique_consecutive(piece, return_counts=True)[1].tolist()
    for chosen in torch.split(torch.arange(len(total), device=total.device), sizes):
        pixel, z, face = _candidates(faces.select(chosen), height, width)
        nearest = zw.scatter_reduce(0, pixel, z, "amin")
        wins = (z == nearest[pixel]) & (z < zw[pixel])
        pixel, face = pixel[wins], face[wins]
        first = torch.full_like(tri_id, 2**31 - 1).scatter_reduce(0, pixel, face + 1, "amin")
        tri_id = torch.where(nearest < zw, first, tri_id)
        zw = nearest
    return tri_id.view(n_views, height, width), zw.view(n_views, height, width)


@dataclass(frozen=True)
class DrawnFaces:
    """The ``n`` faces of all views that may cover a pixel centre."""

    corners: Tensor
    """Screen x, y in pixels and z / w of the corners, ``[n, 3, 3]``."""
    low: Tensor
    """First column and row of the bounding box, ``[n, 2]``."""
    extent: Tensor
    """Columns and rows of the bounding box, ``[n, 2]``."""
    view: Tensor
    """View of each face, ``[n]``."""
    face: Tensor
    """Index of each face, int32 ``[n]``."""

    @property
    def count(self) -> Tensor:
        """Pixel centres in each bounding box, ``[n]``."""
        return self.extent[:, 0] * self.extent[:, 1]

    def select(self, index: Tensor) -> DrawnFaces:
        """Some of the faces."""
        return DrawnFaces(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def drawn_faces(pos_clip: Tensor, tri: Tensor, height: int, width: int) -> DrawnFaces:
    """Project all faces; those behind the camera, off screen or without area are left out."""
    n_views, n_vertices = pos_clip.shape[:2]
    x, y, z, w = pos_clip.reshape(-1, 4).unbind(1)
    safe = torch.where(w > MIN_W, w, torch.ones_like(w))
    screen = torch.stack(
        [(x / safe * 0.5 + 0.5) * width, (y / safe * 0.5 + 0.5) * height, z / safe], 1
    )
    usable = (w > MIN_W) & torch.isfinite(screen.sum(1))
    view = torch.arange(n_views, device=tri.device)[:, None, None]
    index = (tri + view * n_vertices).view(-1, 3)
    corners = screen[index]
    upper = screen.new_tensor([width - 1.0, height - 1.0])
    low = torch.ceil(corners[:, :, :2].amin(1) - 0.5).clamp(min=0)
    high = torch.minimum(torch.floor(corners[:, :, :2].amax(1) - 0.5), upper)
    drawn = usable[index].all(1) & (high >= low).all(1)
    a, b, c = corners.unbind(1)
    kept = (drawn & (_cross(b - a, c - a) != 0)).nonzero().squeeze(1)
    low, high = low[kept].long(), high[kept].long()
    n_faces = max(tri.shape[0], 1)
    view = torch.div(kept, n_faces, rounding_mode="floor")
    return DrawnFaces(corners[kept], low, high - low + 1, view, (kept % n_faces).int())


def _cross(p: Tensor, q: Tensor) -> Tensor:
    return p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]


def _candidates(faces: DrawnFaces, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Flat pixel, depth and face of every pixel centre inside a face."""
    count = faces.count
    item = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    offset = torch.arange(len(item), device=count.device) - (torch.cumsum(count, 0) - count)[item]
    columns = faces.extent[item, 0]
    row = faces.low[item, 1] + torch.div(offset, columns, rounding_mode="floor")
    column = faces.low[item, 0] + offset % columns
    centre = torch.stack([column, row], 1).to(faces.corners.dtype) + 0.5
    a, b, c = faces.corners[item].unbind(1)
    area = _cross(b - a, c - a)
    sign = torch.where(area > 0, 1.0, -1.0).to(area.dtype)
    pa, pb, pc = (corner[:, :2] - centre for corner in (a, b, c))
    e0, e1, e2 = _cross(pb, pc) * sign, _cross(pc, pa) * sign, _cross(pa, pb) * sign
    total = e0 + e1 + e2
    z = (e0 * a[:, 2] + e1 * b[:, 2] + e2 * c[:, 2]) / total
    inside = (e0 >= 0) & (e1 >= 0) & (e2 >= 0) & (total > 0) & (z >= -1) & (z < 1)
    kept = inside.nonzero().squeeze(1)
    pixel = (faces.view[item] * height + row) * width + column
    return pixel[kept], z[kept], faces.face[item[kept]]


def barycentrics(pos_clip: Tensor, tri: Tensor, tri_id: Tensor) -> Tensor:
    """Perspective-correct weights ``[b, H, W, 2]`` of corners 0 and 1, from clip positions.

    Edge functions of the corners minus the pixel's ray in clip space (Olano and Greer,
    "Triangle scan conversion using 2D homogeneous coordinates", 1997), normalised to sum one.
    """
    n_views, height, width = tri_id.shape
    pixel = tri_id.reshape(-1).nonzero().squeeze(1)
    view = torch.div(pixel, height * width, rounding_mode="floor")
    row = torch.div(pixel, width, rounding_mode="floor") % height
    dtype = pos_clip.dtype
    px = ((pixel % width).to(dtype) + 0.5) * (2 / width) - 1
    py = (row.to(dtype) + 0.5) * (2 / height) - 1
    corner = tri[(tri_id.reshape(-1)[pixel] - 1).long()] + (view * pos_clip.shape[1])[:, None]
    flat = pos_clip.reshape(-1, 4)
    a, b, c = (_towards_ray(flat.index_select(0, index), px, py) for index in corner.unbind(1))
    edge = torch.stack([_cross(b, c), _cross(c, a), _cross(a, b)], 1)
    total = edge.sum(1, keepdim=True)
    weight = edge / torch.where(total == 0, torch.ones_like(total), total)
    weight = weight.clamp(0, 1) + TINY
    weight = (weight / weight.sum(1, keepdim=True))[:, :2]
    out = pos_clip.new_zeros(n_views * height * width, 2).index_copy(0, pixel, weight)
    return out.view(n_views, height, width, 2)


def _towards_ray(corner: Tensor, px: Tensor, py: Tensor) -> Tensor:
    w = corner[:, 3]
    return torch.stack([corner[:, 0] - px * w, corner[:, 1] - py * w], 1)


def interpolate(attr: Tensor, tri: Tensor, tri_id: Tensor, bary: Tensor) -> Tensor:
    """Attributes ``[1 or b, V, C]`` at every pixel, ``[b, H, W, C]``; zero on the background."""
    n_views, height, width = tri_id.shape
    n_channels = attr.shape[2]
    pixel = tri_id.reshape(-1).nonzero().squeeze(1)
    corner = tri[(tri_id.reshape(-1)[pixel] - 1).long()]
    if attr.shape[0] > 1:
        view = torch.div(pixel, height * width, rounding_mode="floor")
        corner = corner + (view * attr.shape[1])[:, None]
    flat = attr.reshape(-1, n_channels)
    u, v = bary.reshape(-1, 2).index_select(0, pixel).split(1, dim=1)
    a, b, c = (flat.index_select(0, index) for index in corner.unbind(1))
    value = u * a + v * b + (1 - u - v) * c
    out = attr.new_zeros(n_views * height * width, n_channels).index_copy(0, pixel, value)
    return out.view(n_views, height, width, n_channels)

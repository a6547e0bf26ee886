"""Anti-aliasing of silhouettes, which is where the gradient of a mesh's outline comes from.

The blend is that of Laine et al. (arXiv 2011.03277, section 3.6): where an edge passes between
the centres of two neighbouring pixels, the nearer colour spills into the other pixel (or the
other way round) in proportion to the distance of the crossing from the middle.

Deviation: that paper looks for the edge among the three edges of the face seen by the front
pixel, and so misses most silhouettes once faces are about as small as a pixel. Here the search
goes over edges. Every silhouette edge (a boundary, or a fold between two faces of opposite screen
orientation) visits the pixel pairs it crosses: steep edges (|dy| >= |dx|) the horizontal pairs of
each row, shallow ones the vertical pairs of each column. Each point of the outline then counts
once, and the gradient of a covered area comes out right at any face size.

A pixel that edges cut on several sides gets a share of each neighbour's colour. Shares that sum to
more than one, as in a hole or a speck of less than a pixel, are divided by their sum: colours stay
between those that are mixed.

Limits: one edge per pixel pair (the nearest), so parts thinner than a pixel lose area; surfaces
that cut through each other have no edge there and stay jagged.

    topology = Topology(tri)  # keep it while the faces stay the same
    color = antialias(color, raster, pos_clip, tri, topology)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from renderers.backends import resolve
from renderers.errors import ShapeError, check_shape
from renderers.raster import Raster

__all__ = ["Topology", "antialias"]

MIN_W = 1e-6
"""Edges with an end at or behind this clip w are skipped, like the faces in ``rasterize``."""


class Topology:
    """The edges of a list of faces; make it once for as long as the faces stay the same.

    An edge shared by more than two faces appears once for every two of them.
    """

    vertices: Int[Tensor, "E 2"]
    """End points of each edge, in the order of its first face."""
    faces: Int[Tensor, "E 2"]
    """The faces on both sides; the second is -1 on a boundary."""
    opposite: Int[Tensor, "E 2"]
    """The third vertex of each of the faces; on a boundary the first one twice."""
    consistent: Bool[Tensor, " E"]
    """Whether the faces run along the edge in opposite directions, as outward faces do."""

    def __init__(self, tri: Int[Tensor, "F 3"]) -> None:
        check_shape("tri", tri, "F 3")
        self.n_faces = tri.shape[0]
        if resolve(tri.device) == "numba":
            from renderers.backends.numba_topology import edge_table
        else:
            from renderers.backends.torch_topology import edge_table
        self.vertices, self.faces, self.opposite, self.consistent = edge_table(tri)

    @property
    def n_edges(self) -> int:
        """Number of edges E."""
        return self.vertices.shape[0]


@dataclass(frozen=True)
class _Screen:
    """Vertices in pixels, flat over views ``[b * V]``; the discrete part of the work uses it."""

    x: Tensor
    y: Tensor
    z: Tensor
    usable: Tensor
    n_views: int

    def per_view(self, values: Tensor) -> Tensor:
        return values.view(self.n_views, -1)


@dataclass(frozen=True)
class _Pairs:
    """Pixel pairs that an edge crosses; indices are flat over views."""

    front: Tensor
    back: Tensor
    v0: Tensor
    v1: Tensor
    steep: Tensor
    line: Tensor
    """The row of a steep edge's crossing, the column of a shallow one's."""
    z: Tensor

    def select(self, index: Tensor) -> _Pairs:
        return _Pairs(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def antialias(
    color: Float[Tensor, "b H W C"],
    raster: Raster,
    pos_clip: Float[Tensor, "b V 4"],
    tri: Int[Tensor, "F 3"],
    topology: Topology,
) -> Float[Tensor, "b H W C"]:
    """Smooth silhouettes; differentiable in ``color`` and in x, y and w of ``pos_clip``.

    Args:
        color: any channels, background included. Masks are channels like others.
        raster: what ``rasterize`` returned for the same positions and faces.
        pos_clip: clip-space positions.
        tri: vertex indices.
        topology: ``Topology(tri)``.

    Raises:
        ShapeError: if a shape is wrong, or ``topology`` belongs to other faces.
    """
    check_shape("color", color, "b H W C")
    check_shape("pos_clip", pos_clip, f"{color.shape[0]} V 4")
    if raster.tri_id.shape != color.shape[:3]:
        raise ShapeError(
            f"color has shape {tuple(color.shape)}, but the raster is "
            f"{tuple(raster.tri_id.shape)}. Pass the colours of the same views and size."
        )
    if topology.n_faces != tri.shape[0]:
        raise ShapeError(
            f"topology was made for {topology.n_faces} faces, but tri has {tri.shape[0]}. "
            "Make a new Topology(tri)."
        )
    height, width = color.shape[1:3]
    with torch.no_grad():
        screen = _to_screen(pos_clip, height, width)
        pairs = _crossings(screen, tri, topology, height, width)
        pairs = _visible(pairs, raster)
    return _blend(color, pos_clip, pairs)


def _to_screen(pos_clip: Tensor, height: int, width: int) -> _Screen:
    x, y, z, w = pos_clip.reshape(-1, 4).unbind(1)
    usable = w > MIN_W
    w = torch.where(usable, w, torch.ones_like(w))
    x, y, z = (x / w * 0.5 + 0.5) * width, (y / w * 0.5 + 0.5) * height, z / w
    return _Screen(x, y, z, usable & torch.isfinite(x + y + z), pos_clip.shape[0])


def _silhouettes(screen: _Screen, tri: Tensor, topology: Topology) -> tuple[Tensor, ...]:
    """Flat vertices v0, v1 of the silhouette edges, and the surface's vertex beside each."""
    x, y = screen.per_view(screen.x), screen.per_view(screen.y)
    a, b, c = tri.unbind(1)
    ax, ay = x.index_select(1, a), y.index_select(1, a)
    area = (x.index_select(1, b) - ax) * (y.index_select(1, c) - ay)
    area -= (y.index_select(1, b) - ay) * (x.index_select(1, c) - ax)
    facing = area > 0
    first, second = topology.faces[:, 0], topology.faces[:, 1].clamp(min=0)
    fold = (facing.index_select(1, first) == facing.index_select(1, second)) ^ topology.consistent
    view, edge = (fold | (topology.faces[:, 1] < 0)).nonzero(as_tuple=True)
    offset = view * x.shape[1]
    v0, v1 = topology.vertices[edge, 0] + offset, topology.vertices[edge, 1] + offset
    # Both faces of a fold lie on one side; the one seen more squarely says which.
    wider = (area[view, second[edge]].abs() > area[view, first[edge]].abs()).long()
    beside = topology.opposite[edge, wider] + offset
    kept = (screen.usable[v0] & screen.usable[v1] & screen.usable[beside]).nonzero().squeeze(1)
    return v0[kept], v1[kept], beside[kept]


def _crossings(screen: _Screen, tri: Tensor, topology: Topology, height: int, width: int) -> _Pairs:
    """All pixel pairs between whose centres a silhouette edge passes."""
    v0, v1, beside = _silhouettes(screen, tri, topology)
    dx, dy = screen.x[v1] - screen.x[v0], screen.y[v1] - screen.y[v0]
    steep = dy.abs() >= dx.abs()
    along0, across0 = _along_across(screen, v0, steep)
    along1, across1 = _along_across(screen, v1, steep)
    slope = (across1 - across0) / (along1 - along0)
    along_side, across_side = _along_across(screen, beside, steep)
    surface_below = across_side < across0 + (along_side - along0) * slope
    # Lines of pixel centres in [low, high): a chain of edges meets each line once.
    length = torch.where(steep, height, width).to(along0.dtype)
    low = torch.minimum(torch.ceil(torch.minimum(along0, along1) - 0.5).clamp(min=0), length)
    high = torch.minimum(torch.ceil(torch.maximum(along0, along1) - 0.5).clamp(min=0), length)
    count = (high - low).long()
    edge = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    start = torch.cumsum(count, 0) - count
    line = low.long()[edge] + torch.arange(len(edge), device=count.device) - start[edge]
    u = (line + 0.5 - along0[edge]) / (along1 - along0)[edge]
    across = across0[edge] + u * (across1 - across0)[edge]
    z = screen.z[v0][edge] + u * (screen.z[v1] - screen.z[v0])[edge]
    steep = steep[edge]
    # A centre exactly on the edge belongs to the surface, as in ``rasterize``.
    below = surface_below[edge]
    cell = torch.where(below, torch.floor(across - 0.5), torch.ceil(across - 0.5) - 1)
    inside = (cell >= 0) & (cell + 1 < torch.where(steep, width, height))
    cell = torch.where(inside, cell, torch.zeros_like(cell)).long()
    view = torch.div(v0[edge], len(screen.x) // screen.n_views, rounding_mode="floor")
    near = torch.where(steep, line * width + cell, cell * width + line) + view * (height * width)
    far = near + torch.where(steep, 1, width)
    front, back = torch.where(below, near, far), torch.where(below, far, near)
    pairs = _Pairs(front, back, v0[edge], v1[edge], steep, line, z)
    return pairs.select((inside & (z >= -1)).nonzero().squeeze(1))


def _along_across(screen: _Screen, vertex: Tensor, steep: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates along the axis an edge is stepped on (y if steep), and across it."""
    x, y = screen.x[vertex], screen.y[vertex]
    return torch.where(steep, y, x), torch.where(steep, x, y)


def _visible(pairs: _Pairs, raster: Raster) -> _Pairs:
    """Keep crossings that separate two surfaces and are not hidden, one per pixel pair."""
    tri_id, zw = raster.tri_id.reshape(-1), raster.zw.reshape(-1)
    front_id = tri_id[pairs.front]
    seen = (front_id != 0) & (front_id != tri_id[pairs.back]) & (pairs.z < zw[pairs.back])
    pairs = pairs.select(seen.nonzero().squeeze(1))
    slot = torch.minimum(pairs.front, pairs.back) * 2 + pairs.steep
    nearest = zw.new_full((2 * len(zw),), 2.0).scatter_reduce(0, slot, pairs.z, "amin")
    wins = (pairs.z == nearest[slot]).nonzero().squeeze(1)
    # Equal depths are rare (an edge given twice); the first crossing wins, in a fixed order.
    order = torch.argsort(slot[wins], stable=True)
    kept = torch.ones_like(order, dtype=torch.bool)
    kept[1:] = slot[wins][order][1:] != slot[wins][order][:-1]
    return pairs.select(wins[order[kept]])


def _blend(color: Tensor, pos_clip: Tensor, pairs: _Pairs) -> Tensor:
    """Shift colour over each crossing; the only differentiable step."""
    n_channels, (height, width) = color.shape[3], color.shape[1:3]
    flat = pos_clip.reshape(-1, 4)
    along0, across0 = _project(flat.index_select(0, pairs.v0), pairs.steep, height, width)
    along1, across1 = _project(flat.index_select(0, pairs.v1), pairs.steep, height, width)
    u = (pairs.line + 0.5 - along0) / (along1 - along0)
    across = across0 + u * (across1 - across0)
    position = torch.where(
        pairs.steep,
        pairs.front % width,
        torch.div(pairs.front, width, rounding_mode="floor") % height,
    )
    # Distance of the crossing from the middle, in pixels, positive towards the back pixel.
    direction = torch.where(pairs.back > pairs.front, 1.0, -1.0).to(across.dtype)
    shift = ((across - (position + 0.5)) * direction - 0.5)[:, None]
    pixels = color.reshape(-1, n_channels)
    front, back = pixels.index_select(0, pairs.front), pixels.index_select(0, pairs.back)
    spills = shift > 0
    change = torch.where(spills, shift * (front - back), -shift * (back - front))
    target = torch.where(spills[:, 0], pairs.back, pairs.front)
    change = change / _excess(shift.abs(), target, len(pixels))
    return pixels.index_add(0, target, change).view_as(color)


def _excess(share: Tensor, target: Tensor, n_pixels: int) -> Tensor:
    """For each share, the sum of those of its pixel where that is more than one, else one."""
    total = share.new_zeros(n_pixels, 1).index_add(0, target, share)
    return total.index_select(0, target).clamp(min=1.0)


def _project(vertex: Tensor, steep: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    x = (vertex[:, 0] / vertex[:, 3] * 0.5 + 0.5) * width
    y = (vertex[:, 1] / vertex[:, 3] * 0.5 + 0.5) * height
    return torch.where(steep, y, x), torch.where(steep, x, y)

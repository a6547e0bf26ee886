"""What the mesh code is measured against: the usual ways, written plainly in PyTorch.

* ``dmtet``: marching tetrahedra as in Deep Marching Tetrahedra (arXiv 2111.04276): the edges of all
  cut tetrahedra are listed and made unique row by row.
* ``antialias_front_triangle``: the rule of Laine et al. (arXiv 2011.03277, section 3.6): between
  two pixels of different faces, look for the silhouette among the edges of the nearer face only.
"""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from renderers.isosurface import cut_triangles
from renderers.raster import Raster

__all__ = ["antialias_front_triangle", "dmtet", "kuhn_grid", "opposite_vertices"]

EDGES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
POSITIVE_TETRAHEDRON = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1)]


def _triangle_table() -> Tensor:
    """Edges of up to two outward triangles for each of 16 sign patterns, -1 fills up."""
    table = torch.full((16, 6), -1)
    for code in range(16):
        for k, triangle in enumerate(cut_triangles(POSITIVE_TETRAHEDRON, code)):
            table[code, 3 * k : 3 * k + 3] = torch.tensor([EDGES.index(edge) for edge in triangle])
    return table


TRIANGLES = _triangle_table()


def kuhn_grid(n: int) -> Tensor:
    """Corners ``[6 n^3, 4]`` of positively oriented tetrahedra on an (n + 1)^3 grid."""
    side = n + 1
    strides = (side * side, side, 1)
    axis = torch.arange(n)
    cube = torch.cartesian_prod(axis, axis, axis) @ torch.tensor(strides)
    tets = []
    for order in permutations(range(3)):
        steps = torch.tensor([0] + [strides[a] for a in order]).cumsum(0)
        odd = sum(order[i] > order[j] for i in range(3) for j in range(i + 1, 3)) % 2
        steps = steps[[0, 2, 1, 3]] if odd else steps
        tets.append(cube[:, None] + steps)
    return torch.cat(tets)


def dmtet(points: Tensor, sdf: Tensor, tets: Tensor) -> tuple[Tensor, Tensor]:
    """Vertices and outward faces of the zero set of ``sdf``, negative inside."""
    with torch.no_grad():
        inside, device = sdf < 0, sdf.device
        n_inside = inside[tets].sum(1)
        cut = tets[(n_inside > 0) & (n_inside < 4)]
        edges = cut[:, torch.tensor(EDGES, device=device).view(-1)].view(-1, 2).sort(1).values
        unique, index = torch.unique(edges, dim=0, return_inverse=True)
        crossing = inside[unique].sum(1) == 1
        number = torch.full((len(unique),), -1, device=device)
        number[crossing] = torch.arange(int(crossing.sum()), device=device)
        index = number[index].view(-1, 6)
        code = (inside[cut] * torch.tensor([1, 2, 4, 8], device=device)).sum(1)
        triangles = TRIANGLES.to(device)[code]  # [cut, 6]
        faces = []
        for part in (triangles[:, :3], triangles[:, 3:]):
            present = part[:, 0] >= 0
            faces.append(torch.gather(index[present], 1, part[present]))
        ends = unique[crossing]
    a, b = points[ends[:, 0]], points[ends[:, 1]]
    s_a, s_b = sdf[ends[:, 0]][:, None], sdf[ends[:, 1]][:, None]
    return a + (b - a) * s_a / (s_a - s_b), torch.cat(faces)


def opposite_vertices(tri: Tensor) -> Tensor:
    """Across each face edge (v_k, v_k+1): the neighbouring face's third vertex, -1 at a border."""
    start, end = tri.reshape(-1), tri.roll(-1, 1).reshape(-1)
    third = tri.roll(-2, 1).reshape(-1)
    key = torch.minimum(start, end) * (int(tri.max()) + 1) + torch.maximum(start, end)
    key, order = torch.sort(key, stable=True)
    first = (key[1:] == key[:-1]).nonzero().squeeze(1)
    out = torch.full_like(third, -1)
    out[order[first]] = third[order[first + 1]]
    out[order[first + 1]] = third[order[first]]
    return out.view(-1, 3)


def antialias_front_triangle(
    color: Tensor, raster: Raster, pos_clip: Tensor, tri: Tensor, opposite: Tensor
) -> Tensor:
    """Blend across silhouettes found on the front pixel's own face; one view ``[1, H, W, C]``."""
    height, width, n_channels = color.shape[1:]
    w = pos_clip[0, :, 3]
    screen = torch.stack(
        [(pos_clip[0, :, 0] / w * 0.5 + 0.5) * width, (pos_clip[0, :, 1] / w * 0.5 + 0.5) * height],
        1,
    )
    pixels = color[0].reshape(-1, n_channels)
    out = pixels
    for axis in (0, 1):
        front, back, edge = _front_edges(raster, screen.detach(), tri, opposite, axis)
        p0, p1 = screen.index_select(0, edge[:, 0]), screen.index_select(0, edge[:, 1])
        side_front = _side(p0, p1, _centre(front, width))
        side_back = _side(p0, p1, _centre(back, width))
        shift = (side_front / (side_front - side_back) - 0.5)[:, None]
        near, far = pixels.index_select(0, front), pixels.index_select(0, back)
        change = torch.where(shift > 0, shift * (near - far), -shift * (far - near))
        out = out.index_add(0, torch.where(shift[:, 0] > 0, back, front), change)
    return out.view_as(color)


@torch.no_grad()
def _front_edges(
    raster: Raster, screen: Tensor, tri: Tensor, opposite: Tensor, axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Front pixel, back pixel and edge of the pairs along ``axis`` (0: rows' neighbours, x)."""
    tri_id, zw = raster.tri_id[0], raster.zw[0]
    height, width = tri_id.shape
    index = torch.arange(height * width, device=tri_id.device).view(height, width)
    one, two = (index[:, :-1], index[:, 1:]) if axis == 0 else (index[:-1], index[1:])
    one, two = one.reshape(-1), two.reshape(-1)
    tri_id, zw = tri_id.reshape(-1), zw.reshape(-1)
    different = tri_id[one] != tri_id[two]
    one, two = one[different], two[different]
    swap = zw[two] < zw[one]
    front, back = torch.where(swap, two, one), torch.where(swap, one, two)
    face = (tri_id[front] - 1).long()
    fronts, backs, edges, shares = [], [], [], []
    for k in range(3):
        v0, v1 = tri[face, k], tri[face, (k + 1) % 3]
        p0, p1 = screen[v0], screen[v1]
        steep = (p1 - p0)[:, 1].abs() >= (p1 - p0)[:, 0].abs()
        side_front = _side(p0, p1, _centre(front, width))
        side_back = _side(p0, p1, _centre(back, width))
        share = side_front / (side_front - side_back)
        start = _centre(front, width)
        crossing = start + share[:, None] * (_centre(back, width) - start)
        along = 1 - axis
        within = (crossing[:, along] - p0[:, along]) * (crossing[:, along] - p1[:, along]) <= 0
        other = opposite[face, k]
        own = _side(p0, p1, screen[tri[face, (k + 2) % 3]])
        folded = (other < 0) | (_side(p0, p1, screen[other.clamp(min=0)]) * own >= 0)
        found = (steep == (axis == 0)) & (side_front * side_back < 0) & within & folded
        fronts.append(front[found])
        backs.append(back[found])
        edges.append(torch.stack([v0, v1], 1)[found])
        shares.append(share[found])
    front, back = torch.cat(fronts), torch.cat(backs)
    edge, share = torch.cat(edges), torch.cat(shares)
    # One edge per pair: the one nearest to the front pixel.
    slot = torch.minimum(front, back)
    nearest = share.new_full((height * width,), 9.0).scatter_reduce(0, slot, share, "amin")
    kept = share <= nearest[slot]
    return front[kept], back[kept], edge[kept]


def _centre(pixel: Tensor, width: int) -> Tensor:
    row = torch.div(pixel, width, rounding_mode="floor")
    return torch.stack([pixel % width, row], 1) + 0.5


def _side(p0: Tensor, p1: Tensor, point: Tensor) -> Tensor:
    edge, offset = p1 - p0, point - p0
    return edge[:, 0] * offset[:, 1] - edge[:, 1] * offset[:, 0]

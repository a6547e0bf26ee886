"""Marching tetrahedra on a regular grid: a mesh from signed distances, differentiable in both.

Doi and Koide, "An Efficient Method of Triangulating Equi-Valued Surfaces by Using Tetrahedral
Cells" (1991), as used by Shen et al., "Deep Marching Tetrahedra" (arXiv 2111.04276, section 3.1):
a vertex sits on each tetrahedron edge whose ends differ in sign, at the zero of the linear
interpolant ``p_a + (p_b - p_a) s_a / (s_a - s_b)``.

Deviation: the tetrahedra are Kuhn's six per cube, so that every edge is a grid point and one of
seven directions. Crossing edges are marked in a dense array and numbered by their position in it;
faces look their vertices up there. No sorting and no ``unique``: 16-26 times the usual code.

The surface is closed if the signed distance is not negative on the border of the grid; where it is,
the mesh stays open.

    tets = GridTets(64, radius=1.0)
    v_pos, t_pos_idx = tets(sdf(tets.points), tets.bounded_offsets(raw))
"""

from __future__ import annotations

import math
from itertools import permutations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from renderers.errors import EmptyGeometry, ShapeError, check_shape

__all__ = ["GridTets", "cut_triangles"]

LARGEST_RESOLUTION = 512
"""7 (n + 1)^3 edge numbers must fit int32, and the memory of the dense arrays stays in GB."""


def _kuhn_tetrahedra() -> list[list[tuple[int, int, int]]]:
    """Six paths along the axes from (0, 0, 0) to (1, 1, 1); together they fill the cube."""
    tetrahedra = []
    for axes in permutations(range(3)):
        corner = [0, 0, 0]
        path = [(0, 0, 0)]
        for axis in axes:
            corner[axis] = 1
            path.append((corner[0], corner[1], corner[2]))
        tetrahedra.append(path)
    return tetrahedra


def cut_triangles(path: list[tuple[int, int, int]], code: int) -> list[list[tuple[int, int]]]:
    """Triangles, as tetrahedron edges, that part the inside corners (bits of ``code``) outwards."""
    inside = [k for k in range(4) if code >> k & 1]
    outside = [k for k in range(4) if not code >> k & 1]
    if len(inside) == 2:
        (a, b), (c, d) = inside, outside
        ring = [(a, c), (a, d), (b, d), (b, c)]
    else:
        ring = [(min(i, o), max(i, o)) for i in inside for o in outside]
    if not ring:
        return []
    corner = torch.tensor(path, dtype=torch.float64)
    middle = torch.stack([(corner[i] + corner[o]) / 2 for i, o in ring])
    normal = torch.linalg.cross(middle[1] - middle[0], middle[2] - middle[0])
    if normal @ (corner[outside].mean(0) - corner[inside].mean(0)) < 0:
        ring = ring[::-1]
    ring = [(min(i, o), max(i, o)) for i, o in ring]
    return [ring] if len(ring) == 3 else [ring[:3], [ring[0], ring[2], ring[3]]]


class GridTets(nn.Module):
    """Marching tetrahedra over ``resolution``^3 cubes of the box ``[-radius, radius]``^3.

    Args:
        resolution: cubes along one axis.
        radius: half the side of the box.

    Raises:
        ShapeError: if ``resolution`` is not in 1..512 or ``radius`` not positive.
    """

    points: Float[Tensor, "N 3"]
    """Grid points, x slowest, where the signed distance is wanted; N = (resolution + 1)^3."""

    def __init__(self, resolution: int, radius: float = 1.0) -> None:
        super().__init__()
        if not 1 <= resolution <= LARGEST_RESOLUTION or radius <= 0:
            raise ShapeError(
                f"GridTets got resolution {resolution} and radius {radius}, expected a resolution "
                f"of 1..{LARGEST_RESOLUTION} and a positive radius."
            )
        self.resolution = resolution
        self.radius = radius
        axis = torch.linspace(-radius, radius, resolution + 1)
        grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
        self._constant("points", grid.view(-1, 3))
        side = resolution + 1
        self._strides = (side * side, side, 1)
        directions = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
        self._constant("_corner_steps", torch.tensor([self._step(d) for d in directions]))
        self._build_tables(directions)

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def _step(self, direction: tuple[int, int, int]) -> int:
        return sum(d * s for d, s in zip(direction, self._strides, strict=True))

    def _build_tables(self, directions: list[tuple[int, int, int]]) -> None:
        """Per tetrahedron and sign code: number of triangles, and their edges relative to a cube.

        Edge numbers are ``(direction - 1) * N + point``, so an edge of a cube is the number of the
        cube's first point plus a constant.
        """
        n_points = self.points.shape[0]
        count = torch.zeros(6, 16, dtype=torch.int64)
        edges = torch.zeros(6, 16, 2, 3, dtype=torch.int64)
        corners = torch.zeros(6, 4, dtype=torch.int64)
        for t, path in enumerate(_kuhn_tetrahedra()):
            corners[t] = torch.tensor([directions.index(corner) for corner in path])
            for code in range(16):
                triangles = cut_triangles(path, code)
                count[t, code] = len(triangles)
                for k, triangle in enumerate(triangles):
                    for m, (i, j) in enumerate(triangle):
                        start, end = path[i], path[j]
                        along = tuple(e - s for s, e in zip(start, end, strict=True))
                        number = directions.index(along) - 1  # type: ignore[arg-type]
                        edges[t, code, k, m] = number * n_points + self._step(start)
        self._constant("_tet_corners", corners)
        self._constant("_triangle_count", count)
        self._constant("_triangle_edges", edges.view(-1, 2, 3).transpose(0, 1).contiguous())

    @property
    def cell_size(self) -> float:
        """Side of one cube."""
        return 2 * self.radius / self.resolution

    def bounded_offsets(
        self, raw: Float[Tensor, "N 3"], *, reach: float = 0.5
    ) -> Float[Tensor, "N 3"]:
        """Displacements ``reach * cell_size * tanh(raw)`` from unbounded parameters.

        Up to half a cell, the default, neighbouring grid points keep their order on every axis.
        """
        return reach * self.cell_size * torch.tanh(raw)

    def forward(
        self,
        sdf: Float[Tensor, " N"],
        offsets: Float[Tensor, "N 3"] | None = None,
        *,
        reach: float | None = None,
    ) -> tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"]]:
        """Vertices and outward faces of the zero set; differentiable in ``sdf`` and ``offsets``.

        Args:
            sdf: signed distance at ``points``, negative inside; zero counts as outside.
            offsets: displacement of the grid points, world units.
            reach: takes ``offsets`` as the unbounded parameters of :meth:`bounded_offsets`; cheaper
                than a call of that, because only points at the surface are looked at.

        Raises:
            ShapeError: if a tensor has the wrong shape.
            EmptyGeometry: if all values have one sign, or one is not a number.
        """
        n_points = self.points.shape[0]
        check_shape("sdf", sdf, str(n_points))
        if offsets is not None:
            check_shape("offsets", offsets, f"{n_points} 3")
        with torch.no_grad():
            inside = sdf < 0
            self._require_surface(sdf, inside)
            start, end, number_of = self._crossing_edges(inside)
            face_edges = self._face_edges(inside)
            faces = number_of.index_select(0, face_edges.view(-1)).view(-1, 3).long()
        # One lookup for both ends, so that the backward pass fills one dense gradient, not two.
        ends = torch.cat([start, end])
        s_start, s_end = sdf.index_select(0, ends).chunk(2)
        points = self.points.index_select(0, ends).to(sdf.dtype)
        if offsets is not None:
            chosen = offsets.index_select(0, ends)
            points = points + (
                chosen if reach is None else self.bounded_offsets(chosen, reach=reach)
            )
        p_start, p_end = points.chunk(2)
        share = (s_start / (s_start - s_end))[:, None]
        return p_start + (p_end - p_start) * share, faces

    def _require_surface(self, sdf: Tensor, inside: Tensor) -> None:
        n_inside = int(inside.sum())
        low, high = (float(value) for value in torch.aminmax(sdf))
        if not math.isfinite(low + high):
            raise EmptyGeometry(
                f"The signed distance holds NaN or infinity (range {low:.4g}..{high:.4g}), "
                "expected finite values. Lower the learning rate, or restart from an earlier "
                "checkpoint."
            )
        if n_inside in (0, len(sdf)):
            where = "outside" if n_inside == 0 else "inside"
            raise EmptyGeometry(
                f"No surface: the signed distance is {low:.4g}..{high:.4g}, so all {len(sdf)} grid "
                f"points are {where}; expected both signs. Shift the threshold into that range, or "
                "start from a field with a surface."
            )

    def _crossing_edges(self, inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both grid points of each crossing edge, and the vertex number of every edge number."""
        side = self.resolution + 1
        grid = inside.view(side, side, side)
        crossing = inside.new_zeros(7, side, side, side)
        for d in range(1, 8):
            low = tuple(slice(0, side - (d >> k & 1)) for k in (2, 1, 0))
            high = tuple(slice(d >> k & 1, side) for k in (2, 1, 0))
            torch.ne(grid[low], grid[high], out=crossing[(d - 1, *low)])
        number = crossing.view(-1).nonzero().squeeze(1)
        # Only crossing edges are ever looked up, so the rest stays uninitialised.
        vertex_of = torch.empty(crossing.numel(), dtype=torch.int32, device=inside.device)
        vertex_of[number] = torch.arange(len(number), dtype=torch.int32, device=inside.device)
        direction = torch.div(number, len(inside), rounding_mode="floor")
        start = number - direction * len(inside)
        return start, start + self._corner_steps[direction + 1], vertex_of

    def _face_edges(self, inside: Tensor) -> Tensor:
        """Edge numbers of the corners of all faces, [F, 3]."""
        cube = self._mixed_cubes(inside)
        corner = inside.index_select(0, (cube + self._corner_steps[:, None]).view(-1)).view(8, -1)
        corner = corner.to(torch.uint8)
        code = sum(corner.index_select(0, self._tet_corners[:, k]) << k for k in range(4))
        count = self._triangle_count.gather(1, code.long())  # [6, cubes]
        faces = []
        for k in range(2):
            tet, column = (count > k).nonzero(as_tuple=True)
            entry = tet * 16 + code[tet, column]
            edges = self._triangle_edges[k].index_select(0, entry)
            faces.append(edges + cube.index_select(0, column)[:, None])
        return torch.cat(faces)

    def _mixed_cubes(self, inside: Tensor) -> Tensor:
        """First points of the cubes whose corners differ in sign."""
        side = self.resolution + 1
        some = all_ = inside.view(side, side, side)
        for axis in range(3):
            first, second = (
                (slice(None),) * axis + (slice(-1),),
                (slice(None),) * axis + (slice(1, None),),
            )
            some, all_ = some[first] | some[second], all_[first] & all_[second]
        x, y, z = (some & ~all_).nonzero(as_tuple=True)
        return x * self._strides[0] + y * self._strides[1] + z

"""Fewer triangles, with materials and texture coordinates carried over.

Positions are welded and decimated (``scenes/objects/decimate.py``), which knows nothing of
materials or textures. Each new triangle then asks the surface it came from: the nearest old face
gives its material, and texture coordinates are read a little inside each corner and continued
outwards. Corners whose nearest face belongs to another piece of the texture follow the piece at
the triangle's centre, so that no triangle is smeared across a seam.

    light = simplified(source, faces=4000)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from scenes.objects.decimate import decimated, weld
from scenes.objects.foliage import split_foliage
from scenes.objects.obj_reader import SourceMesh

__all__ = ["compacted", "simplified", "thinned", "welded"]

WELD = 2e-6
"""Positions closer than this share of the object's diagonal are one."""
INSET = 0.85
"""Where texture coordinates are read, from the centre (0) to the corner (1) of a triangle."""
CANDIDATES = 8
SAMPLES = 40_000
NORMAL_WEIGHT = 0.3
"""A face that looks the other way counts as this share of the mean candidate radius farther."""


def welded(mesh: SourceMesh) -> SourceMesh:
    """Merge equal positions, and drop faces without area and second faces on the same corners."""
    diagonal = max(float(np.linalg.norm(mesh.v_pos.max(0) - mesh.v_pos.min(0))), 1e-12)
    v_pos, tri, kept = weld(mesh.v_pos, mesh.t_pos_idx, cell=WELD * diagonal)
    a, b, c = (v_pos[tri[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    merged = replace(
        mesh,
        v_pos=v_pos,
        t_pos_idx=tri,
        t_tex_idx=mesh.t_tex_idx[kept],
        face_material=mesh.face_material[kept],
    )
    return compacted(merged, np.nonzero(area > (WELD * diagonal) ** 2)[0])


def compacted(mesh: SourceMesh, faces: np.ndarray) -> SourceMesh:
    """The mesh with only these faces, without what they do not use."""
    tri, tex = mesh.t_pos_idx[faces], mesh.t_tex_idx[faces]
    used, tri = np.unique(tri, return_inverse=True)
    used_tex, new_tex = np.unique(tex, return_inverse=True)
    new_tex = new_tex.reshape(-1, 3)
    if len(used_tex) and used_tex[0] < 0:
        used_tex, new_tex = used_tex[1:], new_tex - 1
    material, face_material = np.unique(mesh.face_material[faces], return_inverse=True)
    return SourceMesh(
        v_pos=mesh.v_pos[used],
        v_tex=mesh.v_tex[used_tex],
        t_pos_idx=tri.reshape(-1, 3),
        t_tex_idx=new_tex,
        face_material=face_material.reshape(-1),
        materials=tuple(mesh.materials[k] for k in material),
    )


def simplified(mesh: SourceMesh, *, faces: int) -> SourceMesh:
    """A welded mesh with about ``faces`` triangles or fewer; a light one comes back welded only."""
    mesh = welded(mesh)
    return mesh if len(mesh.t_pos_idx) <= faces else _decimated(mesh, faces)


def thinned(mesh: SourceMesh, *, faces: int) -> SourceMesh:
    """The same for plants: what is too much for decimation loses leaves (``split_foliage``)."""
    mesh = welded(mesh)
    bodies, leaves = split_foliage(mesh, faces=faces)
    if len(leaves.t_pos_idx) == 0:
        return simplified(mesh, faces=faces)
    leaves = compacted(leaves, np.arange(len(leaves.t_pos_idx)))
    if len(bodies) == 0:
        return leaves
    budget = faces - len(leaves.t_pos_idx)
    return _joined(simplified(compacted(mesh, bodies), faces=budget), leaves)


def _joined(one: SourceMesh, other: SourceMesh) -> SourceMesh:
    has = other.t_tex_idx >= 0
    both = SourceMesh(
        v_pos=np.concatenate([one.v_pos, other.v_pos]),
        v_tex=np.concatenate([one.v_tex, other.v_tex]),
        t_pos_idx=np.concatenate([one.t_pos_idx, other.t_pos_idx + len(one.v_pos)]),
        t_tex_idx=np.concatenate([one.t_tex_idx, other.t_tex_idx + len(one.v_tex) * has]),
        face_material=np.concatenate([one.face_material, other.face_material + len(one.materials)]),
        materials=one.materials + other.materials,
    )
    return compacted(both, np.arange(len(both.t_pos_idx)))


def _decimated(mesh: SourceMesh, faces: int) -> SourceMesh:
    v_pos, tri = decimated(mesh.v_pos, mesh.t_pos_idx, faces=faces)
    surface = _Surface(mesh)
    centre = v_pos[tri].mean(1)
    normal = _face_normals(v_pos, tri)
    owner, where = surface.nearest(centre, normal)
    light = SourceMesh(
        v_pos=v_pos,
        v_tex=np.zeros((0, 2)),
        t_pos_idx=tri,
        t_tex_idx=np.full_like(tri, -1),
        face_material=mesh.face_material[owner],
        materials=mesh.materials,
    )
    textured = np.array([m.texture is not None for m in mesh.materials])
    has_uv = textured[light.face_material] & (mesh.t_tex_idx[owner] >= 0).all(1)
    rows = np.nonzero(has_uv)[0]
    if len(rows):
        uv = _carried_uv(surface, v_pos[tri[rows]], normal[rows], owner[rows], where[rows])
        light = _with_uv(light, rows, uv)
    return welded(light)


@dataclass(frozen=True)
class _Nearest:
    """Candidates of the last query, for another choice among them."""

    face: np.ndarray
    cost: np.ndarray
    weights: np.ndarray


class _Surface:
    """The old faces, with points on them to find the nearest."""

    def __init__(self, mesh: SourceMesh) -> None:
        self.mesh = mesh
        self.corners = mesh.v_pos[mesh.t_pos_idx]
        self.normal = _face_normals(mesh.v_pos, mesh.t_pos_idx)
        self.chart = _charts(mesh)
        a, b, c = self.corners.transpose(1, 0, 2)
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        rng = np.random.default_rng(0)
        drawn = rng.choice(len(area), SAMPLES, p=area / area.sum())
        weights = rng.dirichlet((1.0, 1.0, 1.0), SAMPLES)
        points = np.einsum("nk,nkc->nc", weights, self.corners[drawn])
        self._face = np.concatenate([np.arange(len(area)), drawn])
        self._tree = cKDTree(np.concatenate([self.corners.mean(1), points]))

    def candidates(self, points: np.ndarray, normal: np.ndarray) -> _Nearest:
        """The faces around each point ``[n, k]``, their cost, and the nearest point on each."""
        radius, sample = self._tree.query(points, k=CANDIDATES)
        face = self._face[sample]
        weights, distance = _closest(points[:, None], self.corners[face])
        agree = np.abs((self.normal[face] * normal[:, None]).sum(-1))
        cost = distance + NORMAL_WEIGHT * radius.mean(1, keepdims=True) * (1.0 - agree)
        return _Nearest(face, cost, weights)

    def nearest(self, points: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nearest face ``[n]`` and the weights of its corners ``[n, 3]`` at the point."""
        found = self.candidates(points, normal)
        best = found.cost.argmin(1)
        rows = np.arange(len(points))
        return found.face[rows, best], found.weights[rows, best]

    def uv(self, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Texture coordinates at points of faces."""
        return np.einsum("nk,nkc->nc", weights, self.mesh.v_tex[self.mesh.t_tex_idx[face]])


def _carried_uv(
    surface: _Surface, corners: np.ndarray, normal: np.ndarray, owner: np.ndarray, where: np.ndarray
) -> np.ndarray:
    """Texture coordinates ``[n, 3, 2]`` of new triangles ``[n, 3, 3]`` on known old faces."""
    centre = corners.mean(1)
    uv_centre = surface.uv(owner, where)
    uv = np.empty((len(corners), 3, 2))
    rows = np.arange(len(corners))
    for k in range(3):
        inside = centre + INSET * (corners[:, k] - centre)
        found = surface.candidates(inside, normal)
        same = surface.chart[found.face] == surface.chart[owner][:, None]
        best = np.where(same, found.cost, np.inf).argmin(1)
        read = surface.uv(found.face[rows, best], found.weights[rows, best])
        uv[:, k] = uv_centre + (read - uv_centre) / INSET
        lost = np.nonzero(~same.any(1))[0]
        plane = _plane_weights(corners[lost, k], surface.corners[owner[lost]])
        uv[lost, k] = surface.uv(owner[lost], plane)
    return uv


def _with_uv(mesh: SourceMesh, rows: np.ndarray, uv: np.ndarray) -> SourceMesh:
    """The mesh with texture coordinates on some faces; equal ones at a vertex are shared."""
    vertex = mesh.t_pos_idx[rows].reshape(-1)
    keys = np.concatenate([vertex[:, None], np.round(uv.reshape(-1, 2) * 1024)], 1)
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    t_tex_idx = mesh.t_tex_idx.copy()
    t_tex_idx[rows] = inverse.reshape(-1, 3)
    return replace(mesh, v_tex=uv.reshape(-1, 2)[first], t_tex_idx=t_tex_idx)


def _face_normals(v_pos: np.ndarray, tri: np.ndarray) -> np.ndarray:
    a, b, c = (v_pos[tri[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-20)


def _charts(mesh: SourceMesh) -> np.ndarray:
    """Piece of the texture of each face: faces that share corners in space and in the texture."""
    uv = np.zeros((*mesh.t_tex_idx.shape, 2))
    has = mesh.t_tex_idx >= 0
    uv[has] = mesh.v_tex[mesh.t_tex_idx[has]]
    keys = np.concatenate(
        [mesh.t_pos_idx[..., None], np.round(uv * 4096), mesh.face_material[:, None, None]
         + np.zeros((1, 3, 1))], -1
    )  # fmt: skip
    _, wedge = np.unique(keys.reshape(-1, 4), axis=0, return_inverse=True)
    wedge = wedge.reshape(-1, 3)
    size = int(wedge.max()) + 1
    one, other = wedge[:, :2].reshape(-1), wedge[:, 1:].reshape(-1)
    graph = coo_matrix((np.ones(len(one), np.int8), (one, other)), shape=(size, size))
    return connected_components(graph, directed=False)[1][wedge[:, 0]]


def _plane_weights(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Weights of the corners ``[..., 3, 3]`` at points projected onto their plane."""
    a, ab, ac = corners[..., 0, :], corners[..., 1, :], corners[..., 2, :]
    ab, ac = ab - a, ac - a
    ap = points - a
    d00, d01, d11 = (ab * ab).sum(-1), (ab * ac).sum(-1), (ac * ac).sum(-1)
    d20, d21 = (ap * ab).sum(-1), (ap * ac).sum(-1)
    area = np.maximum(d00 * d11 - d01 * d01, 1e-30)
    v, w = (d11 * d20 - d01 * d21) / area, (d00 * d21 - d01 * d20) / area
    return np.stack([1.0 - v - w, v, w], -1)


def _closest(points: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights and distance of the nearest point of triangles ``[..., 3, 3]``."""
    best = _plane_weights(points, corners)
    outside = (best < 0).any(-1)
    distance = np.linalg.norm(np.einsum("...k,...kc->...c", best, corners) - points, axis=-1)
    distance = np.where(outside, np.inf, distance)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        start, along = corners[..., i, :], corners[..., j, :] - corners[..., i, :]
        length = np.maximum((along * along).sum(-1), 1e-30)
        t = np.clip(((points - start) * along).sum(-1) / length, 0.0, 1.0)
        to_edge = np.linalg.norm(start + t[..., None] * along - points, axis=-1)
        closer = to_edge < distance
        edge = np.zeros_like(best)
        edge[..., i], edge[..., j] = 1.0 - t, t
        best = np.where(closer[..., None], edge, best)
        distance = np.where(closer, to_edge, distance)
    return best, distance

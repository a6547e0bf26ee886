"""Other triangles for the same surface, by packages that are installed only on request.

``isotropic``: even, nearly equilateral triangles and closed openings, for sculpting, simulation and
subdivision. Botsch and Kobbelt, "A Remeshing Approach to Multiresolution Modeling" (SGP 2004), by
pymeshlab, which is GPL-3.
``poisson``: one closed and smoother surface, whatever holes and crossings the input has. Kazhdan
and Hoppe, "Screened Poisson Surface Reconstruction" (TOG 2013), by open3d.

Both come with the extra ``geometry`` and are never imported otherwise.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from studio.errors import EmptyGeometry, require
from studio.export.triangles import Triangles

__all__ = ["check_remesh", "isotropic", "poisson", "remesh"]

ITERATIONS = 8
"""Rounds of split, collapse, flip and smooth."""
FEATURE_DEG = 35.0
"""Edges sharper than this stay where they are."""
POINTS_PER_FACE, MIN_POINTS, MAX_POINTS = 4, 20_000, 400_000
"""Samples of the surface for Poisson."""
MIN_DEPTH, MAX_DEPTH = 5, 9
ROOM = 1.5
"""The solver's box over the object's: where a large hole bulges out of the box, it stays open."""
PACKAGES = {"isotropic": "pymeshlab", "poisson": "open3d"}


def check_remesh(kind: str) -> None:
    """Refuse, before any work, a kind whose package is missing.

    Raises:
        BackendMissing: naming the package and how to install it.
    """
    if kind in PACKAGES:
        require(PACKAGES[kind], extra="geometry", why=f"export.remesh={kind}")


def remesh(mesh: Triangles, kind: str, *, max_faces: int) -> Triangles:
    """The surface of ``mesh`` in about ``max_faces`` other triangles; ``none`` leaves it as it is.

    Raises:
        BackendMissing: the package is not installed.
        EmptyGeometry: nothing came of it.
    """
    if kind == "none" or not len(mesh.t_pos_idx):
        return mesh
    check_remesh(kind)
    made = isotropic(mesh, max_faces) if kind == "isotropic" else poisson(mesh, max_faces)
    if not len(made.t_pos_idx):
        raise EmptyGeometry(
            f"Remeshing ({kind}) left nothing of {len(mesh.t_pos_idx)} triangles - expected a "
            "surface. Try export.remesh=none."
        )
    return made


def isotropic(mesh: Triangles, max_faces: int) -> Triangles:
    """Triangles of about one size and shape; openings are closed first."""
    import pymeshlab

    meshes = pymeshlab.MeshSet(verbose=False)
    meshes.add_mesh(pymeshlab.Mesh(mesh.v_pos, mesh.t_pos_idx.astype(np.int32)))
    meshes.meshing_repair_non_manifold_edges()
    meshes.meshing_close_holes(maxholesize=len(mesh.t_pos_idx))
    # n equilateral triangles of side a have the area n a^2 sqrt(3) / 4.
    side = float(np.sqrt(4.0 * mesh.areas().sum() / (np.sqrt(3.0) * max_faces)))
    meshes.meshing_isotropic_explicit_remeshing(
        iterations=ITERATIONS, targetlen=pymeshlab.PureValue(side), featuredeg=FEATURE_DEG
    )
    made = meshes.current_mesh()
    return Triangles.of(made.vertex_matrix(), made.face_matrix())


def poisson(mesh: Triangles, max_faces: int) -> Triangles:
    """A closed surface through points of ``mesh``, as fine as ``max_faces`` triangles need."""
    import open3d

    count = int(np.clip(POINTS_PER_FACE * max_faces, MIN_POINTS, MAX_POINTS))
    points, normals = _sample(mesh, count)
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points))
    cloud.normals = open3d.utility.Vector3dVector(normals)
    # A ball of that many cells across makes about 4^(depth + 1) triangles; most objects make fewer.
    depth = int(np.clip(np.ceil(np.log2(max(max_faces, 1) / 2.0) / 2.0), MIN_DEPTH, MAX_DEPTH))
    # One thread: the sums of several depend on who comes first.
    made, _ = open3d.geometry.TriangleMesh.create_from_point_cloud_poisson(
        cloud, depth=depth, scale=ROOM, n_threads=1
    )
    return Triangles.of(np.asarray(made.vertices), np.asarray(made.triangles))


def _sample(
    mesh: Triangles, count: int
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
    """Points spread evenly over the surface, with the outward normals of their faces."""
    rng = np.random.default_rng(0)
    vectors = mesh.area_vectors()
    area = np.linalg.norm(vectors, axis=1)
    face = rng.choice(len(area), size=count, p=area / area.sum())
    u, v = rng.random((2, count, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    a, b, c = mesh.corners()[face].transpose(1, 0, 2)
    return a + u * (b - a) + v * (c - a), vectors[face] / area[face][:, None]

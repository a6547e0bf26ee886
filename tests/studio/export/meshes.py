"""Small meshes whose parts are known, for the export tests."""

from __future__ import annotations

import numpy as np
import trimesh

from studio.export.triangles import Triangles


def ball(radius: float = 1.0, centre=(0.0, 0.0, 0.0), subdivisions: int = 3) -> Triangles:
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return Triangles.of(mesh.vertices + np.array(centre), mesh.faces)


def box(size: tuple[float, float, float], centre=(0.0, 0.0, 0.0)) -> Triangles:
    mesh = trimesh.creation.box(size)
    return Triangles.of(mesh.vertices + np.array(centre), mesh.faces)


def flipped(mesh: Triangles) -> Triangles:
    return Triangles(mesh.v_pos, mesh.t_pos_idx[:, ::-1].copy())


def together(*meshes: Triangles) -> Triangles:
    offsets = np.cumsum([0] + [len(mesh.v_pos) for mesh in meshes])
    faces = [mesh.t_pos_idx + offset for mesh, offset in zip(meshes, offsets, strict=False)]
    return Triangles(np.concatenate([mesh.v_pos for mesh in meshes]), np.concatenate(faces))

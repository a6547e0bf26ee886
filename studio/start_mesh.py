"""A mesh from a file as what a stage paints: reading it, refusing what cannot be painted.

A GLB of this program is read back into its own scene's axes; other files by trimesh, all parts as
one mesh, with +y or +z up. Faces without area are left out, which no picture shows; a closed
surface that is inside out is turned. Surfaces that are not closed are painted as well, and said so:
which side of them is outside cannot be told, and their back shows through the opening.

    mesh = read_mesh(MeshFileConfig(path="teapot.glb"))
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch

from renderers.fields.painted_mesh import PaintedMeshField
from renderers.mesh import Mesh, face_normals
from renderers.mesh_configs import MeshFileConfig
from studio.errors import ConfigError, EmptyGeometry
from studio.evaluation.views import normalized
from studio.export.glb_check import read_glb
from studio.export.placement import WORLD_TO_GLTF
from studio.export.read import load_asset
from studio.export.triangles import Triangles, boundary_edges
from studio.progress import say
from studio.stages import Stage

__all__ = ["check_mesh_file", "read_mesh", "take_mesh_file"]

Z_UP = (".ply", ".stl")
SUFFIXES = (".glb", ".gltf", ".obj", *Z_UP)


def take_mesh_file(stage: Stage) -> None:
    """Give a stage that paints a mesh its mesh; other stages stay as they are.

    Raises:
        ConfigError: there is no such file, or it cannot be read.
        EmptyGeometry: it has no faces.
    """
    if not isinstance(stage.config.field, MeshFileConfig):
        return
    mesh = read_mesh(stage.config.field)
    for particle in stage.particles:
        if isinstance(particle.field, PaintedMeshField):
            particle.field.set_mesh(mesh)


def check_mesh_file(config: MeshFileConfig) -> Path:
    """Refuse a form to fill in, as it stands in presets, and a file that is not there.

    Raises:
        ConfigError: no file is named, it does not exist, or is of no known kind.
    """
    if not config.path.strip():
        raise ConfigError(
            "field.path: is empty - expected the mesh to paint, such as teapot.glb. "
            "Add: stages.0.field.path=teapot.glb"
        )
    path = Path(config.path).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"field.path: there is no file {path} - expected a mesh ({', '.join(SUFFIXES)})."
        )
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"field.path: {path.name} is of no known kind - expected {', '.join(SUFFIXES)}."
        )
    return path


def read_mesh(config: MeshFileConfig) -> Mesh:
    """The mesh of a file where the scene wants it, without its colours.

    Raises:
        ConfigError: there is no such file, or it cannot be read.
        EmptyGeometry: it has no faces.
    """
    path = check_mesh_file(config)
    mesh = load_asset(path) if _is_own(path) else _read_any(path, config)
    mesh = _without_slivers(Mesh(mesh.v_pos, mesh.t_pos_idx))
    if not mesh.n_faces:
        raise EmptyGeometry(
            f"field.path: {path} has no faces with an area - expected a surface to paint. Export "
            "triangles, not points or lines."
        )
    open_edges = len(boundary_edges(Triangles.of(mesh.v_pos.numpy(), mesh.t_pos_idx.numpy())))
    if open_edges:
        say(
            f"warning: {path.name} is not closed ({open_edges} open edges). It is painted as it "
            "is; where you see into it, its faces show their colour from behind."
        )
    elif float(mesh.signed_volume()) < 0.0:
        mesh = Mesh(mesh.v_pos, mesh.t_pos_idx.flip(1))
    if config.sphere_radius is None:
        return mesh
    return normalized(mesh, radius=config.sphere_radius)


def _is_own(path: Path) -> bool:
    """Whether a file is a GLB that this program wrote, whose scene's axes are known."""
    if path.suffix.lower() != ".glb":
        return False
    try:
        document, _ = read_glb(path.read_bytes())
        return "scene_frame" in document["asset"]["extras"]
    except (ValueError, KeyError, TypeError, struct.error):  # bad JSON is a ValueError
        return False


def _read_any(path: Path, config: MeshFileConfig) -> Mesh:
    """All triangles of a file, +z up, vertices at one place made one."""
    import trimesh

    try:
        loaded = trimesh.load(path, force="mesh", process=False, skip_materials=True)
        v_pos = np.asarray(loaded.vertices, dtype=np.float64).reshape(-1, 3)
        faces = np.asarray(loaded.faces, dtype=np.int64).reshape(-1, 3)
    # Parsers of damaged files raise whatever they met.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"field.path: {path} cannot be read ({reason}) - expected an undamaged mesh."
        ) from error
    if not np.isfinite(v_pos).all():
        raise ConfigError(f"field.path: {path} has coordinates that are no numbers. Repair it.")
    is_z_up = path.suffix.lower() in Z_UP if config.up == "auto" else config.up == "z"
    unique, inverse = np.unique(v_pos, axis=0, return_inverse=True)
    world = unique if is_z_up else unique @ WORLD_TO_GLTF
    index = inverse.reshape(-1)[faces]
    return Mesh(torch.from_numpy(world).float(), torch.from_numpy(index.reshape(-1, 3)))


def _without_slivers(mesh: Mesh) -> Mesh:
    """The mesh without faces that have no area."""
    areas = face_normals(mesh.v_pos.double(), mesh.t_pos_idx).norm(dim=1)
    return Mesh(mesh.v_pos, mesh.t_pos_idx[areas > 0.0])

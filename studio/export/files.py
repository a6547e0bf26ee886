"""Write a finished asset in the formats asked for, each file whole or not at all.

``validation.json`` keeps what the structural check of the GLB found. OBJ and PLY carry
display-referred colours; PLY has no textures, so it always gets vertex colours. Files that an
earlier export left, in formats not asked for now, are deleted: they show another surface.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from studio.export.glb_check import check_glb
from studio.export.gltf import glb_bytes
from studio.export.obj import mtl_text, obj_text
from studio.export.placement import standing_up
from studio.export.ply import ply_bytes
from studio.export.shading import FlatMesh
from studio.run_folder import storage_errors, write_atomic

__all__ = ["Asset", "prepare_folder", "write_asset"]

STEM = "asset"
VALIDATION = "validation.json"
OWN_NAMES = (*(f"{STEM}.{suffix}" for suffix in ("glb", "obj", "mtl", "png", "ply")), VALIDATION)
"""All that this module ever writes. Other files in the folder are not ours to delete."""


@dataclass(frozen=True)
class Asset:
    """A finished asset in glTF axes."""

    name: str
    """Object name inside the files."""
    mesh: FlatMesh
    """With texture coordinates if there is a texture, else with vertex colours."""
    painted: FlatMesh
    """The same surface with vertex colours."""
    texture_png: bytes | None
    """The base colour image."""
    extras: dict[str, Any]
    """JSON values for ``asset.extras`` of the GLB."""


def prepare_folder(out_dir: Path) -> None:
    """Make the folder and see that it can be written, before minutes go into the asset.

    Raises:
        StorageError: it cannot.
    """
    with storage_errors(out_dir, "write the asset to"):
        out_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(out_dir, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def write_asset(
    asset: Asset, out_dir: Path, *, formats: tuple[str, ...], up: Literal["y", "z"]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Write the files into an existing folder, in place of those of the export before.

    Returns:
        File names by format, and the problems found in the GLB (none, normally).

    Raises:
        StorageError: ``out_dir`` cannot be written.
    """
    contents: dict[str, tuple[str, bytes | str]] = {}
    problems: list[str] = []
    if "glb" in formats:
        glb = glb_bytes(
            asset.mesh, texture_png=asset.texture_png, name=asset.name, extras=asset.extras
        )
        problems = check_glb(glb)
        contents["glb"] = (f"{STEM}.glb", glb)
        report = {"file": f"{STEM}.glb", "bytes": len(glb), "problems": problems}
        contents["validation"] = (VALIDATION, json.dumps(report, indent=2) + "\n")
    if "obj" in formats:
        contents |= _obj_files(asset, up)
    if "ply" in formats:
        contents["ply"] = (f"{STEM}.ply", ply_bytes(_turned(asset.painted, up)))
    with storage_errors(out_dir, "write the asset to"):
        for filename, content in contents.values():
            write_atomic(out_dir / filename, content)
        files = {kind: filename for kind, (filename, _) in contents.items()}
        for outdated in set(OWN_NAMES) - set(files.values()):
            (out_dir / outdated).unlink(missing_ok=True)
    return files, tuple(problems)


def _obj_files(asset: Asset, up: Literal["y", "z"]) -> dict[str, tuple[str, bytes | str]]:
    """OBJ alone for vertex colours, with material library and image for a texture."""
    mesh = _turned(asset.mesh, up)
    if asset.texture_png is None:
        return {"obj": (f"{STEM}.obj", obj_text(mesh, name=asset.name, mtl_name=None))}
    return {
        "obj": (f"{STEM}.obj", obj_text(mesh, name=asset.name, mtl_name=f"{STEM}.mtl")),
        "mtl": (f"{STEM}.mtl", mtl_text(f"{STEM}.png")),
        "texture": (f"{STEM}.png", asset.texture_png),
    }


def _turned(mesh: FlatMesh, up: Literal["y", "z"]) -> FlatMesh:
    """The mesh with its up axis where the file wants it."""
    return replace(
        mesh,
        position=standing_up(mesh.position, up).astype("f4"),
        normal=standing_up(mesh.normal, up).astype("f4"),
    )

"""Toybox objects in other forms: meshes with known colours, files of their own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from renderers.mesh import Mesh
from scenes.toybox.objects import ToyObject
from studio.export.files import Asset, write_asset
from studio.export.placement import place
from studio.export.shading import flatten
from studio.export.triangles import Triangles

__all__ = ["colored_mesh", "write_glb"]


def colored_mesh(toy: ToyObject) -> Mesh:
    """The object as a mesh of flat vertex colours, without light and pattern."""
    corners = toy.faces.reshape(-1)
    return Mesh(
        torch.from_numpy(toy.vertices[corners]).float(),
        torch.arange(len(corners)).reshape(-1, 3),
        v_rgb=torch.from_numpy(np.repeat(toy.face_color, 3, axis=0)).float(),
    )


def write_glb(toy: ToyObject, folder: Path) -> None:
    """The same as a file of the exporter, without its clean-up: every part stays."""
    mesh = colored_mesh(toy)
    triangles = Triangles(mesh.v_pos.double().numpy(), mesh.t_pos_idx.numpy())
    placed, frame = place(triangles, height_m=1.0)
    flat = flatten(placed, crease_deg=40.0, v_rgb=mesh.v_rgb.numpy())
    asset = Asset("toy", flat, flat, None, {"scene_frame": asdict(frame)})
    write_asset(asset, folder, formats=("glb",), up="y")

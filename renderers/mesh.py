"""Triangle meshes: one dataclass, and the geometry that follows from positions and faces alone.

Faces are counter-clockwise seen from outside, so normals point outwards and the signed volume of
a closed mesh is positive.

    mesh = Mesh(v_pos, t_pos_idx)
    mesh.vertex_normals()  # [V, 3], differentiable
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from renderers.errors import ShapeError, check_shape

__all__ = ["Mesh", "face_normals", "signed_volume", "vertex_normals"]

MIN_NORMAL_LENGTH = 1e-20
"""Below this a normal has no direction; +z stands in, so that every normal has unit length."""


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh with optional texture coordinates, vertex colours and a texture image.

    Raises:
        ShapeError: if an array has the wrong shape, or texture coordinates come without faces.
    """

    v_pos: Float[Tensor, "V 3"]
    """Vertex positions, world units."""
    t_pos_idx: Int[Tensor, "F 3"]
    """Vertex indices of each face, int64, counter-clockwise seen from outside."""
    v_tex: Float[Tensor, "T 2"] | None = None
    """Texture coordinates; (0, 0) is the top left corner of the texture's first row."""
    t_tex_idx: Int[Tensor, "F 3"] | None = None
    """Indices into ``v_tex`` of each face."""
    v_rgb: Float[Tensor, "V 3"] | None = None
    """Vertex colours in 0..1, display-referred."""
    texture: Float[Tensor, "H W 3"] | None = None
    """Texture image in 0..1, display-referred, row 0 at v = 0."""

    def __post_init__(self) -> None:
        check_shape("v_pos", self.v_pos, "V 3")
        check_shape("t_pos_idx", self.t_pos_idx, "F 3")
        if (self.v_tex is None) != (self.t_tex_idx is None):
            raise ShapeError(
                "v_tex and t_tex_idx must be given together, but only one of them is. "
                "Pass both, or neither."
            )
        if self.v_tex is not None:
            check_shape("v_tex", self.v_tex, "T 2")
            check_shape("t_tex_idx", self.t_tex_idx, f"{self.n_faces} 3")
        if self.v_rgb is not None:
            check_shape("v_rgb", self.v_rgb, f"{self.n_vertices} 3")
        if self.texture is not None:
            check_shape("texture", self.texture, "H W 3")

    @property
    def n_vertices(self) -> int:
        """Number of vertices V."""
        return self.v_pos.shape[0]

    @property
    def n_faces(self) -> int:
        """Number of faces F."""
        return self.t_pos_idx.shape[0]

    def to(self, device: torch.device | str) -> Mesh:
        """Return the mesh with every array on ``device``."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in arrays.items() if v is not None})

    def detach(self) -> Mesh:
        """Return the mesh cut from the autograd graph."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.detach() for k, v in arrays.items() if v is not None})

    def face_normals(self) -> Float[Tensor, "F 3"]:
        """Unit normals of the faces; +z for a face without area."""
        return _unit(face_normals(self.v_pos, self.t_pos_idx))

    def vertex_normals(self) -> Float[Tensor, "V 3"]:
        """Unit normals of the vertices, face normals weighted by area; +z where undefined."""
        return vertex_normals(self.v_pos, self.t_pos_idx)

    def signed_volume(self) -> Float[Tensor, ""]:
        """Enclosed volume; positive for a closed mesh with outward faces."""
        return signed_volume(self.v_pos, self.t_pos_idx)


def _corners(v_pos: Tensor, tri: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # index_select, not fancy indexing: its backward sums in a fixed order on every thread count.
    a, b, c = tri.unbind(1)
    return v_pos.index_select(0, a), v_pos.index_select(0, b), v_pos.index_select(0, c)


def _unit(normal: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(normal.detach(), dim=-1, keepdim=True)
    defined = length > MIN_NORMAL_LENGTH
    fallback = torch.zeros_like(normal)
    fallback[..., 2] = 1.0
    normal = torch.where(defined, normal, fallback)
    return normal / torch.linalg.vector_norm(normal, dim=-1, keepdim=True)


def face_normals(v_pos: Float[Tensor, "V 3"], tri: Int[Tensor, "F 3"]) -> Float[Tensor, "F 3"]:
    """Normals of the faces, twice the face's area long (not normalised)."""
    a, b, c = _corners(v_pos, tri)
    return torch.linalg.cross(b - a, c - a)


def vertex_normals(v_pos: Float[Tensor, "V 3"], tri: Int[Tensor, "F 3"]) -> Float[Tensor, "V 3"]:
    """Unit vertex normals: face normals summed with their areas as weights; +z where undefined."""
    normals = face_normals(v_pos, tri)
    total = torch.zeros_like(v_pos)
    for corner in tri.unbind(1):
        total = total.index_add(0, corner, normals)
    return _unit(total)


def signed_volume(v_pos: Float[Tensor, "V 3"], tri: Int[Tensor, "F 3"]) -> Float[Tensor, ""]:
    """Sum of the signed tetrahedra between the origin and the faces (the divergence theorem)."""
    a, b, c = _corners(v_pos, tri)
    return (a * torch.linalg.cross(b, c)).sum() / 6

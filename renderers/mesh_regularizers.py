"""Penalties that keep an optimised mesh smooth.

Normal consistency compares the normals at both ends of every edge; the uniform Laplacian (Nealen
et al., "Laplacian Mesh Optimization", 2006) pulls every vertex towards the mean of its neighbours.

Both are means, over edges and over vertices, so a weight means the same at any resolution. The
published weight of normal consistency, 1e4 (threestudio's Magic3D and ProlificDreamer), is for this
mean. Its Laplacian, 1e4 of ProlificDreamer's geometry, sums over the neighbours where ours is their
mean, of which a closed mesh of triangles has six, so that 6e4 here is as much. Both stand beside a
guidance loss of half the squared latent gradient *summed* over 64 x 64 x 4 latents. On a sphere of
radius R with edges of mean square h^2 and even triangles they are h^2 / (2 R^2) and h^2 / (2 R):
finer meshes pay less.

    loss = 1e4 * normal_consistency_loss(mesh.vertex_normals(), topology)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from renderers.antialias import Topology

__all__ = ["laplacian_loss", "normal_consistency_loss"]


def normal_consistency_loss(normals: Float[Tensor, "V 3"], topology: Topology) -> Float[Tensor, ""]:
    """Mean over edges of ``1 - cos`` between the unit vertex normals at both ends; 0 when flat."""
    a, b = _ends(normals, topology)
    return 1 - (a * b).sum(1).mean() if topology.n_edges else normals.sum() * 0


def laplacian_loss(v_pos: Float[Tensor, "V 3"], topology: Topology) -> Float[Tensor, ""]:
    """Mean over vertices of the distance to the mean of their neighbours, world units.

    Vertices without an edge count as zero. The gradient is zero where the distance is.
    """
    first, second = topology.vertices.unbind(1)
    here, there = torch.cat([first, second]), torch.cat([second, first])
    count = torch.bincount(here, minlength=len(v_pos)).to(v_pos.dtype)[:, None]
    total = torch.zeros_like(v_pos).index_add(0, here, v_pos.index_select(0, there))
    offset = torch.where(count > 0, total / count.clamp(min=1) - v_pos, 0.0)
    return torch.linalg.vector_norm(offset, dim=1).mean()


def _ends(values: Tensor, topology: Topology) -> tuple[Tensor, Tensor]:
    first, second = topology.vertices.unbind(1)
    return values.index_select(0, first), values.index_select(0, second)

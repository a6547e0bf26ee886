"""What a condition image needs of a render beyond depth and normals: which region a pixel sees.

Regions of a mesh are its parts, the pieces that hang together by shared vertices; a volume is one
region. A texture that is being painted has no say in them, so it does not become its own condition.

    ids = part_ids(output, cameras)  # 0 is the background
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from renderers.cameras import Cameras
from renderers.errors import StudioError
from renderers.mesh import Mesh
from renderers.outputs import RenderOutput
from renderers.raster import rasterize, to_clip

__all__ = ["mesh_parts", "part_ids"]

# A pixel that is covered by less belongs to the background.
MIN_OPACITY = 0.5


def mesh_parts(mesh: Mesh) -> Int[Tensor, " F"]:
    """The part of each face, from 0; faces that share a vertex are of one part.

    Parts are numbered by their first face.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    tri = mesh.t_pos_idx.cpu().numpy()
    rows, columns = tri[:, [0, 1]].reshape(-1), tri[:, [1, 2]].reshape(-1)
    links = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(mesh.n_vertices,) * 2)
    of_vertex = connected_components(links, directed=False)[1]
    of_face = of_vertex[tri[:, 0]]
    _, first, inverse = np.unique(of_face, return_index=True, return_inverse=True)
    number = np.argsort(np.argsort(first))
    return torch.from_numpy(number[inverse]).to(mesh.t_pos_idx.device)


@torch.no_grad()
def part_ids(output: RenderOutput, cameras: Cameras) -> Int[Tensor, "b h w"]:
    """The region that each pixel of a render sees: 0 the background, then parts from 1.

    Args:
        output: the render; its mesh is looked at again at the size of ``cameras``.
        cameras: from where.

    Raises:
        StudioError: there is no mesh, and the render has another size than ``cameras``.
    """
    if output.mesh is not None:
        mesh, size = output.mesh, (cameras.height, cameras.width)
        seen = rasterize(to_clip(mesh.v_pos, cameras.mvp()), mesh.t_pos_idx, size).tri_id.long()
        parts = torch.cat([seen.new_zeros(1), mesh_parts(mesh) + 1])
        return parts[seen]
    if output.opacity.shape[1:3] != (cameras.height, cameras.width):
        raise StudioError(
            f"A render of {tuple(output.opacity.shape[1:3])} pixels came with cameras of "
            f"{(cameras.height, cameras.width)} - expected the same size."
        )
    return (output.opacity[..., 0] > MIN_OPACITY).long()

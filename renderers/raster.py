"""Rasterisation of triangle meshes: which face each pixel sees, and attributes at that point.

The interface and the split follow Laine et al., "Modular Primitives for High-Performance
Differentiable Rendering" (arXiv 2011.03277): ``rasterize``, ``interpolate``, then ``texture``
(renderers/texture.py) and ``antialias`` (renderers/antialias.py). No code is taken from there.

What is differentiable:

* ``interpolate``: in the attributes, and in ``raster.bary``.
* ``raster.bary``: in x, y and w of ``pos_clip`` (not in z). The face a pixel sees is held fixed.
* ``raster.tri_id`` and ``raster.zw``: never. Silhouettes and occlusions get their gradients from
  ``antialias`` alone.

Deviations: faces with a corner behind the camera (w <= 1e-6) are dropped whole, there is no near
clipping; both sides of a face are drawn.

    raster = rasterize(cameras.mvp() @ v_homogeneous, tri, (256, 256))
    normal = interpolate(mesh.vertex_normals(), raster, mesh.t_pos_idx)
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from renderers.backends import BackendName, resolve
from renderers.errors import ShapeError, check_shape

__all__ = ["Raster", "RasterBackend", "interpolate", "rasterize", "to_clip"]

RasterBackend = BackendName | Literal["auto", "nvdiffrast"]


@dataclass(frozen=True)
class Raster:
    """What each pixel of each view sees."""

    tri_id: Int[Tensor, "b H W"]
    """Index of the face plus one, int32; 0 is the background."""
    zw: Float[Tensor, "b H W"]
    """Depth z / w in [-1, 1), near to far; 1 on the background. Carries no gradient."""
    bary: Float[Tensor, "b H W 2"]
    """Perspective-correct weights of the face's corners 0 and 1; corner 2 has the rest."""

    @property
    def mask(self) -> Float[Tensor, "b H W 1"]:
        """1 where a face is seen, 0 on the background; no gradient before ``antialias``."""
        return (self.tri_id > 0).to(self.zw.dtype)[..., None]


def to_clip(v_pos: Float[Tensor, "V 3"], mvp: Float[Tensor, "b 4 4"]) -> Float[Tensor, "b V 4"]:
    """Clip-space positions of world positions under ``b`` cameras."""
    homogeneous = torch.cat([v_pos, torch.ones_like(v_pos[:, :1])], 1)
    return homogeneous @ mvp.transpose(1, 2)


def rasterize(
    pos_clip: Float[Tensor, "b V 4"],
    tri: Int[Tensor, "F 3"],
    size: tuple[int, int],
    *,
    backend: RasterBackend | None = None,
) -> Raster:
    """Find the nearest face at every pixel centre.

    Args:
        pos_clip: clip-space positions; ndc y = -1 is the top row.
        tri: vertex indices, the same for all views.
        size: ``(height, width)`` in pixels.
        backend: force an implementation; by default the best one for the device and float type.

    Raises:
        ShapeError: if a tensor has the wrong shape or type, or ``size`` is not positive.
        BackendMissing: if the backend does not run on this device.
    """
    check_shape("pos_clip", pos_clip, "b V 4")
    check_shape("tri", tri, "F 3")
    height, width = size
    if height < 1 or width < 1:
        raise ShapeError(f"size is {size}, expected a height and width of at least 1 pixel.")
    _check_indices("tri", tri, pos_clip.shape[1])
    if backend == "nvdiffrast":
        from renderers.backends import nvdiffrast

        return Raster(*nvdiffrast.rasterize(pos_clip, tri, height, width))
    chosen = resolve(pos_clip.device, dtype=pos_clip.dtype, prefer=backend)
    kernels = _kernels(chosen)
    visibility = kernels.visibility
    if chosen == "triton":
        from renderers.backends.triton_raster import visibility
    with torch.no_grad():
        tri_id, zw = visibility(pos_clip.detach(), tri, height, width)
    return Raster(tri_id, zw, kernels.barycentrics(pos_clip, tri, tri_id))


def _kernels(chosen: BackendName) -> ModuleType:
    """The module with the differentiable steps; on CUDA those are plain PyTorch."""
    if chosen == "numba":
        from renderers.backends import numba_raster

        return numba_raster
    from renderers.backends import torch_raster

    return torch_raster


def interpolate(
    attr: Float[Tensor, "*b V C"],
    raster: Raster,
    tri: Int[Tensor, "F 3"],
    *,
    backend: RasterBackend | None = None,
) -> Float[Tensor, "b H W C"]:
    """Vertex attributes at the point each pixel sees; zero on the background.

    Args:
        attr: ``[V, C]`` shared by all views, or ``[b, V, C]``.
        raster: what the pixels see.
        tri: indices into ``attr``; the faces of ``rasterize``, or another indexing of the same
            faces (such as texture coordinates).
        backend: force an implementation.

    Raises:
        ShapeError: if a tensor has the wrong shape.
    """
    if attr.ndim not in (2, 3):
        raise ShapeError(f"attr has shape {tuple(attr.shape)}, expected [V, C] or [b, V, C].")
    batched = attr if attr.ndim == 3 else attr[None]
    if batched.shape[0] not in (1, raster.tri_id.shape[0]):
        raise ShapeError(
            f"attr has {batched.shape[0]} views, but the raster has {raster.tri_id.shape[0]}. "
            "Pass [V, C] to share attributes between views."
        )
    check_shape("tri", tri, "F 3")
    _check_indices("tri", tri, batched.shape[1])
    if backend == "nvdiffrast":
        from renderers.backends import nvdiffrast

        return nvdiffrast.interpolate(batched, tri, raster.tri_id, raster.zw, raster.bary)
    chosen = resolve(attr.device, dtype=attr.dtype, prefer=backend)
    return _kernels(chosen).interpolate(batched, tri, raster.tri_id, raster.bary)


def _check_indices(name: str, tri: Tensor, n_vertices: int) -> None:
    """Kernels read memory at these indices unchecked, so a bad one must stop here."""
    if tri.dtype != torch.int64:
        raise ShapeError(f"{name} has type {tri.dtype}, expected torch.int64. Call {name}.long().")
    # On a GPU the test would wait for the device on every call; torch indexing traps there.
    if tri.device.type != "cpu" or tri.numel() == 0:
        return
    low, high = (int(value) for value in torch.aminmax(tri))
    if low < 0 or high >= n_vertices:
        raise ShapeError(
            f"{name} holds indices {low}..{high}, expected 0..{n_vertices - 1} "
            f"for {n_vertices} vertices."
        )

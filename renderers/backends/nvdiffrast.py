"""Adapter for nvdiffrast 0.4 (CUDA only, NVIDIA Source Code License: non-commercial use only).

Loaded only when a scene says ``backend: nvdiffrast``. Rows need no flip: nvdiffrast puts ndc
y = -1 in row 0, and so do we, because ``Cameras.mvp`` negates y. What differs and is converted:
indices are int32, the fourth raster channel is the face number plus one as a float, and the
background has depth 0 instead of 1. Silhouettes stay with our own anti-aliasing.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from renderers.backends import require_adapter
from renderers.errors import BackendMissing

__all__ = ["interpolate", "rasterize"]


@cache
def _library() -> ModuleType:
    require_adapter("nvdiffrast", "rasterising meshes")
    import nvdiffrast.torch

    return nvdiffrast.torch


@cache
def _context(device: torch.device) -> object:
    return _library().RasterizeCudaContext(device=device)


def rasterize(
    pos_clip: Tensor, tri: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``(tri_id, zw, bary)`` of float32 CUDA tensors; ``bary`` carries gradients to ``pos_clip``.

    Raises:
        BackendMissing: if nvdiffrast is not installed, or the tensors are not on a CUDA device.
    """
    library = _library()
    if pos_clip.device.type != "cuda":
        raise BackendMissing(
            f"backend: 'nvdiffrast' got tensors on {pos_clip.device}, expected a CUDA device. "
            "Set device: cuda, or remove the backend line."
        )
    if len(tri) == 0:  # which nvdiffrast refuses
        empty = pos_clip.new_zeros(len(pos_clip), height, width, 2, dtype=torch.float32)
        return empty[..., 0].int(), torch.ones_like(empty[..., 0]), empty
    raster, _ = library.rasterize(
        _context(pos_clip.device),
        pos_clip.float().contiguous(),
        tri.int().contiguous(),
        resolution=[height, width],
        grad_db=False,
    )
    tri_id = raster[..., 3].detach().int()
    zw = torch.where(tri_id > 0, raster[..., 2].detach(), 1.0)
    return tri_id, zw, raster[..., :2]


def interpolate(attr: Tensor, tri: Tensor, tri_id: Tensor, zw: Tensor, bary: Tensor) -> Tensor:
    """Attributes ``[1 or b, V, C]`` at every pixel, ``[b, H, W, C]``; zero on the background."""
    if len(tri) == 0:
        return bary.new_zeros(*bary.shape[:3], attr.shape[-1])
    raster = torch.cat([bary, zw[..., None], tri_id.to(bary.dtype)[..., None]], -1)
    value, _ = _library().interpolate(
        attr.float().contiguous(), raster.contiguous(), tri.int().contiguous()
    )
    return value

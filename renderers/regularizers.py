"""Penalties on volume renders that keep a guided field solid, smooth and free of fog.

DreamFusion (arXiv 2209.14988, section 3.1 and appendix A.2): orientation (from Ref-NeRF, arXiv
2112.03907, Eq. 11) and opacity. z-variance is HiFA's (arXiv 2305.18766, section 3.3); the eikonal
term is IGR's (arXiv 2002.10099). Opacity smoothness (total variation) is ours: at a given area it
charges for outline, which scattered floaters have most of. The border's opacity is ours too: a
prior's own ground, drawn as fog, reaches the frame, and a whole object does not.

Every function returns a scalar that is finite, also for an empty image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from renderers.outputs import RenderOutput

__all__ = [
    "REGULARIZERS",
    "border_loss",
    "compute_regularizers",
    "eikonal_loss",
    "needs_normals",
    "opacity_smoothness_loss",
    "opaque_loss",
    "orientation_loss",
    "sparsity_loss",
    "z_variance_loss",
]

# Smooths the root of the sparsity loss at zero opacity (DreamFusion, appendix A.2).
SPARSITY_OFFSET = 0.01
# Pixels of an image's margin, as a share of its side; at least one.
BORDER = 1 / 64
# Keeps the logarithms of the entropy, and their slopes, finite.
ENTROPY_CLAMP = 1e-3
# Pixels with less coverage have no surface whose thickness could be judged.
SURFACE_OPACITY = 0.5


def orientation_loss(
    weights: Float[Tensor, " m"],
    sample_normals: Float[Tensor, "m 3"],
    sample_dirs: Float[Tensor, "m 3"],
    ray_indices: Int[Tensor, " m"],
) -> Float[Tensor, ""]:
    """Visible normals that face away: sum of sg(w) max(0, n . d)^2 over the rays that hit.

    The weights are constants here, so the loss turns normals and does not thin out the density.
    """
    away = (sample_normals * sample_dirs).sum(-1).clamp(min=0.0)
    visible = weights.detach()
    n_hits = torch.unique_consecutive(ray_indices[visible > 0]).numel()
    return (visible * away.square()).sum() / max(n_hits, 1)


def sparsity_loss(opacity: Float[Tensor, "b h w 1"]) -> Float[Tensor, ""]:
    """Coverage: mean of sqrt(opacity^2 + 0.01)."""
    return (opacity.square() + SPARSITY_OFFSET).sqrt().mean()


def border_loss(opacity: Float[Tensor, "b h w 1"]) -> Float[Tensor, ""]:
    """Mean opacity along the images' border: whole objects end within it, a prior's ground not.

    A field that draws the plain ground of its prior's images as fog fills the frame. Sparsity that
    is strong enough against that thins objects too; this does not touch what is within the frame.
    """
    rows, columns = (max(1, round(BORDER * side)) for side in opacity.shape[1:3])
    inner = opacity[:, rows:-rows, columns:-columns]
    return (opacity.sum() - inner.sum()) / (opacity.numel() - inner.numel())


def opaque_loss(opacity: Float[Tensor, "b h w 1"]) -> Float[Tensor, ""]:
    """Mean binary entropy of the opacity (nats): pushes pixels to empty or solid."""
    p = opacity.clamp(ENTROPY_CLAMP, 1.0 - ENTROPY_CLAMP)
    return -(p * p.log() + (1.0 - p) * (1.0 - p).log()).mean()


def z_variance_loss(
    z_variance: Float[Tensor, "b h w 1"], opacity: Float[Tensor, "b h w 1"]
) -> Float[Tensor, ""]:
    """Mean variance of the distance where the object is solid: thins its surface."""
    solid = (opacity.detach() > SURFACE_OPACITY).to(z_variance.dtype)
    return (z_variance * solid).sum() / solid.sum().clamp(min=1.0)


def opacity_smoothness_loss(opacity: Float[Tensor, "b h w 1"]) -> Float[Tensor, ""]:
    """Total variation of the opacity: mean absolute difference of neighbouring pixels."""
    along_rows = opacity.diff(dim=1).abs().sum()
    along_cols = opacity.diff(dim=2).abs().sum()
    return (along_rows + along_cols) / opacity.numel()


def eikonal_loss(sample_gradients: Float[Tensor, "m 3"]) -> Float[Tensor, ""]:
    """Mean (|gradient| - 1)^2 of a signed distance."""
    if len(sample_gradients) == 0:
        return sample_gradients.sum()
    return (sample_gradients.norm(dim=-1) - 1.0).square().mean()


REGULARIZERS: dict[str, Callable[[RenderOutput], Tensor]] = {
    "orient": lambda out: orientation_loss(
        out.weights, out.sample_normals, out.sample_dirs, out.ray_indices
    ),
    "sparsity": lambda out: sparsity_loss(out.opacity),
    "border": lambda out: border_loss(out.opacity),
    "opaque": lambda out: opaque_loss(out.opacity),
    "z_variance": lambda out: z_variance_loss(out.z_variance, out.opacity),
    "opacity_smoothness": lambda out: opacity_smoothness_loss(out.opacity),
    "eikonal": lambda out: eikonal_loss(out.sample_gradients),
}
"""The penalties by the name a scene gives them."""

_FROM_NORMALS = frozenset({"orient", "eikonal"})


def needs_normals(names: Iterable[str]) -> bool:
    """Whether any of the named penalties needs a render with normals."""
    return not _FROM_NORMALS.isdisjoint(names)


def compute_regularizers(output: RenderOutput, names: Iterable[str]) -> dict[str, Tensor]:
    """The named penalties of one render.

    Raises:
        ValueError: an unknown name, or a penalty that this render has no tensors for.
    """
    losses = {}
    for name in names:
        if name not in REGULARIZERS:
            raise ValueError(
                f"losses.{name}: unknown penalty, expected one of {', '.join(REGULARIZERS)}. "
                "Correct the name."
            )
        required = {
            "orient": output.sample_normals,
            "z_variance": output.z_variance,
            "eikonal": output.sample_gradients,
        }
        if name in required and required[name] is None:
            raise ValueError(
                f"losses.{name}: this render has no samples for it. Use it with a volume renderer "
                "in training (eikonal: with a signed distance field), or set its weight to 0."
            )
        losses[name] = REGULARIZERS[name](output)
    return losses

"""What every renderer returns, whatever it renders."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor

from renderers.antialias import Topology
from renderers.mesh import Mesh

__all__ = ["RenderOutput"]


@dataclass(frozen=True)
class RenderOutput:
    """Images of ``b`` views, and the samples that regularisers need.

    The sample tensors are packed over all rays of the batch. They are None for mesh renderers, and
    for evaluation renders, which are made in chunks.
    """

    comp_rgb: Float[Tensor, "b h w 3"]
    """Colour over the background, display-referred, 0..1."""
    opacity: Float[Tensor, "b h w 1"]
    """Coverage, 0..1."""
    depth: Float[Tensor, "b h w 1"]
    """Distance along the ray times opacity; divide by the opacity for the surface's distance."""
    comp_rgb_bg: Float[Tensor, "b h w 3"]
    """The background alone."""
    normal: Float[Tensor, "b h w 3"] | None = None
    """Unit normals in world axes, zero where nothing was hit."""
    comp_normal: Float[Tensor, "b h w 3"] | None = None
    """Normals as colours, 0.5 n + 0.5, over the background with an anti-aliased outline (mesh
    renderers only)."""
    z_variance: Float[Tensor, "b h w 1"] | None = None
    """Variance of the distance along the ray under the sample weights, world units squared."""
    weights: Float[Tensor, " m"] | None = None
    """Contribution of each sample to its pixel."""
    ray_indices: Int[Tensor, " m"] | None = None
    """Pixel of each sample, an index into the flattened ``[b, h, w]``."""
    sample_dirs: Float[Tensor, "m 3"] | None = None
    """Unit viewing direction of each sample."""
    sample_normals: Float[Tensor, "m 3"] | None = None
    """Unit normal of each sample."""
    sample_gradients: Float[Tensor, "m 3"] | None = None
    """Spatial gradient of the signed distance at each sample."""
    mesh: Mesh | None = None
    """The rendered mesh (mesh renderers only)."""
    topology: Topology | None = None
    """Its edges."""

    def over(self, background: Float[Tensor, "#b #h #w 3"]) -> RenderOutput:
        """The same views before another background; before the same one, the same bit for bit."""
        shift = (1.0 - self.opacity) * (background - self.comp_rgb_bg)
        return replace(
            self,
            comp_rgb=self.comp_rgb + shift,
            comp_rgb_bg=background.expand_as(self.comp_rgb),
            comp_normal=None if self.comp_normal is None else self.comp_normal + shift,
        )

"""What attention operations see and what they may do: layers, batches and the hooks of a call.

    class Halved(AttentionOperation):
        def needs_heads(self, call):
            return call.layer.is_cross

        def heads(self, call, query, key, value):
            return query, key, 0.5 * value, None

Hooks of a layer run in this order: ``inputs``, ``heads``, ``probabilities``, ``added``, ``output``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from image_tools.errors import UnsupportedModel
from renderers.errors import ShapeError

__all__ = ["AttentionCall", "AttentionLayer", "AttentionOperation", "BatchLayout"]


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer of a UNet."""

    name: str
    """Its path, such as down_blocks.0.attentions.0.transformer_blocks.0.attn1."""
    index: int
    """Its place among the layers, in the UNet's own order."""
    place: Literal["down", "mid", "up"]
    """The part of the UNet it lies in."""
    is_cross: bool
    """Whether it looks at the text (attn2) instead of the image itself (attn1)."""
    heads: int
    """Number of heads."""
    level: int = 0
    """How often the image was halved before this layer."""


@dataclass(frozen=True)
class BatchLayout:
    """What the rows of a denoiser call are."""

    roles: tuple[str, ...] = ()
    """A name for each row, such as "uncond" and "cond"; empty where nobody needs them."""
    views: int = 1
    """So many consecutive rows are views of one object."""
    step: int | None = None
    """Step of the sampler, from 0."""


@dataclass(frozen=True)
class AttentionCall:
    """Where and for what a layer is being evaluated."""

    layer: AttentionLayer
    batch: BatchLayout
    latent_size: tuple[int, int] | None = None
    """Rows and columns of the latents; None where the layer is called without its UNet."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the layer's image tokens.

        Raises:
            UnsupportedModel: if the layer was called without its UNet.
        """
        if self.latent_size is None:
            raise UnsupportedModel(
                f"The image size in {self.layer.name} is unknown: it was called alone. Expected a "
                "call of the whole UNet."
            )
        height, width = self.latent_size
        for _ in range(self.layer.level):
            height, width = -(-height // 2), -(-width // 2)
        return height, width

    def rows_of(self, role: str, rows: int) -> list[int]:
        """Which of ``rows`` rows have a role.

        Where views are seen together, one row stands for all views of a set. Operations that add
        rows put them behind those of the batch, so that these are found here as before.

        Raises:
            ShapeError: if there are fewer rows than roles.
        """
        roles = self.batch.roles
        if self.batch.views > 1 and len(roles) == rows * self.batch.views:
            roles = roles[:: self.batch.views]
        if len(roles) > rows:
            raise ShapeError(
                f"{self.layer.name} has {rows} rows and the batch {len(roles)} roles - expected "
                "one role for each row. Give every row of the condition its role."
            )
        return [row for row, name in enumerate(roles) if name == role]


class AttentionOperation:
    """A change of attention. Methods return new tensors and never write into those they get."""

    def applies_to(self, call: AttentionCall) -> bool:
        """Whether this operation has anything to do in this call."""
        return True

    def needs_heads(self, call: AttentionCall) -> bool:
        """Whether ``heads`` or ``added`` must be called; attention stays fused."""
        return False

    def needs_probabilities(self, call: AttentionCall) -> bool:
        """Whether ``probabilities`` must be called, which rules out fused attention."""
        return False

    def inputs(
        self, call: AttentionCall, hidden: Float[Tensor, "rows n c"], context: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Change what queries (``hidden``) and keys and values (``context``) are made of."""
        return hidden, context

    def heads(
        self,
        call: AttentionCall,
        query: Float[Tensor, "rows heads n d"],
        key: Float[Tensor, "rows heads m d"],
        value: Float[Tensor, "rows heads m d"],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Change queries, keys and values, and add to the logits.

        More keys and values stand behind those that were there. The last result is added to the
        logits: ``[rows, heads, n, m]``, of which all but m may be 1, or None for nothing.
        """
        return query, key, value, None

    def probabilities(
        self, call: AttentionCall, probabilities: Float[Tensor, "rows heads n m"]
    ) -> Float[Tensor, "rows heads n m"]:
        """Change the attention probabilities."""
        return probabilities

    def added(
        self, call: AttentionCall, attn: nn.Module, query: Float[Tensor, "rows heads n d"]
    ) -> Float[Tensor, "rows n inner"] | None:
        """What joins the attended values before the layer's last projection; None for nothing.

        Args:
            call: where and for what.
            attn: the diffusers Attention, for its ``heads`` and weights.
            query: as the layer attended with.
        """
        return None

    def output(
        self, call: AttentionCall, output: Float[Tensor, "rows n c"]
    ) -> Float[Tensor, "rows n c"]:
        """Change the layer's output; undoes any reshaping of ``inputs``."""
        return output

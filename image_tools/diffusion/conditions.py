"""What a denoiser is told besides the noisy latents: text embeddings and their batches.

``TextEmbedding`` is text only and can be cached. ``Condition`` is everything that one denoiser
call sees; tools that add inputs add fields to it. Rows are samples of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Condition", "TextEmbedding", "as_condition", "cat_conditions", "cat_embeddings"]


@dataclass(frozen=True)
class TextEmbedding:
    """Encoded prompts, one row each."""

    tokens: Float[Tensor, "batch length width"]
    """Token states for cross-attention. Padding is included and not masked."""
    pooled: Float[Tensor, "batch pooled_width"] | None = None
    """One vector per prompt, for models that want it (SDXL)."""

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> TextEmbedding:
        """The same embedding on another device and in another number format."""
        pooled = None if self.pooled is None else self.pooled.to(device, dtype)
        return TextEmbedding(self.tokens.to(device, dtype), pooled)

    def select(self, rows: Int[Tensor, " selected"]) -> TextEmbedding:
        """Rows by index, in the order given; an index may repeat."""
        rows = rows.to(self.tokens.device)
        return TextEmbedding(self.tokens[rows], None if self.pooled is None else self.pooled[rows])

    def expand(self, batch: int) -> TextEmbedding:
        """A single row repeated ``batch`` times, or the embedding itself if it has that many.

        Raises:
            ValueError: if it has another number of rows.
        """
        if len(self) == batch:
            return self
        if len(self) != 1:
            raise ValueError(
                f"a text embedding has {len(self)} rows for {batch} images. Give 1 or {batch}."
            )
        pooled = None if self.pooled is None else self.pooled.expand(batch, -1)
        return TextEmbedding(self.tokens.expand(batch, -1, -1), pooled)

    def lerp(self, other: TextEmbedding, share: Float[Tensor, " batch"]) -> TextEmbedding:
        """Row by row ``self + share (other - self)``; ``share`` 0 is self, 1 is other."""
        share = share.to(self.tokens)
        tokens = torch.lerp(self.tokens, other.tokens, share[:, None, None])
        if self.pooled is None or other.pooled is None:
            return TextEmbedding(tokens)
        return TextEmbedding(tokens, torch.lerp(self.pooled, other.pooled, share[:, None]))


@dataclass(frozen=True)
class Condition:
    """All inputs of one denoiser call except latents and timesteps."""

    text: TextEmbedding
    """Text, one row per sample."""
    class_labels: Float[Tensor, "batch label_width"] | None = None
    """Input of the denoiser's class embedding, for instance flattened camera matrices."""

    def __len__(self) -> int:
        return len(self.text)

    def expand(self, batch: int) -> Condition:
        """A single text row repeated to ``batch`` rows."""
        return Condition(self.text.expand(batch), self.class_labels)


def as_condition(condition: Condition | TextEmbedding) -> Condition:
    """A text embedding alone is the condition of a text-to-image call."""
    return Condition(condition) if isinstance(condition, TextEmbedding) else condition


def cat_embeddings(embeddings: Sequence[TextEmbedding]) -> TextEmbedding:
    """Stack embeddings row-wise. All must have pooled vectors, or none."""
    pooled = [e.pooled for e in embeddings if e.pooled is not None]
    return TextEmbedding(
        torch.cat([e.tokens for e in embeddings]), torch.cat(pooled) if pooled else None
    )


def cat_conditions(conditions: Sequence[Condition]) -> Condition:
    """Stack conditions row-wise for one denoiser call."""
    labels = [c.class_labels for c in conditions if c.class_labels is not None]
    return Condition(
        cat_embeddings([c.text for c in conditions]), torch.cat(labels) if labels else None
    )

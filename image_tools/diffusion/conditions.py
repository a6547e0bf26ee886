"""What a denoiser is told besides the noisy latents: text embeddings and their batches.

``TextEmbedding`` is text only and can be cached. ``Condition`` is everything that one denoiser
call sees; tools that add inputs add fields to it. Rows are samples of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from image_tools.diffusion.additions import Addition

__all__ = [
    "Condition",
    "TextEmbedding",
    "as_condition",
    "cat_conditions",
    "cat_embeddings",
    "size_conditions",
]


@dataclass(frozen=True)
class TextEmbedding:
    """Encoded prompts, one row each."""

    tokens: Float[Tensor, "batch length width"]
    """Token states for cross-attention. Padding is included and not masked."""
    pooled: Float[Tensor, "batch pooled_width"] | None = None
    """One vector per prompt, for models that want it (SDXL)."""
    aesthetic: Float[Tensor, " batch"] | None = None
    """Quality score, 0 to 10, told beside the prompt (SDXL refiners)."""
    azimuth_deg: Float[Tensor, " batch"] | None = None
    """From where the text is about an object, for tools that act by the view; NaN in rows without a
    view, None for pictures. No denoiser is told."""

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> TextEmbedding:
        """The same embedding on another device and in another number format."""
        return self._map(lambda rows: rows.to(device, dtype))

    def with_aesthetic(self, score: float) -> TextEmbedding:
        """The same text with a quality score."""
        return replace(self, aesthetic=self.tokens.new_full((len(self),), score))

    def seen_from(self, azimuth_deg: Float[Tensor, " batch"] | None) -> TextEmbedding:
        """The same text about other views, one for each row."""
        if azimuth_deg is None:
            return replace(self, azimuth_deg=None)
        return replace(self, azimuth_deg=azimuth_deg.to(self.tokens.device))

    def select(self, rows: Int[Tensor, " selected"]) -> TextEmbedding:
        """Rows by index, in the order given; an index may repeat."""
        rows = rows.to(self.tokens.device)
        return self._map(lambda values: values[rows])

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
        return self._map(lambda row: row.expand(batch, *row.shape[1:]))

    def lerp(self, other: TextEmbedding, share: Float[Tensor, " batch"]) -> TextEmbedding:
        """Row by row ``self + share (other - self)``; ``share`` 0 is self, 1 is other.

        What only one of the two has is left out, and so are views.
        """

        def mix(mine: Tensor | None, theirs: Tensor | None) -> Tensor | None:
            if mine is None or theirs is None:
                return None
            return torch.lerp(mine, theirs, share.to(mine).reshape(-1, *[1] * (mine.ndim - 1)))

        return TextEmbedding(
            mix(self.tokens, other.tokens),
            mix(self.pooled, other.pooled),
            mix(self.aesthetic, other.aesthetic),
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> TextEmbedding:
        """The same change to every part that is there."""
        parts = (self.tokens, self.pooled, self.aesthetic, self.azimuth_deg)
        return TextEmbedding(*(None if part is None else change(part) for part in parts))


@dataclass(frozen=True)
class Condition:
    """All inputs of one denoiser call except latents and timesteps."""

    text: TextEmbedding
    """Text, one row per sample."""
    class_labels: Float[Tensor, "batch label_width"] | None = None
    """Input of the denoiser's class embedding, for instance flattened camera matrices."""
    roles: tuple[str, ...] = ()
    """What each row is to attention tools, such as "uncond" or "cond"; empty where none asks."""
    additions: tuple[Addition, ...] = ()
    """What image tools add, each with one row per sample."""

    def __len__(self) -> int:
        return len(self.text)

    def expand(self, batch: int) -> Condition:
        """A single text row repeated to ``batch`` rows."""
        roles = self.roles * batch if len(self.roles) == 1 else self.roles
        additions = tuple(addition.expand(batch) for addition in self.additions)
        return replace(self, text=self.text.expand(batch), roles=roles, additions=additions)


def as_condition(condition: Condition | TextEmbedding) -> Condition:
    """A text embedding alone is the condition of a text-to-image call."""
    return Condition(condition) if isinstance(condition, TextEmbedding) else condition


def cat_embeddings(embeddings: Sequence[TextEmbedding]) -> TextEmbedding:
    """Stack embeddings row-wise. All must have pooled vectors and scores, or none; where only some
    are about a view, the others' rows have none."""

    def stack(name: str) -> Tensor | None:
        parts = [getattr(e, name) for e in embeddings if getattr(e, name) is not None]
        return torch.cat(parts) if parts else None

    if any(e.azimuth_deg is not None for e in embeddings):
        nowhere = (e.tokens.new_full((len(e),), torch.nan) for e in embeddings)
        embeddings = [
            e if e.azimuth_deg is not None else e.seen_from(none)
            for e, none in zip(embeddings, nowhere, strict=True)
        ]
    parts = ("tokens", "pooled", "aesthetic", "azimuth_deg")
    return TextEmbedding(*(stack(name) for name in parts))


def size_conditions(text: TextEmbedding, image_hw: tuple[int, int]) -> Float[Tensor, "batch ids"]:
    """The numbers an SDXL model is told beside the text (arXiv 2307.01952, section 2.2).

    Original height and width, crop corner, and then the target height and width, or for a refiner
    the quality score in their place. In pixels: an uncropped image of the size it was trained on.
    """
    size = text.tokens.new_tensor([float(side) for side in image_hw])
    ids = torch.cat([size, torch.zeros_like(size)]).expand(len(text), -1)
    if text.aesthetic is None:
        return torch.cat([ids, size.expand(len(text), -1)], dim=1)
    return torch.cat([ids, text.aesthetic[:, None].to(ids)], dim=1)


def cat_conditions(conditions: Sequence[Condition]) -> Condition:
    """Stack conditions row-wise for one denoiser call; all have additions of the same tools.

    Raises:
        ValueError: if some have more additions than others.
    """
    by_tool = zip(*(c.additions for c in conditions), strict=True)
    labels = [c.class_labels for c in conditions if c.class_labels is not None]
    return Condition(
        cat_embeddings([c.text for c in conditions]),
        torch.cat(labels) if labels else None,
        tuple(role for c in conditions for role in c.roles),
        tuple(first.stack(others) for first, *others in by_tool),
    )

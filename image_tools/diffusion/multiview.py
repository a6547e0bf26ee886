"""A prior that draws several views of one object together (MVDream, arXiv 2308.16512, section 3.2).

It is a plain text-to-image UNet with two additions: a camera embedding added to the time
embedding, and self-attention that looks across the views of a set, ``(b f) n c -> b (f n) c`` on
attn1 of every block. Cross-attention is unchanged. Rows of a batch are set by set.

A condition with cameras (``class_labels [b f, 16]``) is a batch of sets. One without is a batch of
plain images: no camera embedding, no attention across rows, bit for bit the plain UNet.
"""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float, Int
from torch import Tensor

from image_tools.diffusion.attention import (
    AttentionCall,
    AttentionHub,
    AttentionOperation,
)
from image_tools.diffusion.camera_embedding import CAMERA_WIDTH, has_camera_embedding
from image_tools.diffusion.conditions import Condition, TextEmbedding, as_condition
from image_tools.diffusion.prior import DiffusionPrior, PriorParts
from image_tools.diffusion.prompt_cache import PromptCache
from image_tools.errors import UnsupportedModel
from renderers.errors import ShapeError

__all__ = ["CrossViewAttention", "MultiViewPrior"]


class CrossViewAttention(AttentionOperation):
    """Self-attention over all tokens of the views of a set."""

    def applies_to(self, call: AttentionCall) -> bool:
        """In self-attention, where rows are views."""
        return call.batch.views > 1 and not call.layer.is_cross

    def inputs(
        self, call: AttentionCall, hidden: Float[Tensor, "rows n c"], context: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Put the tokens of a set's views side by side."""
        views = call.batch.views
        rows, tokens, width = hidden.shape
        if rows % views:
            raise ShapeError(
                f"{rows} rows are not whole sets of {views} views. Give every set all its views."
            )
        return hidden.reshape(rows // views, views * tokens, width), context

    def output(
        self, call: AttentionCall, output: Float[Tensor, "sets fn c"]
    ) -> Float[Tensor, "rows n c"]:
        """Give each view its tokens back."""
        sets, tokens, width = output.shape
        views = call.batch.views
        return output.reshape(sets * views, tokens // views, width)


class MultiViewPrior(DiffusionPrior):
    """A latent diffusion model of sets of views. Its UNet's attention belongs to ``attention``."""

    def __init__(
        self,
        parts: PriorParts,
        *,
        views: int = 4,
        prompt_cache: PromptCache | None = None,
        keep_text_encoder: bool = True,
    ) -> None:
        """Install cross-view attention.

        Args:
            parts: as of a plain prior, with a UNet that has a camera embedding.
            views: views of each set.
            prompt_cache: where text embeddings are kept.
            keep_text_encoder: False drops the encoders after each use.

        Raises:
            UnsupportedModel: if the UNet has no camera embedding.
        """
        super().__init__(parts, prompt_cache=prompt_cache, keep_text_encoder=keep_text_encoder)
        width = self.unet.config.projection_class_embeddings_input_dim
        if not has_camera_embedding(self.unet) or width != CAMERA_WIDTH:
            raise UnsupportedModel(
                "The denoiser has no camera embedding. Expected a multi-view model, such as "
                "pocket-mv or MVDream; a text-to-image model is of kind pocket or diffusers."
            )
        self.views = views
        self.attention = AttentionHub(self.unet, [CrossViewAttention()])
        self.attention.install()

    def predict_output(
        self,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        condition: Condition | TextEmbedding,
    ) -> Float[Tensor, "b c s s"]:
        """The denoiser's output; rows are sets of views where the condition has cameras.

        Raises:
            ShapeError: if there are cameras, but not whole sets of rows.
        """
        condition = as_condition(condition)
        views = 1 if condition.class_labels is None else self.views
        with self.attention.batch(replace(self.attention.layout, views=views)):
            return super().predict_output(latents, t, condition)

    def close(self) -> None:
        """Give the UNet its own attention back."""
        self.attention.restore()

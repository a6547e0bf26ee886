"""KOSMOS-G (arXiv 2310.02992): prompts with images among their words, for any Stable Diffusion 1.x.

A multimodal language model reads words and images in one sequence, and an aligner turns its states
into what the prior's text encoder would have said. Nothing but the text states changes, so LoRAs,
ControlNets, samplers and guidance rules take the prior unchanged. The language model is
transformers' ``Kosmos2Model``, whose tensors are KOSMOS-1's by other names; states are taken of
every position, after the last norm. What guidance leads away from is the aligner's answer to "<s>",
or to the negative prompt where that is longer.

Inside ``off()`` the prior is the plain one, bit for bit, and reads the prompt's words alone.

    prior = KosmosGPrior(prior, read_kosmos_g(folder).to(prior.device), images)
    images = sample_images(prior, ["a <i> wearing a <i>"], generators=[generator])
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.diffusion.conditions import TextEmbedding, cat_embeddings
from image_tools.diffusion.modified import WrappedPrior
from image_tools.diffusion.protocol import NoisePrior
from image_tools.errors import UnsupportedModel
from image_tools.personalization.kosmos_g_aligner import AlignerNet
from image_tools.personalization.kosmos_g_prompt import (
    InterleavedBatch,
    PromptTokens,
    stack_rows,
)
from image_tools.personalization.kosmos_g_words import without_images
from image_tools.vision.clip_images import clip_pixels
from renderers.errors import ShapeError, check_shape

if TYPE_CHECKING:
    from transformers import Kosmos2Model

__all__ = ["KosmosGModel", "KosmosGPrior", "check_fits"]


class KosmosGModel(nn.Module):
    """Language model, aligner and tokens: from prompts and images to text states."""

    def __init__(
        self,
        mllm: Kosmos2Model,
        aligner: AlignerNet,
        tokens: PromptTokens,
        *,
        fingerprint: str = "",
    ) -> None:
        """Put the parts together.

        Raises:
            UnsupportedModel: the aligner reads states of another width.
        """
        super().__init__()
        width = mllm.config.text_config.embed_dim
        if aligner.settings.input_width != width:
            raise UnsupportedModel(
                f"The aligner reads states of width {aligner.settings.input_width}, the language "
                f"model's are {width} wide - expected the aligner that was trained with it."
            )
        self.mllm, self.aligner, self.tokens = mllm, aligner, tokens
        self.fingerprint = fingerprint

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return self.aligner.encoder_query.device

    @property
    def image_size(self) -> int:
        """Rows and columns of pixels that it sees of an image."""
        return self.mllm.config.vision_config.image_size

    def image_features(self, images: Float[Tensor, "n h w 3"]) -> Float[Tensor, "n k d"]:
        """What the language model sees of images in 0..1: CLIP's tokens through the connector."""
        pixels = clip_pixels(images, self.image_size).to(
            self.device, self.aligner.encoder_query.dtype
        )
        return self.mllm.get_image_features(pixels).pooler_output

    def states(
        self, batch: InterleavedBatch, features: Float[Tensor, "n k d"] | None
    ) -> Float[Tensor, "b t d"]:
        """The language model's states after its last norm.

        Args:
            batch: prompts.
            features: of all their images, prompt by prompt; None where there are none.

        Raises:
            ShapeError: another number of images than the prompts have places for.
        """
        length = self.tokens.image_length
        given = 0 if features is None else len(features)
        if int(batch.is_image.sum()) != given * length:
            raise ShapeError(
                f"{given} images came for {int(batch.is_image.sum()) // length} places in the "
                "prompts. Give one image for each place."
            )
        batch = batch.to(self.device)
        return self.mllm.text_model(
            input_ids=batch.ids,
            attention_mask=batch.is_token.long(),
            image_embeds=features,
            image_embeds_position_mask=batch.is_image if given else None,
            use_cache=False,
        ).last_hidden_state

    def embed(
        self, prompts: Sequence[str], images: Sequence[Float[Tensor, "n h w 3"]]
    ) -> Float[Tensor, "b q w"]:
        """Text states of prompts, each with its own images; "" without any means no condition.

        Raises:
            InterleavedPromptError: a prompt names another number of images, or is too long.
        """
        counts = [len(own) for own in images]
        rows = [self.tokens.read(p, n) for p, n in zip(prompts, counts, strict=True)]
        batch = stack_rows(rows)
        shown = [own for own in images if len(own)]
        features = self.image_features(torch.cat(shown)) if shown else None
        return self.aligner(self.states(batch, features), batch.is_token.to(self.device))


class KosmosGPrior(WrappedPrior):
    """A prior whose prompts may hold images."""

    def __init__(
        self,
        plain: NoisePrior,
        model: KosmosGModel,
        images: Float[Tensor, "n h w 3"] | None = None,
    ) -> None:
        """Bind images to a prior.

        Args:
            plain: reads text states of the aligner's width; it may be wrapped itself.
            model: on any device; it is frozen.
            images: in 0..1, one for each ``<i>`` of the prompts, in their order.

        Raises:
            UnsupportedModel: the prior wants other text states, or a pooled vector beside them.
            ShapeError: the images are no images.
        """
        super().__init__(plain)
        check_fits(plain, model)
        self.model = model.eval().requires_grad_(False)
        self._is_on = True
        self._known: dict[tuple[str, int], TextEmbedding] = {}
        self.images = torch.zeros(0, 1, 1, 3)
        self.show(self.images if images is None else images)

    @property
    def fingerprint(self) -> str:
        """Hash of the prior, of what is attached to it, of the model and of the images."""
        if not self._is_on:
            return self.plain.fingerprint
        digest = hashlib.sha256(f"{self.plain.fingerprint}\0{self.model.fingerprint}".encode())
        digest.update(self.images.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    def show(self, images: Float[Tensor, "n h w 3"]) -> None:
        """Bind other images.

        Raises:
            ShapeError: they are no images.
        """
        check_shape("images", images, "n h w 3")
        self.images, self._known = images.detach(), {}

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the prior reads prompts as it would without the tool, images left out."""
        before, self._is_on = self._is_on, False
        try:
            yield
        finally:
            self._is_on = before

    def encode_prompt(self, prompts: Sequence[str]) -> TextEmbedding:
        """Prompts to text states; each has as many ``<i>`` as there are images.

        Raises:
            InterleavedPromptError: a prompt names another number of images, or is too long.
        """
        if not self._is_on:
            return self.plain.encode_prompt([without_images(prompt) for prompt in prompts])
        if not prompts:
            raise ValueError("encode_prompt got no prompts. Give at least one.")
        return cat_embeddings([self._read(prompt, self.images) for prompt in prompts])

    def encode_negative(self, prompts: Sequence[str]) -> TextEmbedding:
        """Negative prompts, which have words alone; an empty one means no condition.

        Raises:
            InterleavedPromptError: a negative prompt names images, or is too long.
        """
        if not self._is_on:
            return self.plain.encode_negative(prompts)
        return cat_embeddings([self._read(prompt, self.images[:0]) for prompt in prompts])

    def _read(self, prompt: str, images: Float[Tensor, "n h w 3"]) -> TextEmbedding:
        """Each prompt is read alone, so its states do not depend on the others."""
        key = (prompt, len(images))
        if key not in self._known:
            with torch.no_grad():
                states = self.model.embed([prompt], [images])
            self._known[key] = TextEmbedding(states.to(self.plain.device, torch.float32))
        return self._known[key]


def check_fits(plain: NoisePrior, model: KosmosGModel) -> None:
    """Refuse a prior that reads other text states than the model makes.

    Raises:
        UnsupportedModel: another width, or a pooled vector beside them.
    """
    wanted, made = plain.unet.config, model.aligner.settings
    if wanted.addition_embed_type is not None:
        raise UnsupportedModel(
            "KOSMOS-G makes text states alone, and the prior wants a pooled vector beside them "
            "(SDXL). Expected Stable Diffusion 1.x, or another prior with one text encoder."
        )
    if wanted.cross_attention_dim != made.width:
        raise UnsupportedModel(
            f"The aligner makes text states of width {made.width}, the prior reads "
            f"{wanted.cross_attention_dim}. Use the prior that it was trained for (the public one: "
            "Stable Diffusion 1.5), or train an aligner for this one."
        )

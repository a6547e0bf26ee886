"""Pseudo-words of a garment (LaDI-VTON, arXiv 2305.13501, section 3.3).

CLIP's tokens of the product picture go through one more encoder layer and a perceptron, which makes
16 vectors of the text encoder's word embeddings: words that nobody said. They stand in the prompt
where a marker stands, by a hook on the embedding table for the time of a call, so that gradients
reach the adapter.

    words = adapter(clip.last_hidden(square(garment.images, clip.side)))
    text = describe(prior.text, garment.categories, words)

They serve any prompt: ``encode_with_words(prior.text, ["a chair in ..."], words)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from image_tools.diffusion.conditions import TextEmbedding
from image_tools.diffusion.text import TextStack
from image_tools.tryon.garment_configs import BODY_PARTS, GarmentCategory
from image_tools.tryon.ladi_configs import CATEGORY_WORDS, AdapterSettings
from image_tools.tryon.own_modules import OwnModule
from renderers.errors import ShapeError, StudioError

__all__ = [
    "MARKER",
    "InversionAdapter",
    "describe",
    "encode_with_words",
    "garment_prompt",
    "square",
]

MARKER = "$"
LAYER_EPS = 1e-5


class InversionAdapter(OwnModule):
    """From CLIP's tokens of a garment to word embeddings."""

    def __init__(self, settings: AdapterSettings) -> None:
        """An untrained adapter."""
        from transformers import CLIPVisionConfig
        from transformers.models.clip.modeling_clip import CLIPEncoderLayer

        super().__init__(settings)
        config = CLIPVisionConfig(
            hidden_size=settings.image_width,
            intermediate_size=settings.image_mlp,
            num_attention_heads=settings.image_heads,
            hidden_act=settings.activation,
            attn_implementation="sdpa",
        )
        self.encoder_layers = nn.ModuleList([CLIPEncoderLayer(config)])
        self.post_layernorm = nn.LayerNorm(settings.image_width, eps=LAYER_EPS)
        self.layers = nn.Sequential(
            *(nn.Linear(settings.image_width, settings.hidden), nn.GELU()),
            *(nn.Dropout(settings.dropout), nn.Linear(settings.hidden, settings.hidden)),
            *(nn.GELU(), nn.Dropout(settings.dropout)),
            nn.Linear(settings.hidden, settings.word_width * settings.words),
        )

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b words width"]:
        """Word embeddings of garments from all tokens after CLIP's last layer."""
        for layer in self.encoder_layers:
            tokens = layer(tokens, None)
        words = self.layers(self.post_layernorm(tokens[:, 0]))
        return words.unflatten(1, (self.settings.words, self.settings.word_width))


def square(images: Float[Tensor, "b h w 3"], side: int) -> Float[Tensor, "b side side 3"]:
    """Pictures pressed into squares, as the garments were that the adapter was trained with."""
    pixels = F.interpolate(images.movedim(-1, 1), (side, side), mode="bilinear", antialias=True)
    return pixels.clamp(0.0, 1.0).movedim(1, -1)


def garment_prompt(category: GarmentCategory, words: int) -> str:
    """The prompt for a garment, a marker in the place of each pseudo-word.

    Raises:
        StudioError: if it is no garment for the body.
    """
    if category not in BODY_PARTS:
        raise StudioError(
            f"LaDI-VTON knows no '{category}'. Expected one of {', '.join(BODY_PARTS)}."
        )
    said = CATEGORY_WORDS[BODY_PARTS[category]]
    return f"a photo of a model wearing {said} {' '.join([MARKER] * words)}"


def describe(
    text: TextStack, categories: Sequence[GarmentCategory], words: Float[Tensor, "b n width"]
) -> TextEmbedding:
    """Embeddings of the prompts for garments."""
    prompts = [garment_prompt(category, words.shape[1]) for category in categories]
    return encode_with_words(text, prompts, words)


def encode_with_words(
    text: TextStack, prompts: Sequence[str], words: Float[Tensor, "b n width"]
) -> TextEmbedding:
    """Embeddings of prompts in which each marker stands for the next of a row's words.

    Raises:
        ShapeError: if prompts, markers and words do not have equal numbers.
    """
    (tower,) = text.towers
    tokenizer, encoder = tower.tokenizer, tower.encoder
    length = tokenizer.model_max_length
    encoded = tokenizer(
        list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    marker = tokenizer(MARKER, add_special_tokens=False).input_ids
    ids = encoded.input_ids
    is_word = ids == marker[-1]
    counts = is_word.sum(dim=1).tolist()
    if len(prompts) != len(words) or any(count != words.shape[1] for count in counts):
        raise ShapeError(
            f"{len(words)} rows of {words.shape[1]} pseudo-words came for {len(prompts)} prompts "
            f"with {counts} markers '{MARKER}'. Give each prompt as many markers as words, within "
            f"{length} tokens."
        )
    device = next(encoder.parameters()).device
    uses_mask = getattr(encoder.config, "use_attention_mask", False)
    mask = encoded.attention_mask.to(device) if uses_mask else None
    with _words_in_place(encoder, is_word.to(device), words):
        return TextEmbedding(encoder(ids.to(device), attention_mask=mask)[0])


@contextmanager
def _words_in_place(
    encoder: nn.Module, is_word: Bool[Tensor, "b length"], words: Float[Tensor, "b n width"]
) -> Iterator[None]:
    """Inside, the embedding table's output has words where markers are."""

    def put(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        own = words.flatten(0, 1).to(output)
        return output.index_put(tuple(is_word.nonzero().unbind(dim=1)), own)

    handle = encoder.get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()

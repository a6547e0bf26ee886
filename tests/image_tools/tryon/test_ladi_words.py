"""Pseudo-words: they stand where markers stand, and are like words of the table."""

from __future__ import annotations

import pytest
import torch

from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.tryon.ladi_vton import pseudo_words
from image_tools.tryon.ladi_words import (
    MARKER,
    describe,
    encode_with_words,
    garment_prompt,
    square,
)
from image_tools.vision.clip_images import ClipImages
from renderers.errors import ShapeError, StudioError
from tests.image_tools.tryon.people import tiny_sample
from tests.image_tools.tryon.tiny_ladi import tiny_adapter
from tests.image_tools.vision.tiny_clip import tiny_clip

CPU = torch.device("cpu")
PROMPTS = ("a man in $ $", "$ b $")


@pytest.fixture(scope="module")
def prior(tiny_pipelines) -> DiffusionPrior:
    return load_folder(tiny_pipelines["sd2_v"], CPU)


def words_of(prior: DiffusionPrior, rows: int = 2, count: int = 2) -> torch.Tensor:
    width = prior.text.towers[0].encoder.get_input_embeddings().weight.shape[1]
    return torch.randn(rows, count, width, generator=torch.Generator().manual_seed(0))


def test_words_equal_new_rows_of_the_embedding_table(prior) -> None:
    """As if the vocabulary had words with these embeddings."""
    tower, words = prior.text.towers[0], words_of(prior)
    told = encode_with_words(prior.text, PROMPTS, words)
    table = tower.encoder.get_input_embeddings()
    (marker,) = tower.tokenizer(MARKER, add_special_tokens=False).input_ids
    for row, prompt in enumerate(PROMPTS):
        ids = tower.tokenizer(
            prompt, padding="max_length", max_length=77, return_tensors="pt"
        ).input_ids
        before, size = table.weight, len(table.weight)
        ids[0, ids[0] == marker] = torch.tensor([size, size + 1])
        table.weight = torch.nn.Parameter(torch.cat([before, words[row]]), requires_grad=False)
        try:
            # The end of the text is the largest number, but only the pooled output asks for it.
            wanted = tower.encoder(ids)[0]
        finally:
            table.weight = before
        assert torch.allclose(told.tokens[row], wanted[0], atol=1e-6)


def test_the_encoder_is_left_as_it_was(prior) -> None:
    plain = prior.text.encode(["$ $"]).tokens
    encode_with_words(prior.text, ["$ $"], words_of(prior, rows=1))
    assert torch.equal(prior.text.encode(["$ $"]).tokens, plain)


def test_gradients_reach_the_adapter(prior) -> None:
    clip = ClipImages(tiny_clip())
    adapter = tiny_adapter(clip, words_of(prior).shape[-1])
    garment = tiny_sample().garments[0]
    words = pseudo_words(clip, adapter, garment)
    text = describe(prior.text, garment.categories, words)
    text.tokens.square().mean().backward()
    assert all(p.grad is not None for p in adapter.parameters())
    assert words.shape == (2, 3, words_of(prior).shape[-1])


def test_only_the_class_token_is_read_after_the_layer(prior) -> None:
    clip = ClipImages(tiny_clip())
    adapter = tiny_adapter(clip, 16)
    tokens = torch.randn(1, 17, clip.width, generator=torch.Generator().manual_seed(1))
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(16)])
    assert torch.allclose(adapter(tokens), adapter(tokens[:, order]), atol=1e-5)


def test_pictures_are_pressed_into_squares_not_cut() -> None:
    images = torch.zeros(1, 40, 20, 3)
    images[:, :4] = 1.0  # a cut would lose the upper edge
    pressed = square(images, 10)
    assert pressed.shape == (1, 10, 10, 3)
    assert float(pressed[0, 0].min()) > 0.8


def test_prompts_name_the_part_of_the_body() -> None:
    assert garment_prompt("skirt", 2) == "a photo of a model wearing a lower body garment $ $"
    with pytest.raises(StudioError, match="no 'hat'"):
        garment_prompt("hat", 2)


def test_words_and_markers_must_agree(prior) -> None:
    with pytest.raises(ShapeError, match="2 pseudo-words came for 1 prompts with \\[3\\] markers"):
        encode_with_words(prior.text, ["$ $ $"], words_of(prior, rows=1))

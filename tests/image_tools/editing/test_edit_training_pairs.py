"""Pairs that a prior draws with shared attention, and the filter that keeps the good ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from image_tools.diffusion.attention import AttentionHub, BatchLayout
from image_tools.diffusion.attention_processor import split_heads
from image_tools.editing.edit_training_configs import PairFilterConfig, PairGenerationConfig
from image_tools.editing.edit_training_pairs import (
    PairScores,
    draw_pairs,
    drawn_settings,
    kept_pairs,
    score_pairs,
)
from image_tools.editing.pixel_sharing import PixelSharing
from tests.image_tools.personalization.subjects import load_tiny
from tests.image_tools.tiny_unets import tiny_unet

SHORT = PairGenerationConfig(samples=2, steps=3, shared=(1.0, 1.0), guidance_scale=(2.0, 2.0))
RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


class ColorScorer:
    """Images by their mean colour, captions by the colour that they name."""

    def embed_images(self, images):
        return images.mean((1, 2))

    def embed_texts(self, texts):
        return torch.tensor([{"red": RED, "blue": BLUE}[text] for text in texts])


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_tiny(tiny_pipelines, "pocket")


def test_one_caption_twice_gives_one_image_twice_and_other_captions_two(prior):
    same = draw_pairs(prior, "a red duck", "a red duck", SHORT, seed=1)
    assert same.shape == (2, 2, 32, 32, 3)
    torch.testing.assert_close(same[:, 0], same[:, 1], atol=1e-5, rtol=0)
    different = draw_pairs(prior, "a red duck", "a purple mushroom", SHORT, seed=1)
    assert (different[:, 0] - different[:, 1]).abs().max() > 1e-3
    torch.testing.assert_close(different[:, 0], same[:, 0], atol=1e-5, rtol=0)


def test_two_captions_share_attention_among_pixels_as_the_authors_code_does():
    """s_0, s_0, s_2, s_2 of the rows [uncond 0, uncond 1, cond 0, cond 1], in a layer's own logits;
    words, late steps and unknown rows are left alone."""
    rows = ("uncond:0", "uncond:1", "cond:0", "cond:1")
    unet = tiny_unet()
    block = unet.get_submodule("up_blocks.1.attentions.0.transformer_blocks.0")
    x = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0))
    text = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(1))
    query, key, value = (
        split_heads(project(x), block.attn1.heads)
        for project in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
    )
    s = query @ key.mT * block.attn1.scale
    s = torch.cat([s[:1], s[:1], s[2:3], s[2:3]])
    expected = block.attn1.to_out[0]((s.softmax(-1) @ value).transpose(1, 2).flatten(2))
    alone, told = block.attn1(x), block.attn2(x, text)

    def shared(layer, *given, step, roles=rows):
        with (
            AttentionHub(unet, [PixelSharing(0.5, 5)]) as hub,
            hub.batch(BatchLayout(roles=roles, step=step)),
        ):
            return layer(*given)

    for step in (0, 1):
        torch.testing.assert_close(shared(block.attn1, x, step=step), expected)
        assert torch.equal(shared(block.attn2, x, text, step=step), told)
    assert (expected - alone)[[1, 3]].abs().amax((1, 2)).min() > 1e-3
    torch.testing.assert_close(expected[[0, 2]], alone[[0, 2]])
    for step, roles in ((2, rows), (None, rows), (0, ())):
        torch.testing.assert_close(shared(block.attn1, x, step=step, roles=roles), alone)


def test_the_two_ways_of_sharing_draw_other_second_images(prior):
    pixels, both = (
        draw_pairs(prior, "a red duck", "a mushroom", replace(SHORT, sharing=sharing), seed=1)
        for sharing in ("pixels", "words_and_pixels")
    )
    torch.testing.assert_close(pixels[:, 0], both[:, 0], atol=1e-5, rtol=0)
    assert (pixels[:, 1] - both[:, 1]).abs().max() > 1e-4


def test_what_a_pair_drew_for_itself_can_be_told_afterwards(prior):
    config = replace(SHORT, samples=2, shared=(0.0, 1.0), guidance_scale=(1.0, 9.0))
    drawn = draw_pairs(prior, "a red duck", "a mushroom", config, seed=4)
    told = drawn_settings(config, 1, seed=4)
    exact = replace(config, shared=(told.shared,) * 2, guidance_scale=(told.guidance_scale,) * 2)
    again = draw_pairs(prior, "a red duck", "a mushroom", exact, seed=4)
    assert torch.equal(again[1], drawn[1])
    assert not torch.equal(again[0], drawn[0])


def test_a_pair_depends_on_seed_and_number_alone(prior):
    drawn = draw_pairs(prior, "a red duck", "a duck", SHORT, seed=1)
    one = draw_pairs(prior, "a red duck", "a duck", replace(SHORT, samples=1), seed=1)
    assert torch.equal(drawn[:1], one)
    assert not torch.equal(drawn[0], drawn[1])
    other = draw_pairs(prior, "a red duck", "a duck", replace(SHORT, samples=1), seed=2)
    assert not torch.equal(other, one)


def solid(*colors):
    """Images of one colour each."""
    return torch.tensor(colors)[:, None, None, :].expand(len(colors), 4, 4, 3)


def test_scores_are_cosines_of_images_captions_and_their_changes():
    """Red to blue: once as said, once not at all, once the wrong way round."""
    pairs = torch.stack([solid(RED, RED, BLUE), solid(BLUE, RED, RED)], 1)
    scores = score_pairs(ColorScorer(), pairs, "red", "blue")
    assert scores.image.tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-6)
    assert scores.before.tolist() == pytest.approx([1.0, 1.0, 0.0], abs=1e-6)
    assert scores.after.tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-6)
    assert scores.direction.tolist() == pytest.approx([1.0, 0.0, -1.0], abs=1e-6)


def test_the_filter_asks_for_every_similarity_and_keeps_the_best_directions():
    good = torch.full((6,), 0.9)
    scores = PairScores(
        image=good.index_fill(0, torch.tensor([0]), 0.7),
        before=good.index_fill(0, torch.tensor([1]), 0.1),
        after=good.index_fill(0, torch.tensor([2]), 0.1),
        direction=torch.tensor([0.9, 0.9, 0.9, 0.1, 0.3, 0.5]),
    )
    config = PairFilterConfig()
    assert kept_pairs(scores, config).tolist() == [5, 4]
    assert kept_pairs(scores, replace(config, keep=1)).tolist() == [5]
    assert kept_pairs(scores, replace(config, image=0.6)).tolist() == [0, 5, 4]
    assert kept_pairs(scores, replace(config, direction=0.95)).tolist() == []


def test_settings_that_cannot_be_meant_are_refused():
    with pytest.raises(ValueError, match=r"shared is 0.5 to 1.5 - expected 0 <= low <= high <= 1"):
        PairGenerationConfig(shared=(0.5, 1.5))
    with pytest.raises(ValueError, match=r"guidance_scale is 9.0 to 7.0 - expected"):
        PairGenerationConfig(guidance_scale=(9.0, 7.0))
    with pytest.raises(ValueError, match="samples is 0, steps 50 - expected at least 1"):
        PairGenerationConfig(samples=0)
    with pytest.raises(ValueError, match=r"direction is 2.0 - expected -1 to 1"):
        PairFilterConfig(direction=2.0)
    with pytest.raises(ValueError, match="keep is 0 - expected at least 1"):
        PairFilterConfig(keep=0)

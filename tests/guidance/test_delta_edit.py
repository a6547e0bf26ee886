"""Delta edits: nothing to do for equal scenes, the formula elsewhere, and where they may act."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from guidance.build import build_guidance
from guidance.configs import (
    DirectionalPromptsConfig,
    InterpolatedPromptsConfig,
    PerpNegPromptsConfig,
    PlainPromptsConfig,
    ViewWordsConfig,
)
from guidance.delta_edit import kept_loss
from guidance.delta_edit_configs import (
    BoxMaskConfig,
    DeltaEditConfig,
    EverywhereConfig,
    SharedAttentionConfig,
    WordMaskConfig,
)
from guidance.delta_edit_mask import build_mask, changed_tokens
from guidance.delta_edit_words import ViewSharing, texts_at
from guidance.layout_parts import LayoutObject, object_tokens
from guidance.noising import draw_noisy_latents, noisy_latents
from guidance.original import Original
from guidance.prompts import build_view_prompts
from guidance.sds import sds_weight
from image_tools.configs import DiffusersPriorConfig, PriorMemoryConfig
from image_tools.diffusion.loading import load_folder, load_prior
from image_tools.editing.dds import DeltaBranch, shared_delta_denoising_gradient
from image_tools.editing.editing_configs import EditedPromptConfig, PromptToPromptConfig
from image_tools.editing.prompt_to_prompt import PromptToPromptPrior
from image_tools.errors import UnsupportedModel
from renderers.boxes import box_masks
from renderers.errors import StudioError
from tests.guidance.layouts import LEFT, cameras, prompts_of, renders

BEFORE, AFTER = "a red duck left of a mushroom", "a red fox left of a mushroom"
MASKS = {"everywhere": EverywhereConfig(), "box": BoxMaskConfig(LEFT), "word": WordMaskConfig()}
ALL_SHARED = SharedAttentionConfig(cross=1.0, own=1.0)


@dataclass(frozen=True)
class Angles:
    """Views by their angles alone."""

    azimuth_deg: torch.Tensor
    elevation_deg: torch.Tensor


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_folder(tiny_pipelines["pocket"], torch.device("cpu"))


def rule(prior, sources, target=AFTER, word="duck", **settings):
    original = Original(lambda cameras: sources, prompts_of(prior, BEFORE), word)
    config = DeltaEditConfig(**settings)
    return build_guidance(config, prior, prompts_of(prior, target), seed=0, original=original)


def guided(delta, images, seed=0):
    generator = torch.Generator().manual_seed(seed)
    output = delta(images, cameras(len(images)), fraction=0.5, generator=generator)
    output.loss.backward()
    return output


@pytest.mark.parametrize("mask", MASKS)
def test_equal_scenes_and_prompts_have_no_gradient_at_all(prior, mask):
    images = renders()
    delta = rule(prior, images.detach().clone(), BEFORE, mask=MASKS[mask], keep=3.0)
    output = guided(delta, images)
    assert not images.grad.any()
    assert output.grad_norm == 0.0
    latents = prior.encode_images(images.detach())
    assert torch.equal(output.x0(), prior.decode_latents(latents))


@pytest.mark.parametrize("weighting", ["uniform", "sds"])
def test_gradient_is_the_weighted_difference_of_both_predictions(prior, weighting):
    images, sources = renders(), renders(seed=5).detach()
    delta = rule(prior, sources, weighting=weighting, guidance_scale=3.0)
    config, around = delta.config, cameras()
    latents = prior.encode_images(images).detach().requires_grad_()
    noisy = draw_noisy_latents(
        prior, latents, config.timesteps, fraction=0.5, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        source = noisy.alpha * prior.encode_images(sources) + noisy.sigma * noisy.noise
        texts = [prompts_of(prior, text).at(around) for text in (AFTER, BEFORE)]
        target, before = (
            text.guided_noise(prior, z_t, noisy.t, 3.0)
            for text, z_t in zip(texts, (noisy.z_t, source), strict=True)
        )
        expected = sds_weight(noisy.alpha**2, weighting) * (target - before)
    output = guided(delta, images)
    torch.testing.assert_close(output.grad_norm, expected.flatten(1).norm(dim=1).mean())
    (expected_images,) = torch.autograd.grad(
        (prior.encode_images(images) * expected).sum() / 2, [images]
    )
    torch.testing.assert_close(images.grad, expected_images, atol=1e-6, rtol=1e-4)


def shared(prior, images, sources, target=AFTER, **settings):
    """The rule with shared attention, and what it does."""
    delta = rule(prior, sources, target, attention=SharedAttentionConfig(**settings))
    guided(delta, images)
    return images.grad


def test_attention_that_is_shared_never_changes_nothing(prior):
    sources = renders(seed=5).detach()
    plain = renders()
    guided(rule(prior, sources), plain)
    off = shared(prior, renders(), sources, cross=0.0, own=0.0)
    torch.testing.assert_close(off, plain.grad, atol=1e-5, rtol=1e-3)
    on = shared(prior, renders(), sources, cross=1.0, own=1.0)
    assert (on - off).abs().max() > 10 * (off - plain.grad).abs().max()


def test_equal_scenes_and_prompts_that_share_attention_differ_by_rounding(prior):
    images = renders()
    sources = images.detach().clone()
    assert shared(prior, images, sources, BEFORE, cross=1.0, own=1.0).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (PlainPromptsConfig(), ["", "", "", "", ""]),
        (
            DirectionalPromptsConfig(),
            [", front view", ", side view", ", back view", ", side view", ", overhead view"],
        ),
        (
            DirectionalPromptsConfig(words=ViewWordsConfig(right="right of {prompt}")),
            [", front view", ", side view", ", back view", "right of ", ", overhead view"],
        ),
        (
            InterpolatedPromptsConfig(),
            [", front view", ", side view", ", back view", ", side view", ", overhead view"],
        ),
    ],
)
def test_the_text_of_a_view_is_the_one_that_is_encoded_for_it(prior, kind, words):
    """Told by its embedding, at angles where no two texts are mixed."""
    prompts = build_view_prompts(kind, prior, "a duck")
    around = Angles(torch.tensor([0.0, 90.0, 180.0, -90.0, 0.0]), torch.tensor([0.0] * 4 + [80.0]))
    found = texts_at(prompts, around)
    assert found == [f"{x}a duck" if x.endswith(" ") else f"a duck{x}" for x in words]
    encoded = prior.encode_prompt(found)
    torch.testing.assert_close(prompts.at(around).positive.tokens, encoded.tokens)


def test_between_two_directions_the_nearer_one_tells_the_words(prior):
    prompts = build_view_prompts(InterpolatedPromptsConfig(), prior, "a duck")
    around = Angles(torch.tensor([30.0, 60.0, 120.0, 150.0]), torch.zeros(4))
    assert [text.split()[-2] for text in texts_at(prompts, around)] == [
        "front",
        "side",
        "side",
        "back",
    ]


def test_words_for_views_share_attention_with_themselves_in_prompts_of_unlike_lengths(prior):
    before, after = prompts_of(prior, "a duck"), prompts_of(prior, "a big duck")
    sharing = ViewSharing(SharedAttentionConfig(), prior, before, after)
    around = Angles(torch.tensor([0.0, 90.0]), torch.zeros(2))
    for source, target in zip(texts_at(before, around), texts_at(after, around), strict=True):
        (edit,) = sharing.between(source, target).edits
        for word in source.split()[-2:]:
            theirs, ours = tokens_of(prior, source, word), tokens_of(prior, target, word)
            assert theirs != ours
            assert edit.share[list(ours)].all()
            assert edit.mapping[list(theirs), list(ours)].all()
        end = len(prior.text.towers[0].tokenizer(target).input_ids) - 1
        shift = len(tokens_of(prior, target, target)) - len(tokens_of(prior, source, source))
        assert edit.mapping[end - shift, end] == 1.0


def test_views_are_predicted_together_where_timestep_and_words_places_are_alike(prior):
    """Words for the side that are as many tokens more in both prompts still move the end."""
    longer = ViewWordsConfig(side="{prompt} seen from the side")
    around = Angles(torch.tensor([0.0, 0.0, 90.0, 0.0]), torch.zeros(4))
    t = torch.tensor([100, 300, 100, 100])
    for kind, wanted in (
        (PlainPromptsConfig(), [[0, 2, 3], [1]]),
        (DirectionalPromptsConfig(words=longer), [[0, 3], [1], [2]]),
    ):
        before, after = (build_view_prompts(kind, prior, x) for x in ("a duck", "a big duck"))
        sharing = ViewSharing(SharedAttentionConfig(), prior, before, after)
        assert [rows.tolist() for rows, _ in sharing.groups(around, t)] == wanted


def test_a_view_s_shared_difference_is_that_of_its_texts(prior):
    images, sources, around = renders(), renders(seed=5).detach(), cameras()
    delta = rule(prior, sources, "a red big fox left of a mushroom", attention=ALL_SHARED)
    latents, source = prior.encode_images(images).detach(), prior.encode_images(sources)
    t = torch.tensor([700, 700])
    noisy = noisy_latents(prior, latents, t, generator=torch.Generator().manual_seed(2))
    texts = zip(
        texts_at(delta.original.prompts, around), texts_at(delta.prompts, around), strict=True
    )
    found = delta._delta(latents, source, noisy, around)
    uncond = prior.encode_negative([""])
    for row, (before, after) in enumerate(texts):
        edit = EditedPromptConfig(after, cross_steps=(0.0, 1.0), self_steps=(0.0, 1.0))
        one = slice(row, row + 1)
        expected = shared_delta_denoising_gradient(
            PromptToPromptPrior(prior, PromptToPromptConfig(before, (edit,))),
            DeltaBranch(latents[one], prior.encode_prompt([after]), uncond),
            DeltaBranch(source[one], prior.encode_prompt([before]), uncond),
            t=t[one],
            noise=noisy.noise[one],
            guidance_scale=delta.config.guidance_scale,
        )
        torch.testing.assert_close(found[one], expected, atol=1e-4, rtol=1e-4)


def test_outside_of_a_box_latents_are_left_alone(prior):
    images, sources, seen = renders(), renders(seed=5).detach(), []
    delta = rule(prior, sources, mask=BoxMaskConfig(LEFT))
    encode = prior.encode_images

    def watched(pictures):
        latents = encode(pictures)
        if latents.requires_grad:
            latents.register_hook(seen.append)
        return latents

    delta.prior.encode_images = watched
    try:
        guided(delta, images)
    finally:
        del delta.prior.encode_images
    inside = box_masks([LEFT], cameras(), tuple(seen[0].shape[-2:])) > 0.0
    outside = (~inside).expand_as(seen[0])
    assert outside.any()
    assert not seen[0][outside].any()
    assert seen[0][~outside].abs().mean() > 0.0


def test_kept_pixels_are_pulled_back_to_the_original():
    images, sources = renders(), renders(seed=5).detach()
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, :, :4] = 1.0
    kept_loss(images, sources, mask).backward()
    expected = (images.detach() - sources) / 2
    expected[:, :, :8] = 0.0
    torch.testing.assert_close(images.grad, expected)


def test_word_masks_are_of_zeros_and_ones_and_grow_with_a_lower_threshold(prior):
    original = Original(lambda cameras: None, prompts_of(prior, BEFORE), "duck")
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    sizes = []
    for threshold in (0.999, 0.5):
        config = WordMaskConfig(threshold=threshold, widen=0)
        find = build_mask(config, prior, prompts_of(prior, AFTER), original)
        mask = find(latents, latents + 0.3, cameras(), torch.Generator().manual_seed(2))
        assert mask.shape == (2, 1, 8, 8)
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        sizes.append(int(mask.sum()))
    assert 0 < sizes[0] < sizes[1]


def test_places_that_see_more_of_what_stays_are_left_out(prior):
    original = Original(lambda cameras: None, prompts_of(prior, BEFORE), "duck")
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def mask(**settings):
        config = WordMaskConfig(threshold=0.5, widen=0, **settings)
        find = build_mask(config, prior, prompts_of(prior, AFTER), original)
        return find(latents, latents, cameras(), torch.Generator().manual_seed(2)).bool()

    less = mask(keep_word="mushroom")
    assert 0 < less.sum() < mask().sum()
    assert not (less & ~mask()).any()
    with pytest.raises(StudioError, match="'teapot' is not in the prompt"):
        mask(keep_word="teapot")


def tokens_of(prior, text, *words):
    """Places of words, by the tokenizer's own offsets."""
    encoded = prior.text.towers[0].tokenizer(text, return_offsets_mapping=True)
    spans = [(text.index(word), text.index(word) + len(word)) for word in words]
    return tuple(
        k
        for k, (first, last) in enumerate(encoded.offset_mapping)
        if last > first and any(low <= first and last <= high for low, high in spans)
    )


def test_words_are_looked_up_without_encoders_that_were_dropped(tiny_pipelines):
    memory = PriorMemoryConfig(text_encoder="drop")
    folder = str(tiny_pipelines["pocket"])
    prior = load_prior(DiffusersPriorConfig(model=folder, memory=memory), torch.device("cpu"))
    rule(prior, renders(), mask=WordMaskConfig(keep_word="mushroom"), attention=ALL_SHARED)
    object_tokens(prior, BEFORE, [LayoutObject(LEFT, prompts_of(prior, "a red duck"))])
    assert not prior.text.is_loaded


def test_the_largest_layer_that_shares_its_own_attention_may_be_told(prior):
    before, after = prompts_of(prior, BEFORE), prompts_of(prior, AFTER)
    for most in (None, 16):
        sharing = ViewSharing(SharedAttentionConfig(own_max_tokens=most), prior, before, after)
        (edit,) = sharing.between(BEFORE, AFTER).edits
        assert edit.config.self_max_tokens == most
    with pytest.raises(UnsupportedModel, match="up to 15 image tokens"):
        ViewSharing(SharedAttentionConfig(own_max_tokens=15), prior, before, after)


def test_what_stands_for_a_word_is_new_or_the_word_itself(prior):
    # Letters are tokens of the tiny tokenizer, so words that share none are used.
    before, swapped = "a red duck by the sea", "a red fox by the sea"
    mine, theirs = changed_tokens(prior, before, swapped, "duck")
    assert mine == tokens_of(prior, before, "duck")
    assert set(tokens_of(prior, swapped, "fox")) >= set(theirs)
    assert theirs
    added = "a red duck by the sea at noon"
    mine, theirs = changed_tokens(prior, before, added, "duck")
    assert set(theirs) == {*tokens_of(prior, added, "duck"), *tokens_of(prior, added, "at", "noon")}


def test_a_word_that_is_missing_or_dropped_is_an_error(prior):
    with pytest.raises(StudioError, match=r"edit\.word is empty"):
        rule(prior, None, word=" ", mask=WordMaskConfig())
    with pytest.raises(StudioError, match="'cactus' is not in the prompt"):
        rule(prior, None, word="cactus", mask=WordMaskConfig())
    with pytest.raises(StudioError, match="says nothing in the place of 'duck'"):
        changed_tokens(prior, "a red duck", "a red", "duck")


def test_prompts_with_negatives_for_other_views_are_refused(prior):
    prompts = build_view_prompts(PerpNegPromptsConfig(), prior, AFTER)
    original = Original(lambda cameras: renders().detach(), prompts_of(prior, BEFORE))
    delta = build_guidance(DeltaEditConfig(), prior, prompts, seed=0, original=original)
    with pytest.raises(UnsupportedModel, match="perp_neg"):
        guided(delta, renders())


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"threshold is 1\.0"):
        WordMaskConfig(threshold=1.0)
    with pytest.raises(ValueError, match=r"cross is 1\.5"):
        SharedAttentionConfig(cross=1.5)
    with pytest.raises(ValueError, match="widen is -1"):
        WordMaskConfig(widen=-1)
    with pytest.raises(ValueError, match="keep"):
        DeltaEditConfig(keep=-1.0)

"""Priors with subjects: off is plain, text alone where nobody is, batches, phrases, layouts."""

from __future__ import annotations

import pytest
import torch

from image_tools.configs import DdimConfig
from image_tools.control.regional import RegionalPrior
from image_tools.control.regional_configs import RegionalConfig, RegionConfig
from image_tools.diffusion.conditions import as_condition
from image_tools.diffusion.lora_apply import attach_to_prior, detach_from_prior, prior_modules
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.sampling import sample_images
from image_tools.editing.align import WordsError, tokenize_prompt
from image_tools.errors import UnsupportedModel
from image_tools.personalization.ip_adapter_configs import ViewFadeConfig
from image_tools.personalization.ms_diffusion import (
    MSAdapter,
    MSDiffusionPrior,
    stack_subjects,
)
from image_tools.personalization.ms_diffusion_configs import (
    AutoLayoutConfig,
    MSDiffusionConfig,
    MSShape,
    MSSubjectConfig,
)
from image_tools.personalization.ms_diffusion_subjects import (
    phrase_embeddings,
    see_subjects,
    words_of_phrases,
)
from tests.image_tools.personalization.subjects import images_of, load_tiny
from tests.image_tools.personalization.tiny_subjects import (
    PROMPT,
    rows_of_subjects,
    tiny_adapter,
    two_subjects,
)
from tests.image_tools.random_loras import random_lora

SCALE = 4.0


class Bench:
    """A prior, its adapter and two subjects."""

    def __init__(self, plain) -> None:
        self.plain = plain
        self.clip, self.adapter = tiny_adapter(plain)
        self.rows = self.subjects()

    def subjects(self, **settings):
        return rows_of_subjects(self.plain, self.clip, self.adapter, two_subjects(**settings))


@pytest.fixture(scope="module", params=["sdxl", "pocket"])
def bench(request, tiny_pipelines):
    return Bench(load_tiny(tiny_pipelines, request.param))


@pytest.fixture(scope="module")
def small(tiny_pipelines):
    return Bench(load_tiny(tiny_pipelines, "sd1"))


@torch.no_grad()
def guided(prior, *, scale: float = SCALE, size=(8, 8)):
    latents = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(1))
    t = torch.full((2,), 501)
    cond, uncond = prior.encode_prompt([PROMPT]), prior.encode_negative([""])
    return prior.guided_noise(latents, t, cond, uncond, scale)


def test_off_it_is_the_plain_prior_bit_for_bit(bench):
    off = MSDiffusionPrior(bench.plain, bench.adapter, bench.subjects(scale=0.0))
    assert isinstance(off, NoisePrior)
    assert torch.equal(guided(off), guided(bench.plain))


def test_off_it_leaves_a_lora_alone_and_on_it_acts_beside_it(small):
    lora, plain = random_lora(prior_modules(small.plain)), guided(small.plain)
    off = MSDiffusionPrior(small.plain, small.adapter, small.subjects(scale=0.0))
    on = MSDiffusionPrior(small.plain, small.adapter, small.rows)
    alone = guided(on)
    attach_to_prior(small.plain, lora, name="style", weight=1.0)
    try:
        with_lora, both = guided(small.plain), guided(on)
        assert torch.equal(guided(off), with_lora)
    finally:
        detach_from_prior(small.plain, "style")
    for one, other in ((with_lora, plain), (both, with_lora), (both, alone)):
        assert (one - other).abs().max() > 1e-3
    assert torch.equal(guided(off), plain)


def test_subjects_act_and_leave_nothing_behind(bench):
    before, plain = dict(bench.plain.unet.attn_processors), guided(bench.plain)
    prior = MSDiffusionPrior(bench.plain, bench.adapter, bench.rows)
    assert (guided(prior) - plain).abs().max() > 1e-3
    after = bench.plain.unet.attn_processors
    assert all(after[name] is before[name] for name in before)
    assert torch.equal(guided(bench.plain), plain)


@torch.no_grad()
def test_the_unconditional_half_and_empty_boxes_are_text_alone(bench):
    """At a scale of 0 guidance is the unconditional half."""
    nowhere = MSDiffusionPrior(bench.plain, bench.adapter, bench.rows.kept(torch.tensor([False])))
    nowhere.subjects.scales.fill_(1.0)
    assert torch.equal(guided(nowhere), guided(bench.plain))
    on = MSDiffusionPrior(bench.plain, bench.adapter, bench.rows)
    assert torch.equal(guided(on, scale=0.0), guided(bench.plain, scale=0.0))


def test_each_image_of_a_batch_has_its_own_subjects(small):
    """Also where one has fewer, and on latents that are not square."""
    first, second = small.rows, small.subjects()
    second.boxes[:] = second.boxes.flip(1)
    one = type(first)(*(part[:, :1] for part in first._parts()))
    both = MSDiffusionPrior(small.plain, small.adapter, stack_subjects([one, second]))
    found = guided(both, size=(8, 12))
    for row, own in enumerate((one, second)):
        alone = guided(both.showing(own), size=(8, 12))
        torch.testing.assert_close(found[row], alone[row], atol=1e-5, rtol=1e-5)
    assert (found[0] - guided(both.showing(second), size=(8, 12))[0]).abs().max() > 1e-3


@torch.no_grad()
def test_tokens_depend_on_image_phrase_and_box(small):
    config, images = two_subjects(), images_of(2, seed=4).split(1)

    def tokens(config, images):
        seen = see_subjects(small.plain, small.clip, config, images, prompt=PROMPT)
        return seen.at(small.adapter).tokens[0, 0]

    first = tokens(config, images)
    assert torch.equal(first, small.rows.tokens[0, 0])
    duck, mushroom = config.subjects
    moved = MSSubjectConfig(duck.images, "duck", (0.0, 0.0, 0.1, 0.1))
    renamed = MSSubjectConfig(duck.images, "red", duck.box)
    for changed in (moved, renamed):
        other = MSDiffusionConfig("", "", (changed, mushroom))
        assert (tokens(other, images) - first).abs().max() > 1e-4
    assert (tokens(config, images[::-1]) - first).abs().max() > 1e-4
    learned = two_subjects(grounding="learned")
    other = MSDiffusionConfig("", "", (moved, mushroom), grounding="learned")
    assert torch.equal(tokens(learned, images), tokens(other, images))


def test_several_images_of_a_subject_share_its_box_phrase_and_scale(small):
    subject = MSSubjectConfig(("a.png", "b.png"), "duck", (0.0, 0.0, 0.5, 1.0), scale=0.2)
    config = MSDiffusionConfig("", "", (subject,))
    seen = see_subjects(small.plain, small.clip, config, [images_of(2)], prompt=PROMPT)
    rows = seen.at(small.adapter)
    assert rows.tokens.shape[:2] == (1, 2)
    assert rows.boxes[0].tolist() == [list(subject.box)] * 2
    assert rows.scales.tolist() == [[pytest.approx(0.2)] * 2]
    assert torch.equal(rows.words[0, 0], rows.words[0, 1])
    assert not torch.equal(rows.tokens[0, 0], rows.tokens[0, 1])


@torch.no_grad()
def test_subjects_may_have_other_boxes_in_each_row(small):
    images = images_of(2, seed=4).split(1)
    seen = see_subjects(small.plain, small.clip, two_subjects(), images, prompt=PROMPT)
    boxes = torch.stack([seen.boxes, seen.boxes.flip(0)])
    rows = seen.at(small.adapter, boxes)
    assert torch.equal(rows.boxes, boxes)
    for row, own in enumerate(boxes):
        alone = seen.at(small.adapter, own[None])
        torch.testing.assert_close(rows.tokens[row], alone.tokens[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rows.tokens[:1], small.rows.tokens, atol=1e-5, rtol=1e-5)
    assert (rows.tokens[0] - rows.tokens[1]).abs().max() > 1e-4


@torch.no_grad()
def test_views_of_the_back_see_less_of_the_subjects(small):
    least = ViewFadeConfig(least=0.25)
    prior = MSDiffusionPrior(small.plain, small.adapter, small.rows, fade=least)
    text = small.plain.encode_prompt([PROMPT] * 3)
    views = torch.tensor([0.0, 60.0, 180.0])
    for condition, expected in (
        (text.seen_from(views), [1.0, 0.625, 0.25]),
        (text, [1.0, 1.0, 1.0]),
    ):
        told = prior.modify(as_condition(condition), 3, is_cond=True)
        scales = told.additions[0].subjects.scales[:, 0]
        torch.testing.assert_close(scales, 0.6 * torch.tensor(expected))


def test_alike_named_subjects_take_the_words_in_order(small):
    tokenizer = small.plain.text.towers[0].tokenizer
    tokens = tokenize_prompt(tokenizer, "a duck beside a Duck, and a cat")
    found = words_of_phrases(tokens, ["duck", "a cat", "Duck"])
    for row, words in zip(found, ([1], [6, 7], [4]), strict=True):
        places = [token for word in words for token in tokens.tokens_of[word]]
        assert row.nonzero()[:, 0].tolist() == places
    with pytest.raises(WordsError, match=r"'duck' stands 2 times .* expected at least 3"):
        words_of_phrases(tokens, ["duck"] * 3)
    long = tokenize_prompt(tokenizer, "a " * 90 + "duck")
    with pytest.raises(WordsError, match="lies behind the 77 tokens"):
        words_of_phrases(long, ["duck"])


@torch.no_grad()
def test_phrases_are_pooled_as_their_encoder_does_or_by_their_mean(bench):
    prior, tower = bench.plain, bench.plain.text.towers[0]
    found = phrase_embeddings(prior, ["duck", "red mushroom"])
    assert found.shape == (2, tower.encoder.config.hidden_size)
    encoded = tower.tokenizer(["red mushroom"], return_tensors="pt")
    if tower.encoder.config.model_type == "bert":
        expected = tower.encoder(**encoded)[0].mean(dim=1)
    else:
        expected = tower.encoder(encoded.input_ids).pooler_output
    torch.testing.assert_close(found[1:], expected, atol=1e-5, rtol=1e-4)


def test_layouts_are_found_while_drawing_and_begin_anew(small):
    layout = AutoLayoutConfig(start_step=2)
    rows = small.subjects(layout=layout)
    prior = MSDiffusionPrior(small.plain, small.adapter, rows, layout=layout, steps=3)

    def draw(prior):
        generators = [torch.Generator().manual_seed(k) for k in range(2)]
        return sample_images(prior, [PROMPT] * 2, generators=generators, config=DdimConfig(steps=3))

    first = draw(prior)
    assert torch.equal(draw(prior), first), "nothing of the picture before is left"
    boxed = draw(MSDiffusionPrior(small.plain, small.adapter, rows))
    assert (first - boxed).abs().max() > 1e-3
    with pytest.raises(ValueError, match="layout came without steps"):
        MSDiffusionPrior(small.plain, small.adapter, rows, layout=layout)


@torch.no_grad()
@pytest.mark.parametrize("inner", ["subjects", "regions"])
def test_it_composes_with_regions_in_either_order(small, inner):
    """With the base's prompt in every region, it is the subjects alone."""
    plan = RegionalConfig("1,1", (RegionConfig(PROMPT), RegionConfig(PROMPT)), base_ratio=0.3)
    alone = MSDiffusionPrior(small.plain, small.adapter, small.rows)
    if inner == "subjects":
        prior = RegionalPrior(alone, plan)
    else:
        prior = MSDiffusionPrior(RegionalPrior(small.plain, plan), small.adapter, small.rows)
    torch.testing.assert_close(guided(prior), guided(alone), atol=1e-4, rtol=1e-4)


def test_gradients_reach_latents_and_a_training_adapter(small):
    small.adapter.requires_grad_(True)
    try:
        prior = MSDiffusionPrior(small.plain, small.adapter, small.rows)
        latents = torch.zeros(1, 4, 8, 8, requires_grad=True)
        cond = small.plain.encode_prompt([PROMPT])
        prior.predict_noise(latents, torch.tensor([300]), cond).square().sum().backward()
        assert latents.grad.abs().sum() > 0.0
        for name, parameter in small.adapter.ms_adapter.named_parameters():
            assert parameter.grad.abs().sum() > 0.0, name
    finally:
        small.adapter.zero_grad()
        small.adapter.requires_grad_(False)


def test_an_adapter_of_another_text_is_refused(small):
    wanted = r"reads text of 16 numbers, the adapter was made for 2048"
    with torch.device("meta"), pytest.raises(UnsupportedModel, match=wanted):
        MSAdapter(small.plain.unet, MSShape())

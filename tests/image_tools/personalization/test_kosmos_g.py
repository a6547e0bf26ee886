"""KOSMOS-G in front of a prior: interleaved prompts, off means the plain prior, tools on top."""

from __future__ import annotations

import pytest
import torch

from image_tools.control.controlnet import Control, ControlledPrior
from image_tools.diffusion.lora_apply import attach_to_prior, detach_from_prior, prior_modules
from image_tools.errors import UnsupportedModel
from image_tools.personalization.kosmos_g import KosmosGModel, KosmosGPrior
from image_tools.personalization.kosmos_g_aligner import new_aligner
from image_tools.personalization.kosmos_g_configs import AlignerSettings
from image_tools.personalization.kosmos_g_prompt import PromptTokens, stack_rows
from image_tools.personalization.kosmos_g_words import (
    InterleavedPromptError,
    check_image_count,
    without_images,
)
from image_tools.vision.clip_images import CLIP_MEAN, CLIP_STD
from renderers.errors import ShapeError
from tests.image_tools.control.tiny_controls import condition_images, tiny_controlnet
from tests.image_tools.personalization.subjects import images_of, load_tiny
from tests.image_tools.personalization.tiny_kosmos import TEXT_WIDTH, tiny_kosmos
from tests.image_tools.random_loras import random_lora

BOS, IMAGE, END = 0, 38, 39  # of the tiny vocabulary
PROMPT = "a <i> hat, a <i>"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_kosmos(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def plain(tiny_pipelines):
    return load_tiny(tiny_pipelines)


@pytest.fixture
def prior(plain, model):
    return KosmosGPrior(plain, model, images_of(2))


@torch.no_grad()
def predictions(prior, prompt: str, negative: str = ""):
    """Guided and plain noise for a fixed input."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([501, 501])
    cond, uncond = prior.encode_prompt([prompt]), prior.encode_negative([negative])
    return prior.guided_noise(latents, t, cond, uncond, 7.5), prior.predict_noise(latents, t, cond)


def equal(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_images_take_the_places_after_their_token(model):
    row = model.tokens.read(PROMPT, 2)
    a, hat = model.tokens.words("a"), model.tokens.words(" hat, a ")
    shown = [IMAGE] * 5
    assert list(row.ids) == [BOS, *a, *shown, END, *hat, *shown, END]
    taken = [False, *[True] * 4, False]
    assert list(row.is_image) == [False, False, *taken, *[False] * len(hat), *taken]
    assert model.tokens.read("", 0).ids == (BOS,)


def test_words_are_the_longest_pieces_by_the_dictionarys_numbers(model):
    """The tiny dictionary lists z first and the duck fourth from its end, after four specials."""
    words = model.tokens.words
    assert words("red duck") == [*words("red"), *words("duck")]
    assert words("duck") == [32]
    assert words("z") == [35, 4]
    assert words("é")[-1] == 3


def test_batches_are_padded_at_the_end(model):
    rows = [model.tokens.read("a", 0), model.tokens.read("a red duck", 0)]
    batch = stack_rows(rows)
    assert batch.ids[0].tolist() == [*rows[0].ids, 1, 1]
    assert batch.is_token.tolist() == [[True, True, False, False], [True] * 4]
    assert not batch.is_image.any()


@torch.no_grad()
def test_states_are_those_of_the_language_model_with_features_in_place(model):
    """Against embeddings put together by hand, image by image."""
    images = images_of(2, size=28)
    batch = stack_rows([model.tokens.read(PROMPT, 2)])
    pixels = (images - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    seen = [model.mllm.get_image_features(p[None].movedim(-1, 1)).pooler_output for p in pixels]
    embeddings = model.mllm.get_input_embeddings()(batch.ids)
    embeddings[0, batch.is_image[0].nonzero()[:, 0]] = torch.cat(seen, dim=1)[0]
    wanted = model.mllm.text_model(inputs_embeds=embeddings).last_hidden_state
    found = model.states(batch, model.image_features(images))
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found, model.states(batch, model.image_features(images.flip(0))))


@torch.no_grad()
def test_prompts_of_a_batch_do_not_mix(model):
    images = images_of(3)
    sets = [images[:2], images[:0], images[2:]]
    prompts = [PROMPT, "a red duck", "<i>"]
    together = model.embed(prompts, sets)
    for row, prompt, own in zip(together, prompts, sets, strict=True):
        torch.testing.assert_close(row, model.embed([prompt], [own])[0], atol=2e-5, rtol=1e-4)


def test_the_prior_reads_the_aligners_states(prior, model):
    text = prior.encode_prompt([PROMPT, PROMPT])
    assert text.tokens.shape == (2, 77, TEXT_WIDTH)
    assert text.pooled is None
    with torch.no_grad():
        assert torch.equal(text.tokens[:1], model.embed([PROMPT], [prior.images]))


def test_what_guidance_leads_away_from_is_the_first_token_or_the_negative_prompt(prior, model):
    with torch.no_grad():
        nothing = model.aligner(
            model.mllm.text_model(input_ids=torch.tensor([[BOS]])).last_hidden_state,
            torch.ones(1, 1, dtype=torch.bool),
        )
        bad = model.embed(["red"], [prior.images[:0]])
    torch.testing.assert_close(prior.encode_negative([""]).tokens, nothing)
    assert torch.equal(prior.encode_negative(["red"]).tokens, bad)


def test_only_the_text_is_another(prior, plain):
    """The prediction is the plain prior's for the aligner's text."""
    cond, uncond = prior.encode_prompt([PROMPT]), prior.encode_negative([""])
    latents, t = torch.ones(1, 4, 8, 8), torch.tensor([300])
    with torch.no_grad():
        found = prior.guided_noise(latents, t, cond, uncond, 7.5)
        wanted = plain.guided_noise(latents, t, cond, uncond, 7.5)
    assert torch.equal(found, wanted)
    assert not equal(predictions(prior, PROMPT), predictions(plain, "a hat, a"))


def test_off_is_the_plain_prior_bit_for_bit(prior, plain):
    wanted, before = predictions(plain, "a hat, a", "red"), prior.fingerprint
    with prior.off():
        assert equal(predictions(prior, PROMPT, "red"), wanted)
        assert prior.fingerprint == plain.fingerprint
    assert prior.fingerprint == before
    assert before != plain.fingerprint
    assert equal(predictions(plain, "a hat, a", "red"), wanted)


def test_prompts_without_images_go_through_it_too(plain, model):
    text_only = KosmosGPrior(plain, model)
    assert text_only.encode_prompt(["a red duck"]).tokens.shape == (1, 77, TEXT_WIDTH)
    assert not equal(predictions(text_only, "a red duck"), predictions(plain, "a red duck"))


def test_words_of_a_view_after_the_images_change_what_is_read(prior):
    front, back = (
        prior.encode_prompt([f"{PROMPT}, {side} view"]).tokens for side in ("front", "back")
    )
    assert not torch.allclose(front, back)


def test_other_images_are_other_text(prior):
    first, fingerprint = prior.encode_prompt([PROMPT]).tokens, prior.fingerprint
    prior.show(images_of(2, seed=4))
    assert not torch.allclose(prior.encode_prompt([PROMPT]).tokens, first)
    assert prior.fingerprint != fingerprint
    with pytest.raises(ShapeError, match="images has shape"):
        prior.show(torch.zeros(16, 16, 3))


def test_controls_stand_on_it_as_on_any_prior(prior, plain):
    controlnet, images = tiny_controlnet(plain), condition_images(plain)
    text = prior.encode_prompt([PROMPT])
    latents, t = torch.ones(2, 4, 8, 8), torch.tensor([300, 300])
    control = Control(controlnet, images)
    with torch.no_grad():
        found = ControlledPrior(prior, [control]).predict_noise(latents, t, text)
        wanted = ControlledPrior(plain, [control]).predict_noise(latents, t, text)
        without = prior.predict_noise(latents, t, text)
    assert torch.equal(found, wanted)
    assert not torch.equal(found, without)


def test_a_lora_acts_below_it(prior, plain):
    before = predictions(prior, PROMPT)
    unet = {"unet": prior_modules(plain)["unet"]}
    attach_to_prior(plain, random_lora(unet), name="subject", weight=1.0)
    assert not equal(predictions(prior, PROMPT), before)
    detach_from_prior(plain, "subject")
    assert equal(predictions(prior, PROMPT), before)


def test_pockets_size_is_possible(tiny_pipelines, tmp_path):
    pocket = load_tiny(tiny_pipelines, "pocket")
    prior = KosmosGPrior(pocket, tiny_kosmos(tmp_path, queries=24), images_of(1))
    text = prior.encode_prompt(["a <i>"])
    assert text.tokens.shape == pocket.encode_prompt(["a duck"]).tokens.shape == (1, 24, 16)


def test_priors_that_read_something_else_are_refused(tiny_pipelines, plain, model):
    with pytest.raises(UnsupportedModel, match="wants a pooled vector beside them"):
        KosmosGPrior(load_tiny(tiny_pipelines, "sdxl"), model)
    settings = AlignerSettings(input_width=64, width=24, layers=1, heads=2, positions=80)
    wide = new_aligner(settings, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UnsupportedModel, match="of width 24, the prior reads 16"):
        KosmosGPrior(plain, KosmosGModel(model.mllm, wide, model.tokens))


def test_an_aligner_of_another_language_model_is_refused(model):
    settings = AlignerSettings(input_width=32, width=16, layers=1, heads=2, positions=80)
    other = new_aligner(settings, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UnsupportedModel, match="states of width 32, the language model's are 64"):
        KosmosGModel(model.mllm, other, model.tokens)


@pytest.mark.parametrize(("prompt", "images"), [("a <i>", 2), ("a hat", 2), ("<i> <i> <i>", 2)])
def test_another_number_of_images_is_refused(prior, prompt, images):
    times = prompt.count("<i>")
    message = f"has <i> {times} times, and there are {images} images - expected one image for each"
    with pytest.raises(InterleavedPromptError, match=message):
        prior.encode_prompt([prompt])


def test_images_of_a_negative_prompt_are_refused(prior):
    with pytest.raises(InterleavedPromptError, match="has <i> 1 times, and there are 0 images"):
        prior.encode_negative(["a <i>"])


def test_a_prompt_that_is_too_long_is_refused(prior):
    with pytest.raises(InterleavedPromptError, match=r"12 of them for 2 images - expected at most"):
        prior.encode_prompt([PROMPT + " duck" * 60])


def test_a_tokenizer_without_images_is_refused(model):
    tokenizer = model.tokens._tokenizer
    with pytest.raises(UnsupportedModel, match=r"numbers it 38 - expected one of its 30 rows"):
        PromptTokens(tokenizer, image_length=4, vocabulary=30)


def test_places_and_images_must_be_as_many(model):
    batch = stack_rows([model.tokens.read("<i>", 1)])
    with pytest.raises(ShapeError, match="0 images came for 1 places"):
        model.states(batch, None)


def test_words_alone():
    assert without_images("a <i> wearing a <i>, back view") == "a wearing a, back view"
    assert without_images("<i>") == ""
    assert without_images(" a hat ") == " a hat "
    check_image_count("a <i>", 1)

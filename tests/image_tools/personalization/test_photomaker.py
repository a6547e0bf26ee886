"""PhotoMaker as a prior: equal to the stock pipeline, delayed by timestep, and gone when off."""

from __future__ import annotations

import pytest
import torch

from image_tools.configs import DdimConfig
from image_tools.control.controlnet import Control, ControlledPrior
from image_tools.diffusion.conditions import as_condition, cat_conditions
from image_tools.diffusion.lora_apply import attach_to_prior, detach_from_prior, prior_modules
from image_tools.diffusion.modified import WrappedPrior
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.sampling import ddim_steps, sample_images
from image_tools.errors import UnsupportedModel
from image_tools.personalization.photomaker import (
    Person,
    PhotoMakerPrior,
    encode_repeated,
    merge_timestep,
    merge_timestep_of,
    photomaker_prior,
)
from image_tools.personalization.photomaker_files import write_photomaker
from image_tools.personalization.photomaker_prompts import TriggerError
from image_tools.personalization.photomaker_tokens import RepeatingTokenizer
from renderers.errors import StudioError
from tests.image_tools.control.tiny_controls import condition_images, tiny_controlnet
from tests.image_tools.personalization.subjects import load_tiny
from tests.image_tools.personalization.tiny_photomakers import (
    faces_of,
    portraits,
    tiny_photomaker,
)
from tests.image_tools.random_loras import random_lora

PROMPT, TEXT = "a man img, riding a duck", "a man, riding a duck"
STEPS, STRENGTH = 5, 40.0


@pytest.fixture(scope="module")
def plain(tiny_pipelines):
    return load_tiny(tiny_pipelines, "sdxl")


@pytest.fixture(scope="module")
def makers(plain):
    return {version: tiny_photomaker(plain, version) for version in ("v1", "v2")}


@pytest.fixture
def make(plain, makers):
    """Priors that know somebody; the plain one is left as it was."""
    made = []

    def build(merge_t=500, *, version="v1", **settings):
        photos, faces = portraits(), faces_of()
        made.append(
            photomaker_prior(
                plain, makers[version], photos, faces=faces, merge_t=merge_t, **settings
            )
        )
        return made[-1]

    yield build
    for prior in made:
        prior.remove()


@torch.no_grad()
def predictions(prior, prompt=PROMPT, times=(300, 300)):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    cond, uncond = prior.encode_prompt([prompt]), prior.encode_negative(["blurry"])
    t = torch.tensor(times)
    guided = prior.guided_noise(latents, t, cond, uncond, 4.0, rescale=0.3)
    return guided, prior.predict_output(latents, t, cond)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture(scope="module")
def pipeline(tiny_pipelines):
    """The stock pipeline."""
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    folder = tiny_pipelines["sdxl"]
    loaded = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    loaded.scheduler = DDIMScheduler.from_config(loaded.scheduler.config)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.mark.parametrize("version", ["v1", pytest.param("v2", marks=pytest.mark.slow)])
def test_pictures_equal_the_stock_pipeline_that_swaps_its_prompt(
    plain, makers, make, pipeline, tmp_path, version
):
    """Text and its pooled vector up to the step of the style strength, the person afterwards."""
    write_photomaker(tmp_path / "maker.bin", makers[version])
    weights = torch.load(tmp_path / "maker.bin", weights_only=True)["lora_weights"]
    pipeline.unload_lora_weights()
    pipeline.load_lora_weights(weights, adapter_name="photomaker")
    merge_t = merge_timestep_of(STRENGTH, [step.t for step in ddim_steps(plain, STEPS)])
    prior = make(merge_t, version=version)
    person = prior.encode_prompt([PROMPT])
    fused, pooled = person.tokens[..., 32:], person.pooled[..., 16:]

    def swap(pipe, step, t, tensors):
        if step + 1 > int(STRENGTH / 100 * STEPS):
            tensors["prompt_embeds"] = torch.cat([tensors["prompt_embeds"][:1], fused])
            tensors["add_text_embeds"] = torch.cat([tensors["add_text_embeds"][:1], pooled])
        return tensors

    stock = pipeline(
        TEXT, num_inference_steps=STEPS, guidance_scale=5.0, negative_prompt="blurry",
        generator=torch.Generator().manual_seed(5), output_type="pt", callback_on_step_end=swap,
        callback_on_step_end_tensor_inputs=["prompt_embeds", "add_text_embeds"],
    ).images.movedim(1, -1)  # fmt: skip
    config = DdimConfig(steps=STEPS, guidance_scale=5.0)

    def pictures(prior, prompt):
        generators = [torch.Generator().manual_seed(5)]
        return sample_images(
            prior, [prompt], generators=generators, config=config, negative_prompt="blurry"
        )

    assert (pictures(prior, PROMPT) - stock).abs().max() < 1e-5
    for step in (-1, 999):
        prior.merge_t = step
        assert (pictures(prior, PROMPT) - stock).abs().max() > 1e-4


@pytest.mark.parametrize(("version", "copies"), [("v1", 2), ("v2", 4)])
def test_what_is_fused_is_the_repeated_prompt(plain, make, version, copies):
    """The pooled vector, too, is that of the prompt with its class word repeated."""
    prior = make(version=version)
    assert len(prior.person.rows) == copies
    repeated, span = encode_repeated(plain, PROMPT, "img", copies)
    with torch.no_grad():
        read = [
            tower.encoder(
                RepeatingTokenizer(tower.tokenizer, "img", copies=copies)(
                    [PROMPT], padding="max_length", return_tensors="pt"
                ).input_ids,
                output_hidden_states=True,
            )
            for tower in plain.text.towers
        ]
    states = torch.cat([each.hidden_states[-2] for each in read], dim=-1)
    assert torch.equal(repeated.tokens, states)
    assert torch.equal(repeated.pooled, read[1].text_embeds)
    person = prior.encode_prompt([PROMPT, TEXT.replace("man", "girl img")])
    assert torch.equal(person.pooled[:1, 16:], repeated.pooled)
    inside = [place in span for place in range(77)]
    outside = [not each for each in inside]
    assert torch.equal(person.tokens[0, outside, 32:], repeated.tokens[0, outside])
    assert not torch.equal(person.tokens[0, inside, 32:], repeated.tokens[0, inside])
    assert torch.equal(person.tokens[:1, :, :32], plain.encode_prompt([TEXT]).tokens)


def test_photos_can_be_weighted(make):
    """Which mixes several people unevenly; v2 has two rows for each photo."""
    even = make(version="v2").encode_prompt([PROMPT]).tokens[..., 32:]
    prior = make(version="v2", photo_weights=(1.0, 0.5))
    uneven = prior.encode_prompt([PROMPT]).tokens[..., 32:]
    factors = torch.where(even == uneven, 1.0, uneven / even)[0]
    found = [row.mean().item() for row in factors if not torch.equal(row, torch.ones(32))]
    assert found == pytest.approx([0.5, 0.5])
    alone = make(version="v2", photo_weights=(1.0, 1.0))
    assert torch.equal(alone.encode_prompt([PROMPT]).tokens[..., 32:], even)
    assert alone.fingerprint != prior.fingerprint


def test_each_row_follows_its_own_timestep(make):
    prior = make(merge_t=500)
    mixed = predictions(prior, times=(501, 500))
    late = predictions(prior, times=(500, 500))
    prior.merge_t = -1
    text = predictions(prior, times=(501, 501))
    for both, first, second in zip(mixed, text, late, strict=True):
        torch.testing.assert_close(both[:1], first[:1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(both[1:], second[1:], atol=1e-5, rtol=1e-5)
    prior.merge_t = 999
    assert not same(predictions(prior, times=(501, 501)), text)


def test_stacked_conditions_follow_their_rows(make):
    """What guidance rules do that combine predictions by themselves."""
    prior = make(merge_t=500)
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([700, 100, 700, 100])
    cond, uncond = (
        as_condition(text).expand(2)
        for text in (prior.encode_prompt([PROMPT]), prior.encode_negative([""]))
    )
    with torch.no_grad():
        both = prior.predict_output(latents, t, cat_conditions([uncond, cond]))
        parts = [prior.predict_output(latents[:2], t[:2], uncond)]
        parts.append(prior.predict_output(latents[2:], t[2:], cond))
    torch.testing.assert_close(both, torch.cat(parts), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("subject", [False, True], ids=["alone", "with a LoRA"])
def test_off_is_the_plain_prior(plain, make, subject):
    if subject:
        lora = random_lora(prior_modules(plain), seed=9, ending=("to_k", "proj_in", "v_proj"))
        attach_to_prior(plain, lora, name="subject")
    try:
        wanted, before = predictions(plain, TEXT), plain.fingerprint
        prior = make(merge_t=999)
        assert not same(predictions(prior), wanted)
        assert same(predictions(plain, TEXT), wanted)  # others see nothing of it
        with prior.off():
            assert same(predictions(prior), wanted)
            assert prior.fingerprint == before
        prior.merge_t = -1
        assert not same(predictions(prior), wanted)  # the LoRA acts for the text alone too
        for _ in range(2):
            prior.remove()
            assert same(predictions(prior), wanted)
            assert same(predictions(plain, TEXT), wanted)
    finally:
        if subject:
            detach_from_prior(plain, "subject")


def test_a_weightless_lora_and_no_merging_are_the_plain_prior(plain, make):
    wanted = predictions(plain, TEXT)
    prior = make(merge_t=-1, lora_weight=0.0)
    assert same(predictions(prior), wanted)


def test_other_tools_stand_around_it(plain, make):
    net, images = tiny_controlnet(plain), condition_images(plain)
    prior = make(merge_t=300)
    wanted = predictions(prior, times=(301, 300))
    for strength in (0.0, 1.0):
        control = Control(net, images, strength=strength)
        found = predictions(ControlledPrior(prior, [control]), times=(301, 300))
        assert same(found, wanted) == (strength == 0.0)


def test_fingerprints_tell_people_and_moments_apart(plain, make):
    prior = make()
    assert isinstance(prior, NoisePrior)
    marks = {plain.fingerprint, prior.fingerprint}
    prior.merge_t = 400
    marks.add(prior.fingerprint)
    prior.person = Person(prior.person.rows + 1.0, prior.person.fuse)
    marks.add(prior.fingerprint)
    assert len(marks) == 4


def test_style_strength_is_a_share_of_the_noise():
    assert [merge_timestep(s, 1000) for s in (0, 20, 50, 100)] == [999, 799, 499, -1]
    times = [981 - 20 * step for step in range(50)]
    assert merge_timestep_of(20, times) == times[11]
    assert merge_timestep_of(0, times) == times[1]
    assert merge_timestep_of(100, times) == -1


def test_what_cannot_be_is_refused(plain, makers, make, tiny_pipelines):
    prior, maker = make(), makers["v1"]
    with pytest.raises(TriggerError, match="does not hold the trigger word"):
        prior.encode_prompt(["a man"])
    with pytest.raises(StudioError, match="got no photo"):
        photomaker_prior(plain, maker, portraits()[:0], faces=faces_of(0), merge_t=500)
    with pytest.raises(StudioError, match="got a WrappedPrior - expected a plain prior"):
        PhotoMakerPrior(WrappedPrior(plain), prior.person, maker.lora, merge_t=500)
    narrow = load_tiny(tiny_pipelines, "sd1")
    with pytest.raises(UnsupportedModel, match="rows have 32 numbers, the denoiser reads"):
        PhotoMakerPrior(narrow, prior.person, maker.lora, merge_t=500)

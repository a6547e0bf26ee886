"""Consistency guidance: the base at scale 0, the student's own guidance at the text scale."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from guidance.configs import PerpNegPromptsConfig, PlainPromptsConfig, SDSConfig
from guidance.critic import LoraCritic
from guidance.critic_configs import CriticConfig
from guidance.prompts import build_view_prompts
from guidance.sds import SDSGuidance
from image_tools.configs import DdimConfig
from image_tools.diffusion.lora_apply import attach_to_prior, loras_active, prior_modules
from image_tools.diffusion.modified import WrappedPrior
from image_tools.diffusion.parametrization import classifier_free_guidance
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.sampling import sample_images
from image_tools.personalization.consistency import (
    ConsistencyPrior,
    Student,
    consistency_guidance,
    consistency_of,
)
from image_tools.personalization.dreambooth_configs import LoraShapeConfig
from image_tools.personalization.loop import batch_generator
from image_tools.personalization.trainable_lora import new_lora
from renderers.errors import StudioError
from tests.image_tools.personalization.subjects import images_of, load_tiny, train_numbers

SHAPE = LoraShapeConfig(rank=2, text_rank=2)
SUBJECT, STYLE = "<pet> in <hatching> style", "a duck in flat style"
WORDS = {"<pet>": "a duck"}
STYLES = {"<hatching>": "flat"}


def _with_loras(tiny_pipelines, kind="sd1", names=("subject",)):
    """A prior with LoRAs that do something."""
    prior = load_tiny(tiny_pipelines, kind)
    _ = prior.text.towers
    for seed, name in enumerate(names):
        attach_to_prior(prior, new_lora(prior, SHAPE, batch_generator(seed, 0)), name=name)
        modules = prior_modules(prior).values()
        train_numbers(
            [p for m in modules for n, p in m.named_parameters() if f".{name}." in n], seed=seed
        )
    return prior


def _inputs(prior):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, prior.latent_channels, 8, 8, generator=generator)
    return latents, torch.tensor([100, 700])


def _guided(prior, prompt, scale, **settings):
    cond, uncond = prior.encode_prompt([prompt]), prior.encode_negative([""])
    latents, t = _inputs(prior)
    return prior.guided_noise(latents, t, cond, uncond, scale, **settings)


@pytest.mark.parametrize("kind", ["sd1", "sd2_v", "sdxl", "pocket"])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
@torch.no_grad()
def test_scale_zero_is_the_base_bit_for_bit(tiny_pipelines, kind, rescale):
    base = _guided(load_tiny(tiny_pipelines, kind), "a red a duck", 7.5, rescale=rescale)
    prior = ConsistencyPrior(
        _with_loras(tiny_pipelines, kind), [Student({"subject": 1.0}, WORDS, scale=0.0)]
    )
    assert torch.equal(_guided(prior, "a red <pet>", 7.5, rescale=rescale), base)


@pytest.mark.parametrize("kind", ["sd1", "sd2_v", "sdxl"])
@torch.no_grad()
def test_the_text_scale_is_guidance_of_the_student_with_the_base_s_negative(tiny_pipelines, kind):
    plain = _with_loras(tiny_pipelines, kind)
    latents, t = _inputs(plain)
    cond = plain.predict_output(latents, t, plain.encode_prompt(["a red <pet>"]))
    with loras_active(prior_modules(plain), {}):
        uncond = plain.predict_output(latents, t, plain.encode_negative([""]))
    expected = plain.to_noise(classifier_free_guidance(uncond, cond, 6.0), latents, t)
    prior = ConsistencyPrior(plain, [Student({"subject": 1.0}, WORDS, scale=6.0)])
    torch.testing.assert_close(_guided(prior, "a red <pet>", 6.0), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_it_costs_three_evaluations_and_restores_what_acts(tiny_pipelines):
    plain = _with_loras(tiny_pipelines, names=("subject", "other"))
    before = _guided(plain, "a duck", 7.5)
    prior = ConsistencyPrior(plain, [Student({"subject": 0.5}, WORDS)])
    count = prior.denoiser_evaluations
    _guided(prior, "a <pet>", 7.5)
    assert prior.denoiser_evaluations - count == 3 * 2
    assert torch.equal(_guided(plain, "a duck", 7.5), before)
    assert isinstance(prior, NoisePrior)


@torch.no_grad()
def test_a_scale_may_change_between_calls(tiny_pipelines):
    plain = _with_loras(tiny_pipelines)
    prior = ConsistencyPrior(plain, [Student({"subject": 1.0}, WORDS, scale=0.0)])
    results = []
    for scale in (0.0, 2.0, 4.0):
        prior.students = (replace(prior.students[0], scale=scale),)
        results.append(_guided(prior, "a <pet>", 7.5))
    assert not torch.equal(results[0], results[1])
    torch.testing.assert_close(
        results[2] - results[0], 2.0 * (results[1] - results[0]), atol=1e-4, rtol=1e-3
    )


@torch.no_grad()
def test_strength_is_a_factor_of_all_scales(tiny_pipelines):
    plain = _with_loras(tiny_pipelines, names=("subject", "style"))
    students = [Student({"subject": 1.0}, WORDS, 3.0), Student({"style": 0.6}, STYLES, 2.0)]
    prior = ConsistencyPrior(plain, students)
    prior.strength = 0.5
    assert prior.scales == [1.5, 1.0]
    halved = ConsistencyPrior(plain, [replace(one, scale=one.scale / 2) for one in students])
    assert torch.equal(_guided(prior, SUBJECT, 7.5), _guided(halved, SUBJECT, 7.5))


def test_it_is_found_below_what_modifies_it(tiny_pipelines):
    plain = _with_loras(tiny_pipelines)
    prior = ConsistencyPrior(plain, [Student({"subject": 1.0}, WORDS)])
    assert consistency_of(prior) is consistency_of(WrappedPrior(WrappedPrior(prior))) is prior
    assert consistency_of(plain) is consistency_of(WrappedPrior(plain)) is None


@torch.no_grad()
def test_two_students_are_two_terms_that_do_not_meet(tiny_pipelines):
    plain = _with_loras(tiny_pipelines, names=("subject", "style"))
    students = [Student({"subject": 1.0}, WORDS, 3.0), Student({"style": 0.6}, STYLES, 2.0)]
    both = _guided(ConsistencyPrior(plain, students), SUBJECT, 7.5)
    latents, t = _inputs(plain)

    def noise(prompt, loras, encode=plain.encode_prompt):
        with loras_active(prior_modules(plain), loras):
            return plain.predict_noise(latents, t, encode([prompt]))

    uncond, base = noise("", {}, plain.encode_negative), noise(STYLE, {})
    first = noise("<pet> in flat style", {"subject": 1.0})
    second = noise("a duck in <hatching> style", {"style": 0.6})
    expected = uncond + 7.5 * (base - uncond) + 3.0 * (first - base) + 2.0 * (second - base)
    torch.testing.assert_close(both, expected, atol=1e-5, rtol=1e-4)


def test_parallel_scales_only_what_lies_along_the_guidance(generator):
    uncond, base, student = torch.randn(3, 2, 4, 8, 8, generator=generator)
    plain = consistency_guidance(uncond, base, [student], 7.5, [3.0])
    across = consistency_guidance(uncond, base, [student], 7.5, [3.0], parallel=0.0)
    axis, term = base - uncond, across - classifier_free_guidance(uncond, base, 7.5)
    inner = (term * axis).flatten(1).sum(1)
    torch.testing.assert_close(inner, torch.zeros(2), atol=2e-3, rtol=0)
    half = consistency_guidance(uncond, base, [student], 7.5, [3.0], parallel=0.5)
    torch.testing.assert_close(half, (plain + across) / 2)


def test_samplers_and_view_prompts_and_sds_take_it(tiny_pipelines):
    plain = _with_loras(tiny_pipelines)
    prior = ConsistencyPrior(plain, [Student({"subject": 1.0}, WORDS)])
    generators = [batch_generator(0, 0)]
    images = sample_images(prior, ["a <pet>"], generators=generators, config=DdimConfig(steps=2))
    assert images.shape[-1] == 3
    assert images.isfinite().all()
    for config in (PlainPromptsConfig(), PerpNegPromptsConfig()):
        rule = SDSGuidance(SDSConfig(), prior, build_view_prompts(config, prior, "a <pet>"))
        renders = images_of(2).requires_grad_(True)
        output = rule(renders, _Cameras(), fraction=0.5, generator=batch_generator(0, 1))
        output.loss.backward()
        assert renders.grad.abs().max() > 0.0


class _Cameras:
    """Angles of two views."""

    azimuth_deg = torch.tensor([0.0, 120.0])
    elevation_deg = torch.tensor([10.0, 20.0])


def test_sds_at_scale_zero_is_that_of_the_base_bit_for_bit(tiny_pipelines):
    gradients = []
    base = load_tiny(tiny_pipelines)
    student = Student({"subject": 1.0}, WORDS, scale=0.0)
    personal = ConsistencyPrior(_with_loras(tiny_pipelines), [student])
    for prior, prompt in ((base, "a duck"), (personal, "<pet>")):
        prompts = build_view_prompts(PlainPromptsConfig(), prior, prompt)
        renders = images_of(2).requires_grad_(True)
        rule = SDSGuidance(SDSConfig(), prior, prompts)
        rule(renders, _Cameras(), fraction=0.5, generator=batch_generator(0, 1)).loss.backward()
        gradients.append(renders.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("is_consistent", [True, False])
def test_a_critic_beside_a_frozen_subject_trains_only_itself(tiny_pipelines, is_consistent):
    """The subject acts in the critic's host too, and switching it wakes no gradient."""
    plain = _with_loras(tiny_pipelines)
    student = Student({"subject": 1.0}, WORDS)
    prior = ConsistencyPrior(plain, [student]) if is_consistent else plain
    critic = LoraCritic(prior, CriticConfig(camera_condition="none"), seed=0)
    text = critic.encode_prompt(["a <pet>"])
    latents, t = _inputs(prior)
    with torch.no_grad():
        start = critic.predict_noise(latents, t, text, None)
        assert torch.equal(start, prior.predict_noise(latents, t, text)), "starts as the subject"
    subject = {n: p for n, p in plain.unet.named_parameters() if ".subject." in n}
    before = {name: p.clone() for name, p in subject.items()}
    own = {id(p) for p in critic.lora.parameters.values()}
    for _ in range(2):
        _guided(prior, "a <pet>", 7.5)
        critic.train_step(latents, text, None, generator=batch_generator(0, 3))
        with critic.lora.on():
            wanting = {id(p) for p in plain.unet.parameters() if p.requires_grad}
            assert wanting == own
        assert not any(p.requires_grad for p in plain.unet.parameters())
    assert all(torch.equal(before[name], p) for name, p in subject.items())
    with torch.no_grad():
        assert not torch.equal(critic.predict_noise(latents, t, text, None), start)
    critic.close()
    with torch.no_grad():
        assert torch.equal(prior.predict_noise(latents, t, text), start)


def test_students_must_agree_about_words(tiny_pipelines):
    prior = load_tiny(tiny_pipelines)
    students = [Student({}, {"<pet>": "duck"}), Student({}, {"<pet>": "dog"})]
    with pytest.raises(StudioError, match="'<pet>' stands for 'duck' and for 'dog'"):
        ConsistencyPrior(prior, students)
    with pytest.raises(StudioError, match="got no student"):
        ConsistencyPrior(prior, [])

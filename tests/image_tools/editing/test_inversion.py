"""Inversion against diffusers' scheduler, paths that come back, and what null text learns."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from image_tools.configs import DdimConfig, PocketPriorConfig
from image_tools.diffusion.loading import load_folder, load_prior
from image_tools.diffusion.sampling import ddim_step, ddim_steps, denoise_latents
from image_tools.editing.editing_configs import (
    EditedPromptConfig,
    NullTextConfig,
    PromptToPromptConfig,
)
from image_tools.editing.inversion import (
    Inversion,
    InvertedPrior,
    inverse_ddim_step,
    invert_latents,
    negative_prompt_inversion,
    null_text_inversion,
)
from image_tools.editing.prompt_to_prompt import PromptToPromptPrior, edit_images
from image_tools.errors import UnsupportedModel
from renderers.errors import ShapeError

STEPS = 10


@pytest.fixture(scope="module", params=["sd1", "sd2_v", "sdxl"])
def prior(request, tiny_pipelines):
    return load_folder(tiny_pipelines[request.param], torch.device("cpu"))


def clean(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def texts(prior, prompt="a duck"):
    return prior.encode_prompt([prompt]), prior.encode_negative([""])


def sampled(prior, inversion, *, scale, prompt="a duck"):
    """Latents that come back from an inversion."""
    cond, uncond = texts(prior, prompt)
    return denoise_latents(
        prior,
        inversion.start,
        cond,
        uncond,
        generators=[],
        config=DdimConfig(steps=len(inversion.timesteps), guidance_scale=scale),
    )


@pytest.mark.parametrize("kind", ["sd1", "sd2_v"])
def test_inversion_equals_the_stock_inverse_scheduler(tiny_pipelines, kind):
    """Fed with epsilon, whatever the model predicts."""
    from diffusers import DDIMInverseScheduler

    prior = load_folder(tiny_pipelines[kind], torch.device("cpu"))
    settings = {**prior.scheduler_config, "prediction_type": "epsilon"}
    scheduler = DDIMInverseScheduler.from_config(settings)
    scheduler.set_timesteps(STEPS)
    cond, _ = texts(prior)
    path = invert_latents(prior, clean(), cond, steps=STEPS)
    latents, visited = clean(), []
    with torch.no_grad():
        for t in scheduler.timesteps:
            visited.append(int(t))
            noise = prior.predict_noise(latents, t[None], cond)
            latents = scheduler.step(noise, t, latents).prev_sample
    assert visited == [step.t for step in ddim_steps(prior, STEPS)][::-1]
    assert len(path) == STEPS + 1
    torch.testing.assert_close(path[-1], latents, atol=1e-4, rtol=1e-4)


def test_a_step_and_its_inverse_with_the_same_noise_cancel(prior):
    for step in ddim_steps(prior, STEPS):
        noise = clean(1)
        before = inverse_ddim_step(clean(), noise, step)
        after = ddim_step(before, noise, step, eta=0.0, noise=None)
        torch.testing.assert_close(after, clean(), atol=1e-5, rtol=1e-4)


def test_finer_steps_without_guidance_come_back_nearer(prior):
    errors = []
    for steps in (5, 50):
        cond, _ = texts(prior)
        path = invert_latents(prior, clean(), cond, steps=steps)
        inversion = negative_prompt_inversion(prior, path, cond)
        errors.append((sampled(prior, inversion, scale=1.0) - clean()).square().mean())
    assert errors[1] < errors[0]


@pytest.mark.parametrize("steps", [5, 10])
def test_without_guidance_null_text_comes_back_to_the_order_of_a_step(tiny_pipelines, steps):
    """The path is DDIM's own backwards but for predictions one step early, an error of first
    order: for this model, on latents of deviation 1, less than 1 / steps."""
    prior = load_folder(tiny_pipelines["sd2_v"], torch.device("cpu"))
    cond, uncond = texts(prior)
    path = invert_latents(prior, clean(), cond, steps=steps)
    config = NullTextConfig(steps=steps, guidance_scale=1.0, inner_steps=1)
    inversion = null_text_inversion(prior, path, cond, uncond, config)
    back = sampled(InvertedPrior(prior, inversion), inversion, scale=1.0)
    assert (back - clean()).square().mean().sqrt() < 1.0 / steps


def test_the_negative_prompt_makes_guidance_idle_for_the_image_s_own_prompt(prior):
    cond, _ = texts(prior)
    inversion = negative_prompt_inversion(
        prior, invert_latents(prior, clean(), cond, steps=STEPS), cond
    )
    inverted = InvertedPrior(prior, inversion)
    free, guided = (sampled(inverted, inversion, scale=s) for s in (1.0, 7.5))
    torch.testing.assert_close(guided, free, atol=1e-4, rtol=1e-4)
    edited = sampled(inverted, inversion, scale=7.5, prompt="a red mushroom")
    assert (edited - free).abs().max() > 1e-4


def test_null_text_follows_the_path_more_closely(prior):
    cond, uncond = texts(prior)
    path = invert_latents(prior, clean(), cond, steps=4)
    config = NullTextConfig(
        steps=4, guidance_scale=5.0, inner_steps=20, tolerance=0.0, tolerance_growth=0.0
    )
    errors = []
    for settings in (replace(config, inner_steps=0), config):
        inversion = null_text_inversion(prior, path, cond, uncond, settings)
        back = sampled(InvertedPrior(prior, inversion), inversion, scale=5.0)
        errors.append((back - clean()).square().mean())
    assert errors[1] < 0.9 * errors[0]
    tokens = [text.tokens for text in inversion.unconditions]
    assert len(tokens) == 4
    assert not any(torch.equal(one, uncond.tokens) for one in tokens)


class CountedAdam(torch.optim.Adam):
    """Adam that keeps what it was made with and how often it stepped."""

    made: ClassVar[list[CountedAdam]] = []

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        self.rate, self.updates = lr, 0
        self.made.append(self)

    def step(self):
        self.updates += 1
        super().step()


@pytest.fixture
def optimizers(monkeypatch):
    monkeypatch.setattr(CountedAdam, "made", [])
    monkeypatch.setattr(torch.optim, "Adam", CountedAdam)
    return CountedAdam.made


@pytest.mark.parametrize(
    ("tolerance", "growth", "updates"),
    [
        (-1.0, 0.0, [3, 3, 3, 3]),  # no error is below 0
        (1e6, 0.0, [1, 1, 1, 1]),  # the error is looked at before an update and acts after it
        (-1.0, 4e6, [3, 1, 1, 1]),  # grows by the share of the steps that are done
        (-1e6, 3e6, [3, 3, 1, 1]),
    ],
)
def test_rates_fall_to_half_and_a_step_ends_early_by_its_own_tolerance(
    tiny_pipelines, optimizers, tolerance, growth, updates
):
    prior = load_folder(tiny_pipelines["sd1"], torch.device("cpu"))
    cond, uncond = texts(prior)
    path = invert_latents(prior, clean(), cond, steps=4)
    config = NullTextConfig(
        steps=4, inner_steps=3, tolerance=tolerance, tolerance_growth=growth, learning_rate=0.02
    )
    null_text_inversion(prior, path, cond, uncond, config)
    assert [one.rate for one in optimizers] == pytest.approx([0.02, 0.0175, 0.015, 0.0125])
    assert [one.updates for one in optimizers] == updates


def test_defaults_at_50_steps_are_the_published_ones():
    """Rates 1e-2 (1 - i / 100), until the error is below 1e-5 + 2e-5 i, for step i."""
    config = NullTextConfig()
    assert (config.steps, config.inner_steps, config.learning_rate) == (50, 10, 1e-2)
    assert (config.tolerance, config.tolerance_growth / config.steps) == (1e-5, 2e-5)


def test_tokens_that_a_tool_around_it_appended_stay_behind_the_learned_ones(prior):
    """The denoiser is told the learned text and them, not the negative prompt."""
    cond, uncond = texts(prior)
    learned = prior.encode_negative(["a red mushroom"])
    steps = ddim_steps(prior, 3)
    found = Inversion(clean(), (learned,) * 3, tuple(step.t for step in steps))
    extra = torch.randn(1, 2, cond.tokens.shape[2], generator=torch.Generator().manual_seed(3))

    def longer(text):
        return replace(text, tokens=torch.cat([text.tokens, extra], dim=1))

    t = torch.tensor([found.timesteps[1]])
    with torch.no_grad():
        given = InvertedPrior(prior, found).guided_noise(
            clean(), t, longer(cond), longer(uncond), 5.0
        )
        wanted = prior.guided_noise(clean(), t, longer(cond), longer(learned), 5.0)
        assert torch.equal(given, wanted)
        lengthened = replace(found, unconditions=(longer(learned),) * 3)
        with pytest.raises(ShapeError, match=r"The negative prompt has .* the inversion"):
            InvertedPrior(prior, lengthened).guided_noise(clean(), t, cond, uncond, 5.0)


def test_nothing_is_learned_where_the_tolerance_is_met_and_guidance_is_off(prior):
    """At scale 1 there is nothing to learn: the prediction is the conditional one."""
    cond, uncond = texts(prior)
    path = invert_latents(prior, clean(), cond, steps=3)
    config = NullTextConfig(steps=3, guidance_scale=1.0)
    inversion = null_text_inversion(prior, path, cond, uncond, config)
    for text in inversion.unconditions:
        torch.testing.assert_close(text.tokens, uncond.tokens)


def test_edits_use_the_step_s_embedding_for_source_and_edit(prior):
    """The source of an edit of an inverted image is the inverted image."""
    cond, uncond = texts(prior)
    path = invert_latents(prior, clean(), cond, steps=4)
    config = NullTextConfig(steps=4, guidance_scale=5.0, inner_steps=3)
    inversion = null_text_inversion(prior, path, cond, uncond, config)
    inverted = InvertedPrior(prior, inversion)
    edit = EditedPromptConfig("a red duck")
    images = edit_images(
        PromptToPromptPrior(inverted, PromptToPromptConfig("a duck", (edit,), steps=4)),
        generators=[],
        config=DdimConfig(steps=4, guidance_scale=5.0),
        start=inversion.start,
    )
    alone = prior.decode_latents(sampled(inverted, inversion, scale=5.0))
    torch.testing.assert_close(images[0], alone, atol=1e-4, rtol=0)
    assert (images[1] - images[0]).abs().max() > 1e-4


def test_what_cannot_be_inverted_is_refused(tiny_pipelines, prior):
    cond, uncond = texts(prior)
    path = invert_latents(prior, clean(), cond, steps=3)
    with pytest.raises(ShapeError, match=r"has 3 steps of 1 images, expected 50"):
        null_text_inversion(prior, path, cond, uncond)
    half = load_folder(tiny_pipelines["sd1"], torch.device("cpu"), torch.bfloat16)
    with pytest.raises(UnsupportedModel, match="computes in bfloat16"):
        null_text_inversion(half, path, cond, uncond, NullTextConfig(steps=3))


@pytest.mark.slow
def test_a_real_image_comes_back_ten_times_nearer_with_guidance():
    prior = load_prior(PocketPriorConfig(), torch.device("cpu"))
    prompt, scale = "a red mushroom", 5.0
    cond, uncond = texts(prior, prompt)
    made = denoise_latents(
        prior,
        torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5)),
        cond,
        uncond,
        generators=[],
        config=DdimConfig(steps=20, guidance_scale=scale),
    )
    latents = prior.encode_images(prior.decode_latents(made))
    path = invert_latents(prior, latents, cond, steps=20)
    errors = []
    for inner_steps in (0, 10):
        config = NullTextConfig(steps=20, guidance_scale=scale, inner_steps=inner_steps)
        inversion = null_text_inversion(prior, path, cond, uncond, config)
        back = sampled(InvertedPrior(prior, inversion), inversion, scale=scale, prompt=prompt)
        errors.append(float((back - latents).square().mean()))
    assert errors[1] < 0.1 * errors[0]

"""Delta denoising score: zero where nothing differs, linear in guidance, one call or two."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.parametrization import add_noise, alpha_sigma
from image_tools.editing.dds import (
    DeltaBranch,
    delta_denoising_gradient,
    edit_latents,
    shared_delta_denoising_gradient,
)
from image_tools.editing.editing_configs import (
    DeltaDenoisingConfig,
    EditedPromptConfig,
    PromptToPromptConfig,
)
from image_tools.editing.prompt_to_prompt import PromptToPromptPrior
from renderers.errors import ShapeError

T = torch.tensor([120, 640])


@pytest.fixture(scope="module", params=["sd1", "sd2_v"])
def prior(request, tiny_pipelines):
    return load_folder(tiny_pipelines[request.param], torch.device("cpu"))


def noise_like(seed: int) -> torch.Tensor:
    return torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(seed))


def branch(prior, prompt, seed: int = 0) -> DeltaBranch:
    return DeltaBranch(noise_like(seed), prior.encode_prompt([prompt]), prior.encode_negative([""]))


def gradient(prior, target, source, *, scale=7.5, function=delta_denoising_gradient):
    return function(prior, target, source, t=T, noise=noise_like(9), guidance_scale=scale)


def test_equal_branches_have_no_gradient_at_all(prior):
    same = gradient(prior, branch(prior, "a duck"), branch(prior, "a duck"))
    assert torch.equal(same, torch.zeros_like(same))


def test_it_is_the_difference_of_two_guided_predictions(prior):
    target, source = branch(prior, "a red duck", 1), branch(prior, "a duck", 2)
    alpha, sigma = alpha_sigma(prior.alphas_cumprod, T, target.latents)
    parts = []
    with torch.no_grad():
        for each in (target, source):
            noisy = add_noise(each.latents, noise_like(9), alpha, sigma)
            uncond = prior.predict_noise(noisy, T, each.uncond)
            cond = prior.predict_noise(noisy, T, each.cond)
            parts.append(uncond + 7.5 * (cond - uncond))
    expected = parts[0] - parts[1]
    torch.testing.assert_close(gradient(prior, target, source), expected, atol=1e-4, rtol=1e-4)
    both = gradient(prior, target, source, function=shared_delta_denoising_gradient)
    torch.testing.assert_close(both, expected, atol=1e-4, rtol=1e-4)
    assert gradient(prior, source, target).add(expected).abs().max() < 1e-4


def test_it_is_linear_in_guidance(prior):
    target, source = branch(prior, "a red duck"), branch(prior, "a duck")
    at = {s: gradient(prior, target, source, scale=s) for s in (0.0, 3.0, 6.0)}
    assert torch.equal(at[0.0], torch.zeros_like(at[0.0]))  # the same latents, no condition
    assert at[3.0].abs().max() > 0
    torch.testing.assert_close(at[6.0], 2.0 * at[3.0], atol=1e-4, rtol=1e-4)


def test_priors_that_share_attention_see_the_source_first(prior):
    edit = EditedPromptConfig("a duck", cross_steps=(0.0, 1.0), self_steps=(0.0, 1.0))
    shared = PromptToPromptPrior(prior, PromptToPromptConfig("a duck", (edit,), steps=1))
    found = gradient(
        shared,
        branch(prior, "a duck"),
        branch(prior, "a duck"),
        function=shared_delta_denoising_gradient,
    )
    assert found.abs().max() < 1e-4


def test_descent_edits_only_what_the_prompts_tell_apart(prior):
    config = DeltaDenoisingConfig(updates=3)
    source, target = branch(prior, "a duck"), branch(prior, "a red duck")
    generators = [torch.Generator().manual_seed(4) for _ in range(3)]
    same = edit_latents(prior, source, source, generator=generators[0], config=config)
    assert torch.equal(same, source.latents)
    edited = edit_latents(prior, target, source, generator=generators[1], config=config)
    again = edit_latents(prior, target, source, generator=generators[2], config=config)
    assert torch.equal(edited, again)
    assert not torch.equal(edited, source.latents)


@pytest.mark.parametrize("size", [(64, 64), (16, 16), (8, 6)])
def test_steps_on_each_latent_are_those_published_for_512_pixels_whatever_the_size(size):
    assert DeltaDenoisingConfig().step_size(size) == 0.1 * 2000.0 / (64 * 64)
    assert DeltaDenoisingConfig(learning_rate=200.0).step_size((64, 64)) == 200.0 / 64**2
    by_rule = DeltaDenoisingConfig(learning_rate=12.0).step_size(size)
    assert by_rule == 12.0 / (size[0] * size[1])


def test_one_update_is_a_step_down_the_gradient(prior):
    source, target = branch(prior, "a duck"), branch(prior, "a red duck")
    moved = {}
    for rate in (None, 48.0):  # of 8 x 6 latents, the latter takes steps of 1 g
        config = DeltaDenoisingConfig(updates=1, learning_rate=rate)
        generator = torch.Generator().manual_seed(4)
        edited = edit_latents(prior, target, source, generator=generator, config=config)
        moved[rate] = edited - source.latents
    expected = 200.0 / 64**2 * moved[48.0]
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(moved[None], expected, atol=1e-6, rtol=1e-3)


def test_latents_of_two_sizes_are_refused(prior):
    wide = replace(branch(prior, "a duck"), latents=torch.zeros(2, 4, 8, 8))
    with pytest.raises(ShapeError, match="expected one and the same"):
        gradient(prior, wide, branch(prior, "a duck"))

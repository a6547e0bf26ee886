"""Conversions between epsilon, v and x0, and the guided combination."""

from __future__ import annotations

import pytest
import torch

from image_tools.diffusion.parametrization import (
    add_noise,
    alpha_sigma,
    classifier_free_guidance,
    noise_schedule,
    noise_to_output,
    output_to_noise,
    rescale_guidance,
    x0_from_noise,
)
from image_tools.errors import UnsupportedModel

SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _noisy(generator: torch.Generator):
    x0, noise = (torch.randn(3, 4, 2, 2, generator=generator, dtype=torch.float64) for _ in "ab")
    alpha, sigma = alpha_sigma(noise_schedule(SD_BETAS), torch.tensor([20, 500, 980]), x0)
    return x0, noise, alpha, sigma, add_noise(x0, noise, alpha, sigma)


def test_schedule_has_the_karras_sigmas_of_stable_diffusion():
    alphas = noise_schedule(SD_BETAS)[[20, 100, 500, 980]]
    sigmas = ((1 - alphas) / alphas).sqrt()
    torch.testing.assert_close(
        sigmas, torch.tensor([0.138, 0.344, 1.618, 13.04]), rtol=4e-3, atol=0
    )


def test_alpha_and_sigma_lie_on_the_unit_circle(generator):
    _, _, alpha, sigma, _ = _noisy(generator)
    assert alpha.shape == (3, 1, 1, 1)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_noise_survives_a_round_trip_through_each_parametrisation(generator, kind):
    _, noise, alpha, sigma, z_t = _noisy(generator)
    output = noise_to_output(noise, z_t, alpha, sigma, kind)
    torch.testing.assert_close(output_to_noise(output, z_t, alpha, sigma, kind), noise)


def test_outputs_are_the_textbook_ones(generator):
    x0, noise, alpha, sigma, z_t = _noisy(generator)
    v = noise_to_output(noise, z_t, alpha, sigma, "v_prediction")
    torch.testing.assert_close(v, alpha * noise - sigma * x0)
    torch.testing.assert_close(alpha * z_t - sigma * v, x0)
    torch.testing.assert_close(noise_to_output(noise, z_t, alpha, sigma, "sample"), x0)
    torch.testing.assert_close(x0_from_noise(noise, z_t, alpha, sigma), x0)


def test_conversions_agree_with_diffusers(generator):
    from diffusers import DDIMScheduler

    _, noise, alpha, sigma, z_t = (v.float() for v in _noisy(generator))
    scheduler = DDIMScheduler(**SD_BETAS, prediction_type="v_prediction", clip_sample=False)
    scheduler.set_timesteps(10)
    v = noise_to_output(noise, z_t, alpha, sigma, "v_prediction")
    theirs = scheduler.step(v[1:2], 500, z_t[1:2]).pred_original_sample
    ours = x0_from_noise(noise, z_t, alpha, sigma)[1:2]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_guided_v_outputs_convert_to_guided_noise(generator):
    uncond, cond, alpha, sigma, z_t = _noisy(generator)
    outputs = [noise_to_output(e, z_t, alpha, sigma, "v_prediction") for e in (uncond, cond)]
    guided = classifier_free_guidance(*outputs, 7.5)
    torch.testing.assert_close(
        output_to_noise(guided, z_t, alpha, sigma, "v_prediction"),
        classifier_free_guidance(uncond, cond, 7.5),
    )


def test_rescale_restores_the_conditional_deviation_and_equals_diffusers(generator):
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    uncond, cond, *_ = _noisy(generator)
    guided = classifier_free_guidance(uncond, cond, 30.0)
    full = rescale_guidance(guided, cond, 1.0)
    axes = (1, 2, 3)
    torch.testing.assert_close(full.std(dim=axes), cond.std(dim=axes))
    torch.testing.assert_close(rescale_guidance(guided, cond, 0.0), guided)
    torch.testing.assert_close(
        rescale_guidance(guided, cond, 0.7), rescale_noise_cfg(guided, cond, 0.7)
    )


def test_zero_terminal_schedule_stays_invertible():
    alphas = noise_schedule({**SD_BETAS, "rescale_betas_zero_snr": True})
    assert alphas[-1] > 0
    z_t, v = torch.ones(1, 1), torch.full((1, 1), 0.5)
    alpha, sigma = alpha_sigma(alphas, torch.tensor([999]), z_t)
    noise = output_to_noise(v, z_t, alpha, sigma, "v_prediction")
    torch.testing.assert_close(x0_from_noise(noise, z_t, alpha, sigma), -v, rtol=0, atol=1e-3)


def test_flow_matching_scheduler_is_refused_by_name():
    with pytest.raises(UnsupportedModel, match="FlowMatchEulerDiscreteScheduler' has no beta"):
        noise_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})


def test_continuous_noise_levels_are_refused_by_name():
    """As published for CosXL; the other way to write it is Stable Video Diffusion's."""
    from diffusers import EDMEulerScheduler, EulerDiscreteScheduler

    cosxl = EDMEulerScheduler(sigma_max=120.0, sigma_data=1.0, prediction_type="v_prediction")
    with pytest.raises(UnsupportedModel, match=r"EDMEulerScheduler' has no beta .*CosXL"):
        noise_schedule({"_class_name": "EDMEulerScheduler", **cosxl.config})
    other = EulerDiscreteScheduler(**SD_BETAS, timestep_type="continuous", sigma_max=700.0)
    with pytest.raises(UnsupportedModel, match="has continuous timesteps"):
        noise_schedule(other.config)

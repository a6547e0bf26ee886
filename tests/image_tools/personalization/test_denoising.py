"""The denoising loss: targets of each parametrisation, and weights that mean the same in all."""

from __future__ import annotations

import pytest
import torch

from image_tools.diffusion.parametrization import alpha_sigma, output_to_noise
from image_tools.personalization.denoising import denoising_errors, draw_noisy, min_snr_weights
from tests.image_tools.personalization.subjects import load_tiny


@pytest.fixture(scope="module")
def priors(tiny_pipelines):
    return {kind: load_tiny(tiny_pipelines, kind) for kind in ("sd1", "sd2_v")}


@pytest.mark.parametrize("kind", ["sd1", "sd2_v"])
def test_target_is_what_a_perfect_denoiser_puts_out(priors, kind, generator):
    prior = priors[kind]
    x0 = torch.randn(6, 4, 8, 8, generator=generator)
    noisy = draw_noisy(prior, x0, generator)
    alpha, sigma = alpha_sigma(prior.alphas_cumprod, noisy.t, x0)
    noise = (noisy.z_t - alpha * x0) / sigma
    from_target = output_to_noise(noisy.target, noisy.z_t, alpha, sigma, prior.prediction_type)
    torch.testing.assert_close(from_target, noise, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["sd1", "sd2_v"])
@torch.no_grad()
def test_errors_are_each_sample_s_mean_square(priors, kind, generator):
    prior = priors[kind]
    noisy = draw_noisy(prior, torch.randn(3, 4, 8, 8, generator=generator), generator)
    text = prior.encode_prompt(["a duck"])
    errors = denoising_errors(prior, noisy, text)
    for row in range(3):
        part = slice(row, row + 1)
        output = prior.predict_output(noisy.z_t[part], noisy.t[part], text)
        expected = torch.nn.functional.mse_loss(output, noisy.target[part])
        torch.testing.assert_close(errors[row], expected)


def test_min_snr_weights_follow_the_paper(priors):
    t = torch.tensor([0, 200, 500, 999])
    snr = priors["sd1"].alphas_cumprod[t] / (1 - priors["sd1"].alphas_cumprod[t])
    torch.testing.assert_close(min_snr_weights(priors["sd1"], t, 5.0), snr.clamp(max=5.0) / snr)
    torch.testing.assert_close(
        min_snr_weights(priors["sd2_v"], t, 5.0), snr.clamp(max=5.0) / (snr + 1.0)
    )
    assert torch.equal(min_snr_weights(priors["sd1"], t, None), torch.ones(4))


def test_min_snr_weighs_the_same_prediction_alike_in_both_parametrisations(priors, generator):
    """Both are ``min(snr, gamma) ||x0 - x0_pred||^2``."""
    x0, x0_pred = torch.randn(2, 5, 4, 8, 8, generator=generator)
    noisy = draw_noisy(priors["sd1"], x0, generator)
    alpha, sigma = alpha_sigma(priors["sd1"].alphas_cumprod, noisy.t, x0)
    eps_pred = (noisy.z_t - alpha * x0_pred) / sigma
    v_pred, v = alpha * eps_pred - sigma * x0_pred, alpha * noisy.target - sigma * x0

    def weighted(kind, difference):
        weights = min_snr_weights(priors[kind], noisy.t, 5.0)
        return weights * difference.square().flatten(1).mean(dim=1)

    snr = ((alpha / sigma) ** 2).flatten()
    expected = snr.clamp(max=5.0) * (x0 - x0_pred).square().flatten(1).mean(dim=1)
    torch.testing.assert_close(
        weighted("sd1", eps_pred - noisy.target), expected, rtol=1e-3, atol=0
    )
    torch.testing.assert_close(weighted("sd2_v", v_pred - v), expected, rtol=1e-3, atol=0)


def test_offset_noise_moves_whole_channels(priors):
    x0 = torch.zeros(64, 4, 8, 8)
    spreads = []
    for offset in (0.0, 1.0):
        generator = torch.Generator().manual_seed(0)
        noisy = draw_noisy(priors["sd1"], x0, generator, offset_noise=offset)
        spreads.append(noisy.target.mean(dim=(2, 3)).std().item())
    assert spreads[0] == pytest.approx(1 / 8, rel=0.15)
    assert spreads[1] == pytest.approx((1 + 1 / 64) ** 0.5, rel=0.15)

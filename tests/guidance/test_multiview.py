"""Multi-view guidance: its gradient in closed form, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from guidance.configs import DirectionalPromptsConfig, UniformTimestepsConfig
from guidance.multiview import MultiViewGuidance, rescale_sets
from guidance.multiview_configs import (
    MultiViewConfig,
    NoiseDifferenceConfig,
    X0ReconstructionConfig,
)
from guidance.noising import draw_noisy_latents
from guidance.prompts import build_view_prompts
from image_tools.diffusion.camera_embedding import camera_vector
from image_tools.diffusion.conditions import Condition
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.multiview import MultiViewPrior
from image_tools.diffusion.prior import PriorParts
from image_tools.errors import UnsupportedModel
from renderers.camera_configs import MultiViewCamerasConfig, RandomCamerasConfig
from renderers.cameras import sample_cameras
from renderers.errors import ShapeError
from tests.image_tools.tiny_unets import tiny_multiview_unet

CPU = torch.device("cpu")
ROWS = 8
FRACTION = 0.3


@pytest.fixture(scope="module")
def base(tiny_pipelines):
    """A tiny pocket; it predicts v."""
    return load_folder(tiny_pipelines["pocket"], CPU)


@pytest.fixture(scope="module")
def prior(base) -> MultiViewPrior:
    """Random weights on the pocket's VAE, text and schedule."""
    parts = PriorParts(tiny_multiview_unet(), base.vae, base.text, base.scheduler_config, "tiny")
    return MultiViewPrior(parts, views=4)


@pytest.fixture
def cameras():
    """Two sets of four views."""
    config = MultiViewCamerasConfig(batch_size=ROWS, height=32, width=32)
    return sample_cameras(config, torch.Generator().manual_seed(4), fraction=0.0)


@pytest.fixture
def images() -> torch.Tensor:
    """Random renders that want a gradient."""
    return torch.rand(
        ROWS, 32, 32, 3, generator=torch.Generator().manual_seed(5), requires_grad=True
    )


def _guidance(prior, **config) -> MultiViewGuidance:
    prompts = build_view_prompts(DirectionalPromptsConfig(), prior, "red duck", "purple")
    return MultiViewGuidance(MultiViewConfig(**config), prior, prompts)


def _gradient(guidance, images, cameras):
    """The rule's output, and its gradient on the latents times their number."""
    prior = guidance.prior
    kept = {}
    encode = type(prior).encode_images

    class Recorder:
        """Remembers the latents on which the loss lies."""

        def __call__(self, given):
            kept["z"] = encode(prior, given)
            kept["z"].retain_grad()
            return kept["z"]

    prior.encode_images = Recorder()
    try:
        output = guidance(
            images, cameras, fraction=FRACTION, generator=torch.Generator().manual_seed(9)
        )
    finally:
        del prior.encode_images
    output.loss.backward()
    return output, kept["z"].detach(), kept["z"].grad * len(images)


def _predictions(guidance, latents, cameras):
    """Noisy latents, conditional and unconditional epsilon, asked for one by one."""
    prior = guidance.prior
    noisy = draw_noisy_latents(
        prior,
        latents,
        guidance.config.timesteps,
        fraction=FRACTION,
        generator=torch.Generator().manual_seed(9),
    )
    camera = camera_vector(cameras.c2w)
    with torch.no_grad():
        cond, uncond = (
            prior.predict_noise(noisy.z_t, noisy.t, Condition(text.expand(ROWS), camera))
            for text in (prior.encode_prompt(["red duck"]), prior.encode_negative(["purple"]))
        )
    return noisy, cond, uncond


def test_the_guidance_scale_follows_its_schedule(prior, images, cameras):
    steep = ((0.0, 1.0), (FRACTION, 6.0), (1.0, 50.0))
    scheduled, constant, other = (
        _gradient(_guidance(prior, guidance_scale=scale), images, cameras)[2]
        for scale in (steep, 6.0, 1.0)
    )
    assert torch.equal(scheduled, constant)
    assert not torch.equal(scheduled, other)


def test_without_rescale_it_is_sds_weighted_by_sigma_over_alpha(prior, images, cameras):
    guidance = _guidance(prior, guidance_scale=20.0, loss=X0ReconstructionConfig(rescale=0.0))
    _, latents, gradient = _gradient(guidance, images, cameras)
    noisy, cond, uncond = _predictions(guidance, latents, cameras)
    guided = uncond + 20.0 * (cond - uncond)
    expected = noisy.sigma / noisy.alpha * (guided - noisy.noise)
    torch.testing.assert_close(gradient, expected, atol=1e-3, rtol=1e-4)


def test_the_rescale_is_that_of_whole_sets(prior, images, cameras):
    guidance = _guidance(prior, guidance_scale=20.0, loss=X0ReconstructionConfig(rescale=0.5))
    output, latents, gradient = _gradient(guidance, images, cameras)
    noisy, cond, uncond = _predictions(guidance, latents, cameras)
    x0 = (noisy.z_t - noisy.sigma * (uncond + 20.0 * (cond - uncond))) / noisy.alpha
    x0_cond = (noisy.z_t - noisy.sigma * cond) / noisy.alpha
    expected = torch.empty_like(x0)
    for first in (0, 4):
        rows = slice(first, first + 4)
        factor = (x0_cond[rows].std() + 1e-8) / (x0[rows].std() + 1e-8)
        assert abs(float(factor) - 1.0) > 0.02  # the rescale does something here
        expected[rows] = latents[rows] - (0.5 * factor * x0[rows] + 0.5 * x0[rows])
    torch.testing.assert_close(gradient, expected, atol=1e-3, rtol=1e-4)
    loss = 0.5 * gradient.square().sum() / ROWS
    torch.testing.assert_close(output.loss.detach(), loss, atol=1e-3, rtol=1e-4)


def test_the_other_loss_is_sds(prior, images, cameras):
    loss = NoiseDifferenceConfig(weighting="uniform")
    guidance = _guidance(prior, guidance_scale=20.0, loss=loss)
    _, latents, gradient = _gradient(guidance, images, cameras)
    noisy, cond, uncond = _predictions(guidance, latents, cameras)
    expected = uncond + 20.0 * (cond - uncond) - noisy.noise
    torch.testing.assert_close(gradient, expected, atol=1e-3, rtol=1e-4)


def test_at_scale_one_nothing_is_rescaled(prior, images, cameras):
    found = [
        _gradient(
            _guidance(prior, guidance_scale=1.0, loss=X0ReconstructionConfig(rescale=share)),
            images,
            cameras,
        )[2]
        for share in (0.0, 1.0)
    ]
    assert torch.equal(*found)


def test_equal_predictions_have_the_factor_one(generator):
    x0 = torch.randn(8, 4, 8, 8, generator=generator)
    assert torch.equal(rescale_sets(x0, x0.clone(), views=4, share=1.0), x0)


def test_a_full_rescale_gives_each_set_the_spread_of_the_other(generator):
    guided = 5.0 * torch.randn(8, 4, 8, 8, generator=generator)
    cond = torch.randn(8, 4, 8, 8, generator=generator)
    rescaled = rescale_sets(guided, cond, views=4, share=1.0)
    spread = [x.reshape(2, -1).std(1) for x in (rescaled, cond)]
    torch.testing.assert_close(*spread)
    ratio = rescaled / guided
    assert (ratio[:4] - ratio[0, 0, 0, 0]).abs().max() < 1e-5  # one factor for a set


def test_all_views_share_the_timestep_which_falls(prior, images, cameras):
    guidance = _guidance(prior)
    first = guidance(images, cameras, fraction=0.0, generator=torch.Generator().manual_seed(1))
    assert first.t.tolist() == [980] * ROWS
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        t = guidance(images, cameras, fraction=1.0, generator=generator).t
        assert t.unique().numel() == 1
        assert 20 <= int(t[0]) <= 500


def test_the_prompt_has_no_view_words_and_the_cameras_matter(prior, images, cameras):
    """Only the cameras tell the views apart: turning them changes the gradient."""
    guidance = _guidance(prior, guidance_scale=5.0)
    assert torch.equal(guidance.text.tokens, prior.encode_prompt(["red duck"]).tokens)
    _, _, gradient = _gradient(guidance, images, cameras)
    turned = cameras[[1, 2, 3, 0, 5, 6, 7, 4]]
    assert (_gradient(guidance, images, turned)[2] - gradient).abs().max() > 1e-3


def test_the_preview_shows_all_views(prior, images, cameras):
    output = _guidance(prior)(
        images, cameras, fraction=0.5, generator=torch.Generator().manual_seed(1)
    )
    assert output.x0().shape[0] == ROWS
    assert 0.0 <= float(output.x0().min()) <= float(output.x0().max()) <= 1.0


def test_one_denoiser_call_serves_both_halves(prior, images, cameras):
    before = prior.denoiser_evaluations
    _guidance(prior)(images, cameras, fraction=0.5, generator=torch.Generator().manual_seed(1))
    assert prior.denoiser_evaluations - before == 2 * ROWS


def test_incomplete_and_tilted_sets_are_refused(prior, images, cameras, generator):
    guidance = _guidance(prior)
    with pytest.raises(ShapeError, match="6 renders came with 6 cameras"):
        guidance(images[:6], cameras[:6], fraction=0.0, generator=generator)
    loose = sample_cameras(RandomCamerasConfig(batch_size=ROWS), generator, fraction=0.0)
    with pytest.raises(ShapeError, match="use cameras of kind multiview"):
        guidance(images, loose, fraction=0.0, generator=generator)


def test_a_prior_of_single_images_is_refused(base):
    with pytest.raises(UnsupportedModel, match="pocket_mv"):
        _guidance(base)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiViewConfig(timesteps=UniformTimestepsConfig()), "expected 'batch'"),
        (lambda: X0ReconstructionConfig(rescale=1.5), "rescale is 1.5"),
        (lambda: MultiViewConfig(grad_clip=-1.0), "grad_clip"),
        (lambda: MultiViewConfig(guidance_scale=-1.0), "guidance_scale"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

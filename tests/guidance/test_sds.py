"""Score distillation: exact gradients, closed forms, and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guidance.configs import (
    AnnealedTimestepsConfig,
    DirectionalPromptsConfig,
    PerpNegPromptsConfig,
    PlainPromptsConfig,
    SDSConfig,
    UniformTimestepsConfig,
)
from guidance.gradient import gradient_loss, gradient_norm, replace_non_finite
from guidance.prompts import build_view_prompts
from guidance.sds import SDSGuidance, sds_gradient, sds_weight
from image_tools.diffusion.conditions import TextEmbedding
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.parametrization import noise_schedule
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.protocol import NoisePrior
from renderers.errors import ShapeError
from tests.guidance.test_prompts import _angles
from tests.tiny_models import PIPELINE_KINDS

ALPHAS = noise_schedule(
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)
WEIGHTINGS = ["sds", "uniform", "fantasia3d"]


class GaussianPrior:
    """The exact denoiser of data ~ N(mean, std^2), on images that are their own latents.

    ``eps = sigma (z_t - alpha mean) / (alpha^2 std^2 + sigma^2)``.
    """

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std, self.alphas_cumprod = mean, std, ALPHAS

    def encode_images(self, images: Tensor) -> Tensor:
        return images.movedim(-1, 1)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return latents.movedim(1, -1)

    def encode_prompt(self, prompts) -> TextEmbedding:
        return TextEmbedding(torch.zeros(len(prompts), 1, 1))

    encode_negative = encode_prompt

    def predict_output(self, latents: Tensor, t: Tensor, condition) -> Tensor:
        alpha_bar = self.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        alpha, variance = alpha_bar.sqrt(), alpha_bar * self.std**2 + 1 - alpha_bar
        return (1 - alpha_bar).sqrt() * (latents - alpha * self.mean) / variance

    def to_noise(self, output: Tensor, latents: Tensor, t: Tensor) -> Tensor:
        return output

    def guided_noise(self, latents, t, cond, uncond, guidance_scale, *, rescale=0.0) -> Tensor:
        return self.predict_output(latents, t, cond)

    def predict_x0(self, latents: Tensor, t: Tensor, noise_pred: Tensor) -> Tensor:
        return DiffusionPrior.predict_x0(self, latents, t, noise_pred)


def _cameras(n: int):
    return _angles(*((360.0 * i / n, 15.0) for i in range(n)))


def _guidance(prior, view_prompts=None, **config) -> SDSGuidance:
    prompts = build_view_prompts(view_prompts or DirectionalPromptsConfig(), prior, "red duck")
    return SDSGuidance(SDSConfig(**config), prior, prompts)


def _renders(n: int = 2, size: int = 16) -> Tensor:
    images = torch.rand(n, size, size, 3, generator=torch.Generator().manual_seed(1))
    return images.requires_grad_()


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def priors(tiny_pipelines):
    """One prior per kind."""
    return {k: load_folder(f, torch.device("cpu")) for k, f in tiny_pipelines.items()}


def test_loss_has_the_wanted_gradient_divided_by_the_batch(generator):
    latents = 1e3 * torch.randn(3, 4, 8, 8, generator=generator)
    latents.requires_grad_()
    wanted = 1e-4 * torch.randn(3, 4, 8, 8, generator=generator)
    loss = gradient_loss(latents, wanted)
    loss.backward()
    torch.testing.assert_close(latents.grad, wanted / 3, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.detach(), 0.5 * wanted.square().sum() / 3)
    literal = 0.5 * (latents - (latents - wanted).detach()).square().sum() / 3
    assert literal.detach() != loss.detach(), "written literally, small gradients lose digits"


def test_gradient_norm_is_the_mean_over_views():
    assert gradient_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]])) == 3.0


def test_non_finite_entries_become_zero_and_are_counted():
    clean, count = replace_non_finite(torch.tensor([1.0, float("nan"), float("inf"), -2.0]))
    assert clean.tolist() == [1.0, 0.0, 0.0, -2.0]
    assert int(count) == 2


def test_weights_are_the_three_published_ones():
    alpha_bar = torch.tensor([0.0, 0.25, 1.0])
    assert sds_weight(alpha_bar, "sds").tolist() == [1.0, 0.75, 0.0]
    assert sds_weight(alpha_bar, "uniform").tolist() == [1.0, 1.0, 1.0]
    assert sds_weight(alpha_bar, "fantasia3d").tolist() == [0.0, 0.375, 0.0]


def test_gaussian_prior_fits_the_protocol():
    assert isinstance(GaussianPrior(0.0, 1.0), NoisePrior)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("t", [100, 500, 900])
def test_mean_and_spread_of_the_gradient_for_gaussian_data(t, weighting):
    """E[g] = w sigma alpha (x - mean) / v, spread w alpha^2 s^2 / v, v = alpha^2 s^2 + sigma^2."""
    mean, std, x, n = 0.9, 0.7, 0.2, 64
    timesteps = AnnealedTimestepsConfig(start_t=t / 1000, end_t=t / 1000)
    guidance = _guidance(
        GaussianPrior(mean, std), PlainPromptsConfig(), weighting=weighting, timesteps=timesteps
    )
    images = torch.full((n, 32, 32, 3), x, requires_grad=True)
    output = guidance(images, _cameras(n), fraction=0.5, generator=_seeded())
    output.loss.backward()
    g = images.grad * n
    alpha_bar = ALPHAS[t]
    weight = sds_weight(alpha_bar, weighting)
    variance = alpha_bar * std**2 + 1 - alpha_bar
    expected_mean = weight * ((1 - alpha_bar) * alpha_bar).sqrt() * (x - mean) / variance
    expected_std = weight * alpha_bar * std**2 / variance
    standard_error = expected_std / g.numel() ** 0.5
    assert abs(g.mean() - expected_mean) < 5 * standard_error
    torch.testing.assert_close(g.std(), expected_std, rtol=0.01, atol=0)
    assert output.t.tolist() == [t] * n


def test_following_the_gradient_reaches_the_mean_of_gaussian_data():
    guidance = _guidance(GaussianPrior(0.6, 0.0), PlainPromptsConfig(), weighting="uniform")
    images = torch.zeros(4, 4, 4, 3, requires_grad=True)
    optimizer, generator = torch.optim.Adam([images], lr=0.05), _seeded()
    for step in range(150):
        optimizer.zero_grad()
        guidance(images, _cameras(4), fraction=step / 150, generator=generator).loss.backward()
        optimizer.step()
    torch.testing.assert_close(images.detach(), torch.full_like(images, 0.6), atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", PIPELINE_KINDS)
@pytest.mark.parametrize("view_prompts", [DirectionalPromptsConfig(), PerpNegPromptsConfig()])
def test_gradient_reaches_the_render_and_nothing_else(priors, kind, view_prompts):
    prior, images = priors[kind], _renders(3)
    guidance = _guidance(prior, view_prompts, guidance_scale=7.5)
    output = guidance(images, _cameras(3), fraction=0.2, generator=_seeded())
    output.loss.backward()
    assert images.grad.shape == images.shape
    assert (images.grad.flatten(1).abs().amax(dim=1) > 0).all()
    modules = (prior.unet, prior.vae)
    assert all(p.grad is None for module in modules for p in module.parameters())
    assert int(output.non_finite) == 0
    assert output.grad_norm > 0


def test_gradient_is_the_encoder_jacobian_times_the_sds_gradient(priors):
    prior, images = priors["sd1"], _renders(2)
    timesteps = AnnealedTimestepsConfig(start_t=0.4, end_t=0.4)
    guidance = _guidance(prior, PlainPromptsConfig(), guidance_scale=5.0, timesteps=timesteps)
    guidance(images, _cameras(2), fraction=0.0, generator=_seeded()).loss.backward()

    again = images.detach().clone().requires_grad_()
    latents = prior.encode_images(again)
    noise = torch.randn(latents.shape, generator=_seeded())
    alpha_bar, t = ALPHAS[400], torch.tensor([400, 400])
    with torch.no_grad():
        z_t = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
        cond, uncond = prior.encode_prompt(["red duck"]), prior.encode_negative([""])
        noise_pred = prior.guided_noise(z_t, t, cond, uncond, 5.0)
        wanted = sds_gradient(noise_pred, noise, alpha_bar, "sds") / 2
    (expected,) = torch.autograd.grad(latents, again, wanted)
    torch.testing.assert_close(images.grad, expected, atol=1e-7, rtol=1e-4)


def test_denoiser_keeps_no_activations(priors):
    """What autograd stores grows with the encoder only: none of it comes from the denoiser."""
    prior, is_inside, stored = priors["sd1"], [], {True: 0, False: 0}

    def pack(tensor: Tensor) -> Tensor:
        stored[bool(is_inside)] += tensor.nbytes
        return tensor

    hooks = [
        prior.unet.register_forward_pre_hook(lambda *_: is_inside.append(True)),
        prior.unet.register_forward_hook(lambda *_: is_inside.clear()),
    ]
    guidance = _guidance(prior)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        guidance(_renders(), _cameras(2), fraction=0.0, generator=_seeded())
    for hook in hooks:
        hook.remove()
    assert stored[True] == 0
    assert stored[False] > 0


@pytest.mark.parametrize(
    ("view_prompts", "rows"), [(DirectionalPromptsConfig(), 4), (PerpNegPromptsConfig(), 8)]
)
def test_a_step_is_one_denoiser_call_one_encoding_and_no_decoding(priors, view_prompts, rows):
    prior, calls = priors["pocket"], []
    watched = {"unet": prior.unet, "encoder": prior.vae.encoder, "decoder": prior.vae.decoder}

    def note(name: str):
        return lambda _, args: calls.append((name, len(args[0])))

    hooks = [m.register_forward_pre_hook(note(name)) for name, m in watched.items()]
    guidance = _guidance(prior, view_prompts)
    output = guidance(_renders(), _cameras(2), fraction=0.0, generator=_seeded())
    assert calls == [("encoder", 2), ("unet", rows)]
    output.x0()
    for hook in hooks:
        hook.remove()
    assert calls[2:] == [("decoder", 2)]


def test_preview_is_the_decoded_clean_prediction(priors):
    guidance = _guidance(priors["pocket"], guidance_scale=3.0)
    images = guidance(_renders(), _cameras(2), fraction=0.0, generator=_seeded()).x0()
    assert images.shape == (2, 32, 32, 3)
    assert not images.requires_grad
    assert 0.0 <= images.min() <= images.max() <= 1.0
    exact = _guidance(GaussianPrior(0.6, 0.0), PlainPromptsConfig())
    x0 = exact(_renders(), _cameras(2), fraction=0.0, generator=_seeded()).x0()
    torch.testing.assert_close(x0, torch.full_like(x0, 0.6), atol=1e-4, rtol=0)


def test_same_generator_same_gradient(priors):
    guidance = _guidance(priors["pocket"])

    def gradient(seed: int) -> Tensor:
        images = _renders()
        guidance(images, _cameras(2), fraction=0.3, generator=_seeded(seed)).loss.backward()
        return images.grad

    assert torch.equal(gradient(4), gradient(4))
    assert not torch.equal(gradient(4), gradient(5))


def test_clipping_follows_its_schedule(priors):
    guidance = _guidance(priors["sd1"], grad_clip=((0.0, 0.5), (1.0, 0.001)))
    n_latents = 4 * 8 * 8
    for fraction, bound in ((0.0, 0.5), (1.0, 0.001)):
        output = guidance(_renders(), _cameras(2), fraction=fraction, generator=_seeded())
        assert 0 < output.grad_norm <= bound * n_latents**0.5 * 1.0001
    free = _guidance(priors["sd1"])(_renders(), _cameras(2), fraction=1.0, generator=_seeded())
    assert free.grad_norm > 0.001 * n_latents**0.5


def test_the_guidance_scale_follows_its_schedule(priors):
    def gradient(scale: object) -> Tensor:
        images = _renders()
        rule = _guidance(priors["sd1"], guidance_scale=scale)
        rule(images, _cameras(2), fraction=0.25, generator=_seeded()).loss.backward()
        return images.grad

    assert torch.equal(gradient(((0.0, 1.0), (1.0, 21.0))), gradient(6.0))
    assert not torch.equal(gradient(6.0), gradient(1.0))


def test_rescale_shrinks_an_overshooting_guidance(priors):
    def norm(share: float) -> float:
        guidance = _guidance(priors["pocket"], guidance_scale=100.0, guidance_rescale=share)
        return float(guidance(_renders(), _cameras(2), fraction=0.0, generator=_seeded()).grad_norm)

    assert norm(1.0) < norm(0.5) < norm(0.0)


def test_broken_denoiser_output_is_counted_and_leaves_no_gradient(tiny_pipelines):
    prior = load_folder(tiny_pipelines["sd1"], torch.device("cpu"))
    with torch.no_grad():
        prior.unet.conv_out.bias[0] = float("nan")
    images = _renders()
    output = _guidance(prior)(images, _cameras(2), fraction=0.0, generator=_seeded())
    output.loss.backward()
    assert int(output.non_finite) == 2 * 8 * 8
    assert torch.isfinite(output.loss)
    assert torch.isfinite(images.grad).all()
    assert images.grad.abs().max() > 0, "the other channels still guide"


def test_broken_render_shows_in_the_loss(priors):
    """A NaN in the render is the scene's fault and must stop the run, not be hidden."""
    images = torch.full((1, 16, 16, 3), float("nan"), requires_grad=True)
    output = _guidance(priors["sd1"])(images, _cameras(1), fraction=0.0, generator=_seeded())
    assert not torch.isfinite(output.loss)
    assert int(output.non_finite) > 0


def test_one_camera_per_render_is_required(priors):
    with pytest.raises(ShapeError, match="2 renders came with 3 cameras"):
        _guidance(priors["sd1"])(_renders(2), _cameras(3), fraction=0.0, generator=_seeded())


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="grad_clip has the value -1"):
        SDSConfig(grad_clip=-1.0)
    assert UniformTimestepsConfig() == SDSConfig().timesteps


def test_half_precision_prior_guides_like_the_full_one(tiny_pipelines):
    def gradient(dtype: torch.dtype) -> Tensor:
        prior = load_folder(tiny_pipelines["sd1"], torch.device("cpu"), dtype)
        images = _renders()
        guidance = _guidance(prior, guidance_scale=3.0)
        guidance(images, _cameras(2), fraction=0.0, generator=_seeded()).loss.backward()
        return images.grad.flatten()

    full, half = gradient(torch.float32), gradient(torch.float16)
    assert half.dtype == torch.float32
    assert torch.cosine_similarity(full, half, dim=0) > 0.999

"""The prior against the stock pipelines of every supported kind."""

from __future__ import annotations

import pytest
import torch

from image_tools.configs import DdimConfig
from image_tools.diffusion.conditions import Condition, TextEmbedding
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.sampling import ddim_steps, sample_images
from renderers.errors import ShapeError
from tests.tiny_models import PIPELINE_KINDS

CPU = torch.device("cpu")
PROMPTS = ["a purple duck, front view", "red mushroom"]
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def priors(tiny_pipelines):
    """One prior per kind."""
    return {kind: load_folder(folder, CPU) for kind, folder in tiny_pipelines.items()}


@pytest.fixture(scope="module")
def pipelines(tiny_pipelines):
    """The stock pipelines, sampling with DDIM, and for SDXL without rounding to bytes."""
    from diffusers import DDIMScheduler, DiffusionPipeline

    loaded = {}
    for kind, folder in tiny_pipelines.items():
        pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        loaded[kind] = pipeline
    return loaded


def _latents(prior, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    size = prior.latent_size
    return torch.randn(batch, prior.latent_channels, size, size, generator=generator)


@pytest.mark.parametrize("kind", PIPELINE_KINDS)
def test_encode_prompt_equals_the_stock_pipeline(priors, pipelines, kind):
    stock = pipelines[kind].encode_prompt(
        PROMPTS, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    cond = priors[kind].encode_prompt(PROMPTS)
    uncond = priors[kind].encode_negative(["", ""])
    torch.testing.assert_close(cond.tokens, stock[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(uncond.tokens, stock[1], atol=1e-6, rtol=1e-5)
    if kind == "sdxl":
        torch.testing.assert_close(cond.pooled, stock[2], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(uncond.pooled, stock[3])


def test_sdxl_encodes_a_spoken_negative_prompt(priors, pipelines):
    stock = pipelines["sdxl"].encode_prompt(
        "a duck", device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=True,
        negative_prompt="blurry",
    )  # fmt: skip
    uncond = priors["sdxl"].encode_negative(["blurry"])
    torch.testing.assert_close(uncond.tokens, stock[1], atol=1e-6, rtol=1e-5)
    assert uncond.tokens.abs().sum() > 0


@pytest.mark.parametrize("kind", PIPELINE_KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_images_equal_the_stock_pipeline(priors, pipelines, kind, eta):
    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (5, 6)]

    stock = pipelines[kind](
        PROMPTS, num_inference_steps=4, guidance_scale=5.0, guidance_rescale=0.4, eta=eta,
        generator=generators(), output_type="pt",
    ).images  # fmt: skip
    config = DdimConfig(steps=4, guidance_scale=5.0, guidance_rescale=0.4, eta=eta)
    ours = sample_images(priors[kind], PROMPTS, generators=generators(), config=config)
    assert (ours - stock.movedim(1, -1)).abs().max() < ROUNDING
    assert ours.std() > 0.05


def test_zero_terminal_snr_images_equal_the_stock_pipeline(tiny_pipelines, tmp_path):
    """The noise of the last timestep holds no image, yet our epsilon route stays accurate."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    folder = tmp_path / "zero_snr"
    pipeline = StableDiffusionPipeline.from_pretrained(
        tiny_pipelines["sd2_v"], local_files_only=True
    )
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    prior = load_folder(folder, CPU)
    config = DdimConfig(steps=4, guidance_scale=5.0)
    assert ddim_steps(prior, 4)[0].t == 999
    stock = pipeline(
        PROMPTS[0], num_inference_steps=4, guidance_scale=5.0, output_type="pt",
        generator=torch.Generator().manual_seed(5),
    ).images  # fmt: skip
    generators = [torch.Generator().manual_seed(5)]
    ours = sample_images(prior, PROMPTS[:1], generators=generators, config=config)
    assert (ours - stock.movedim(1, -1)).abs().max() < 1e-3


def test_image_does_not_depend_on_its_neighbours(priors):
    config = DdimConfig(steps=3, eta=1.0)

    def images(prompts, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return sample_images(priors["sd1"], prompts, generators=generators, config=config)

    torch.testing.assert_close(images(PROMPTS, (5, 6))[1:], images(PROMPTS[1:], (6,)))


def test_samplers_refuse_bad_numbers(priors):
    with pytest.raises(ValueError, match="Keep it from 1 to 1000"):
        ddim_steps(priors["sd1"], 0)
    with pytest.raises(ValueError, match=r"first is at timestep 1000, .* Take at most 999 steps"):
        ddim_steps(priors["sd1"], 1000)
    assert ddim_steps(priors["sd1"], 999)[0].t == 999
    with pytest.raises(ValueError, match="2 prompts came with 1 generators"):
        sample_images(priors["sd1"], PROMPTS, generators=[torch.Generator()])


@pytest.mark.parametrize("kind", PIPELINE_KINDS)
def test_sizes_come_from_the_configuration(priors, kind):
    prior = priors[kind]
    assert isinstance(prior, NoisePrior)
    assert prior.latent_size == 8
    assert prior.image_size == (32 if kind == "pocket" else 16)
    assert (prior.latent_channels, prior.num_train_timesteps) == (4, 1000)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_latents_are_the_scaled_posterior_mean(priors, pipelines, kind):
    images = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(1))
    vae = pipelines[kind].vae
    with torch.no_grad():
        stock = vae.encode(images.movedim(-1, 1) * 2 - 1).latent_dist.mode()
        ours = priors[kind].encode_images(images)
        torch.testing.assert_close(ours, stock * vae.config.scaling_factor)
        decoded = vae.decode(stock).sample.movedim(1, -1) / 2 + 0.5
        torch.testing.assert_close(priors[kind].decode_latents(ours), decoded.clamp(0, 1))


def test_latent_shift_and_statistics_are_undone_by_decoding(tiny_pipelines):
    images = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(1))
    plain = load_folder(tiny_pipelines["sd1"], CPU)
    moved = load_folder(tiny_pipelines["sd1"], CPU)
    moved.vae.register_to_config(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[2.0] * 4)
    with torch.no_grad():
        mean = plain.encode_images(images) / plain.vae.config.scaling_factor
        shift = torch.tensor([0.1, 0.2, 0.3, 0.4])[None, :, None, None]
        latents = moved.encode_images(images)
        torch.testing.assert_close(latents, (mean - shift) * 0.18215 / 2.0)
        torch.testing.assert_close(
            moved.decode_latents(latents), plain.decode_latents(mean * 0.18215)
        )


@pytest.mark.parametrize("size", [8, 16, 40])
def test_images_of_any_size_are_encoded_at_the_trained_size(priors, size):
    images = torch.rand(1, size, size, 3, requires_grad=True)
    latents = priors["pocket"].encode_images(images)
    assert latents.shape == (1, 4, 8, 8)
    latents.square().sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(p.grad is None for p in priors["pocket"].vae.parameters())


def test_encode_images_names_a_wrong_shape(priors):
    with pytest.raises(ShapeError, match=r"images has shape \(1, 3, 16, 16\)"):
        priors["sd1"].encode_images(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("kind", PIPELINE_KINDS)
def test_predict_noise_is_epsilon_of_the_denoiser_output(priors, kind):
    prior = priors[kind]
    latents, t = _latents(prior), torch.tensor([100, 700])
    cond = prior.encode_prompt(PROMPTS)
    with torch.no_grad():
        output = prior.predict_output(latents, t, cond)
        noise_pred = prior.predict_noise(latents, t, cond)
    alpha_bar = prior.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    if kind in ("sd2_v", "pocket"):
        expected = alpha_bar.sqrt() * output + (1 - alpha_bar).sqrt() * latents
        torch.testing.assert_close(noise_pred, expected)
    else:
        assert torch.equal(noise_pred, output)
    x0 = prior.predict_x0(latents, t, noise_pred)
    again = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise_pred
    torch.testing.assert_close(again, latents, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", PIPELINE_KINDS)
def test_guided_noise_is_the_one_formula(priors, kind):
    prior = priors[kind]
    latents, t = _latents(prior), torch.tensor([100, 700])
    cond, uncond = prior.encode_prompt(PROMPTS), prior.encode_negative([""])
    with torch.no_grad():
        eps_c = prior.predict_noise(latents, t, cond)
        eps_u = prior.predict_noise(latents, t, uncond)
        guided = prior.guided_noise(latents, t, cond, uncond, 7.5)
        conditional = prior.guided_noise(latents, t, cond, uncond, 1.0)
    assert (eps_c - eps_u).abs().max() > 1e-5
    torch.testing.assert_close(guided, eps_u + 7.5 * (eps_c - eps_u), atol=1e-5, rtol=1e-5)
    assert torch.equal(conditional, eps_c)


def test_guided_noise_calls_the_denoiser_once_with_both_halves(priors):
    prior, batches = priors["sd1"], []
    hook = prior.unet.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    cond, uncond = prior.encode_prompt(PROMPTS[:1]), prior.encode_negative([""])
    with torch.no_grad():
        prior.guided_noise(_latents(prior, 3), torch.tensor([1, 2, 3]), cond, uncond, 5.0)
    hook.remove()
    assert batches == [6]


def test_weights_are_frozen(priors):
    prior = priors["sdxl"]
    modules = [prior.unet, prior.vae, *(tower.encoder for tower in prior.text.towers)]
    assert not any(p.requires_grad for module in modules for p in module.parameters())
    assert not any(module.training for module in modules)


def test_condition_rows_are_checked_against_the_batch(priors):
    prior = priors["sd1"]
    cond = Condition(prior.encode_prompt(PROMPTS))
    with pytest.raises(ValueError, match="2 rows for 3 images"):
        prior.predict_noise(_latents(prior, 3), torch.tensor([1, 2, 3]), cond)


def test_text_rows_interpolate_and_repeat():
    a = TextEmbedding(torch.zeros(2, 3, 4), torch.zeros(2, 5))
    b = TextEmbedding(torch.ones(2, 3, 4), torch.ones(2, 5))
    mixed = a.lerp(b, torch.tensor([0.25, 1.0]))
    assert mixed.tokens[:, 0, 0].tolist() == [0.25, 1.0]
    assert mixed.pooled[:, 0].tolist() == [0.25, 1.0]
    assert mixed.select(torch.tensor([1, 1, 0])).pooled[:, 0].tolist() == [1.0, 1.0, 0.25]

"""InstructPix2Pix against the stock pipelines, its formula, and the plain prior."""

from __future__ import annotations

import pytest
import torch

from guidance.configs import SDSConfig
from guidance.prompts import PlainPrompts
from guidance.sds import SDSGuidance
from image_tools.configs import DdimConfig, DiffusersPriorConfig, PriorMemoryConfig
from image_tools.control.controlnet import Control, ControlledPrior
from image_tools.diffusion.loading import load_prior
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.sampling import sample_images
from image_tools.editing.instruct_pix2pix import InstructPix2PixPrior, inflate_conv_in
from image_tools.errors import UnsupportedModel
from renderers.cameras import orbit_cameras
from renderers.errors import ShapeError, StudioError
from tests.image_tools.control.tiny_controls import condition_images, tiny_controlnet
from tests.image_tools.editing.tiny_editors import tiny_edit_unet
from tests.image_tools.personalization.subjects import load_tiny

PROMPTS = ["make it purple", "add a hat"]
ROUNDING = 2e-5


def _generators():
    return [torch.Generator().manual_seed(seed) for seed in (5, 6)]


def _inputs(prior):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([100, 700])


@torch.no_grad()
def _guided(prior, scale: float = 5.0, **settings) -> torch.Tensor:
    cond, uncond = prior.encode_prompt(PROMPTS[:1]), prior.encode_negative([""])
    return prior.guided_noise(*_inputs(prior), cond, uncond, scale, **settings)


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_tiny(tiny_pipelines, "sd1")


@pytest.fixture(scope="module")
def unet(prior):
    return tiny_edit_unet(prior)


@pytest.mark.parametrize("kind", ["sd1", "sd2_v", "sdxl", "pocket"])
def test_without_images_the_plain_prior_predicts_bit_for_bit(tiny_pipelines, kind):
    plain = load_tiny(tiny_pipelines, kind)
    editor = InstructPix2PixPrior(plain, tiny_edit_unet(plain))
    assert isinstance(editor, NoisePrior)
    for scale in (1.0, 5.0):
        assert torch.equal(_guided(editor, scale), _guided(plain, scale))
    cond, (latents, t) = plain.encode_prompt(PROMPTS), _inputs(plain)
    with torch.no_grad():
        assert torch.equal(
            editor.predict_output(latents, t, cond), plain.predict_output(latents, t, cond)
        )
    editor.show(condition_images(plain))
    assert (_guided(editor) - _guided(plain)).abs().max() > 1e-2
    editor.show(None)
    assert torch.equal(_guided(editor), _guided(plain))


def test_an_inflated_denoiser_is_the_base_bias_included(prior):
    """New channels count nothing before training, whatever they show."""
    wide = inflate_conv_in(prior.unet, 4)
    assert torch.equal(wide.conv_in.bias, prior.unet.conv_in.bias)
    assert wide.config.in_channels == 8
    assert prior.unet.conv_in.weight.shape[1] == 4
    images = condition_images(prior)
    expected = _guided(prior)
    for shown in (images, 1.0 - images):
        editor = InstructPix2PixPrior(prior, wide, images=shown)
        torch.testing.assert_close(_guided(editor), expected, atol=ROUNDING, rtol=0)
    with torch.no_grad():
        wide.conv_in.weight.zero_()
    assert prior.unet.conv_in.weight.abs().sum() > 0


@pytest.mark.parametrize("scales", [(7.5, 1.5), (2.0, 1.0), (1.1, 3.0)])
def test_images_equal_the_stock_pipeline(tiny_pipelines, prior, unet, scales):
    from diffusers import DDIMScheduler, StableDiffusionInstructPix2PixPipeline

    stock = StableDiffusionInstructPix2PixPipeline.from_pretrained(
        tiny_pipelines["sd1"], unet=unet, safety_checker=None, local_files_only=True
    )
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    images, (text_scale, image_scale) = condition_images(prior, 2), scales
    expected = stock(
        PROMPTS, image=images.movedim(-1, 1), num_inference_steps=5, guidance_scale=text_scale,
        image_guidance_scale=image_scale, generator=_generators(), output_type="pt",
    ).images.movedim(1, -1)  # fmt: skip
    editor = InstructPix2PixPrior(prior, unet, images=images, image_scale=image_scale)
    config = DdimConfig(steps=5, guidance_scale=text_scale)
    ours = sample_images(editor, PROMPTS, generators=_generators(), config=config)
    assert (ours - expected).abs().max() < ROUNDING
    plain = sample_images(prior, PROMPTS, generators=_generators(), config=config)
    assert (ours - plain).abs().max() > 50 * ROUNDING


@pytest.mark.parametrize("condition_latents", ["unscaled", "scaled"])
def test_sdxl_images_equal_the_stock_pipeline(tiny_pipelines, condition_latents):
    from diffusers import DDIMScheduler, StableDiffusionXLInstructPix2PixPipeline

    prior = load_tiny(tiny_pipelines, "sdxl")
    unet, images = tiny_edit_unet(prior), condition_images(prior)
    stock = StableDiffusionXLInstructPix2PixPipeline.from_pretrained(
        tiny_pipelines["sdxl"], unet=unet, add_watermarker=False, local_files_only=True,
        is_cosxl_edit=condition_latents == "scaled",
    )  # fmt: skip
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    size = prior.image_size
    expected = stock(
        PROMPTS[0], image=images.movedim(-1, 1), num_inference_steps=5, guidance_scale=5.0,
        image_guidance_scale=1.5, generator=_generators()[0], output_type="pt",
        height=size, width=size,
    ).images.movedim(1, -1)  # fmt: skip
    editor = InstructPix2PixPrior(prior, unet, images=images, condition_latents=condition_latents)
    config = DdimConfig(steps=5, guidance_scale=5.0)
    ours = sample_images(editor, PROMPTS[:1], generators=_generators()[:1], config=config)
    assert (ours - expected).abs().max() < ROUNDING


@pytest.mark.parametrize("text_scale", [0.0, 0.5, 1.0, 1.5, 5.0])
@pytest.mark.parametrize("image_scale", [0.0, 0.5, 1.0, 1.5])
def test_the_formula_holds_for_every_pair_of_scales(prior, unet, text_scale, image_scale):
    images = condition_images(prior)
    shown = InstructPix2PixPrior(prior, unet, images=images, image_scale=image_scale)
    hidden = InstructPix2PixPrior(prior, unet, images=images)
    hidden.image_latents = torch.zeros_like(hidden.image_latents)
    cond, uncond = prior.encode_prompt(PROMPTS[:1]), prior.encode_negative([""])
    latents, t = _inputs(prior)
    with torch.no_grad():
        none = hidden.predict_noise(latents, t, uncond)
        image = shown.predict_noise(latents, t, uncond)
        both = shown.predict_noise(latents, t, cond)
    expected = none + image_scale * (image - none) + text_scale * (both - image)
    torch.testing.assert_close(_guided(shown, text_scale), expected, atol=ROUNDING, rtol=0)


def test_terms_that_count_nothing_are_not_computed(prior, unet):
    editor = InstructPix2PixPrior(prior, unet, images=condition_images(prior), image_scale=1.0)
    costs = []
    for text_scale, image_scale in ((1.0, 1.0), (5.0, 1.0), (1.5, 1.5), (5.0, 1.5)):
        editor.image_scale = image_scale
        before = editor.denoiser_evaluations
        _guided(editor, text_scale)
        costs.append((editor.denoiser_evaluations - before) // 2)
    assert costs == [1, 2, 2, 3]
    editor.denoiser_evaluations = 0
    assert editor.denoiser_evaluations == 0


def test_rescaled_guidance_has_the_spread_of_the_full_prediction(prior, unet):
    editor = InstructPix2PixPrior(prior, unet, images=condition_images(prior), image_scale=1.5)
    cond, (latents, t) = prior.encode_prompt(PROMPTS[:1]), _inputs(prior)
    with torch.no_grad():
        both = editor.predict_output(latents, t, cond)
    axes = (1, 2, 3)
    guided = _guided(editor, 8.0, rescale=1.0)
    torch.testing.assert_close(guided.std(axes), both.std(axes), rtol=1e-4, atol=0)
    assert (_guided(editor, 8.0).std(axes) - both.std(axes)).abs().min() > 1e-3


def test_the_image_is_the_posteriors_mode_and_not_scaled(prior, unet):
    images = condition_images(prior)
    editor = InstructPix2PixPrior(prior, unet, images=images)
    with torch.no_grad():
        mode = prior.vae.encode(images.movedim(-1, 1) * 2.0 - 1.0).latent_dist.mode()
    torch.testing.assert_close(editor.image_latents, mode, atol=1e-6, rtol=1e-5)
    scaled = InstructPix2PixPrior(prior, unet, images=images, condition_latents="scaled")
    torch.testing.assert_close(
        scaled.image_latents, mode * prior.vae.config.scaling_factor, atol=1e-6, rtol=1e-5
    )


def test_controls_fit_around_it(tiny_pipelines, prior, unet):
    editor = InstructPix2PixPrior(prior, unet, images=condition_images(prior))
    model, images = tiny_controlnet(prior), condition_images(prior, seed=2)
    off = ControlledPrior(editor, [Control(model, images, strength=0.0)])
    assert torch.equal(_guided(off), _guided(editor))
    on = ControlledPrior(editor, [Control(model, images)])
    assert (_guided(on) - _guided(editor)).abs().max() > 1e-2
    prompt_only = ControlledPrior(editor, [Control(model, images, mode="control")])
    cond, uncond, (latents, t) = (
        prior.encode_prompt(PROMPTS[:1]), prior.encode_negative([""]), _inputs(prior)
    )  # fmt: skip
    with torch.no_grad():
        both = prompt_only.predict_noise(latents, t, cond)
        image = editor.predict_noise(latents, t, uncond)
        bare = _guided(editor, 0.0)
    expected = bare + 5.0 * (both - image)
    torch.testing.assert_close(_guided(prompt_only), expected, atol=ROUNDING, rtol=0)


def test_it_guides_as_a_prior(prior, unet):
    """SDS of an edit: the gradient is w(t) times (guided - noise), from the renders' latents."""
    editor = InstructPix2PixPrior(prior, unet, images=condition_images(prior))
    prompts = PlainPrompts(
        prior.encode_prompt(PROMPTS[:1]), prior.encode_negative([""]), PROMPTS[0]
    )
    rule = SDSGuidance(SDSConfig(), editor, prompts)
    renders = condition_images(prior, 2, seed=3).requires_grad_()
    cameras = orbit_cameras(2, elevation_deg=10.0, distance=2.5, fovy_deg=40.0, height=16, width=16)
    output = rule(renders, cameras, fraction=0.5, generator=torch.Generator().manual_seed(0))
    output.loss.backward()
    assert renders.grad.isfinite().all()
    assert renders.grad.abs().sum() > 0


@pytest.mark.wrong_shapes
def test_wrong_inputs_are_refused(prior, unet):
    with pytest.raises(UnsupportedModel, match="takes 4 channels, expected 8"):
        InstructPix2PixPrior(prior, prior.unet)
    editor = InstructPix2PixPrior(prior, unet, images=condition_images(prior, 3))
    with pytest.raises(ShapeError, match="the edit has 3 images for 2 rows"):
        _guided(editor)
    with pytest.raises(ShapeError, match="images has shape"):
        editor.show(torch.zeros(1, 3, 16, 16))
    with pytest.raises(StudioError, match="got a InstructPix2PixPrior - expected a plain prior"):
        InstructPix2PixPrior(editor, unet)
    editor.show(condition_images(prior))
    cond, t = prior.encode_prompt(PROMPTS[:1]), torch.tensor([5])
    with pytest.raises(ShapeError, match=r"latents are \[8, 8\], the noisy ones \[16, 16\]"):
        editor.predict_noise(torch.zeros(1, 4, 16, 16), t, cond)


def test_attention_is_sliced_where_the_priors_is(tiny_pipelines, prior, unet):
    folder = str(tiny_pipelines["sd1"])
    memory = PriorMemoryConfig(attention_slicing=True)
    sliced = load_prior(DiffusersPriorConfig(model=folder, memory=memory), torch.device("cpu"))
    for plain in (prior, sliced):
        editor = InstructPix2PixPrior(plain, inflate_conv_in(plain.unet, 4)).editor
        kinds = [{type(p) for p in one.unet.attn_processors.values()} for one in (plain, editor)]
        assert kinds[0] == kinds[1]


def test_it_edits_at_the_priors_size_whatever_its_settings_say(prior, unet):
    """Stock pipelines take the picture's size, and ignore the edit model's own."""
    images, drawn = condition_images(prior), []
    for size in (prior.latent_size, 2 * prior.latent_size):
        other = type(unet).from_config({**unet.config, "sample_size": size})
        other.load_state_dict(unet.state_dict())
        drawn.append(_guided(InstructPix2PixPrior(prior, other, images=images)))
    assert torch.equal(*drawn)

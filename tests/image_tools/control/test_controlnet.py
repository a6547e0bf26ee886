"""ControlNets beside a prior, against the stock pipelines and against the plain prior."""

from __future__ import annotations

import pytest
import torch

from image_tools.configs import DdimConfig
from image_tools.control.control_configs import ControlConfig, NoiseWindow, StepWindow
from image_tools.control.controlnet import (
    Control,
    ControlledPrior,
    image_with_holes,
    layer_weights,
    window_gate,
)
from image_tools.diffusion.parametrization import classifier_free_guidance
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.sampling import ddim_steps, sample_images, sample_latents
from image_tools.errors import UnsupportedModel
from image_tools.personalization.consistency import ConsistencyPrior, Student
from renderers.errors import ShapeError, StudioError
from tests.image_tools.control.tiny_controls import condition_images, tiny_controlnet
from tests.image_tools.personalization.subjects import load_tiny

PROMPTS = ["a purple duck", "red mushroom"]
ROUNDING = 2e-5


def _inputs(prior, rows: int = 2):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(rows, 4, 8, 8, generator=generator)
    return latents, torch.tensor([100, 700])[:rows]


def _guided(prior, scale: float = 5.0, **settings) -> torch.Tensor:
    cond, uncond = prior.encode_prompt(["a purple duck"]), prior.encode_negative([""])
    return prior.guided_noise(*_inputs(prior), cond, uncond, scale, **settings)


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_tiny(tiny_pipelines, "sd1")


@pytest.fixture(scope="module")
def controlnet(prior):
    return tiny_controlnet(prior)


@pytest.mark.parametrize("kind", ["sd1", "sd2_v", "sdxl", "pocket"])
def test_without_strength_the_prediction_is_the_plain_one_bit_for_bit(tiny_pipelines, kind):
    plain = load_tiny(tiny_pipelines, kind)
    model, images = tiny_controlnet(plain), condition_images(plain)
    controls = [Control(model, images, strength=0.0)]
    closed = Control(model, images, window=NoiseWindow(low=0.8))
    with torch.no_grad():
        expected = _guided(plain)
        for off in ([], controls, [closed], [*controls, closed]):
            assert torch.equal(_guided(ControlledPrior(plain, off)), expected)
        on = _guided(ControlledPrior(plain, [Control(model, images)]))
    assert (on - expected).abs().max() > 1e-2


def test_a_new_controlnet_changes_nothing(prior):
    """Its last convolutions are zero, so that training starts from the plain prior."""
    from diffusers import ControlNetModel

    stride = prior.image_size // prior.latent_size
    widths = (16, 32, 96)[: stride.bit_length()]
    model = ControlNetModel.from_unet(prior.unet, conditioning_embedding_out_channels=widths)
    controlled = ControlledPrior(prior, [Control(model, condition_images(prior))])
    with torch.no_grad():
        assert torch.equal(_guided(controlled), _guided(prior))


@pytest.mark.parametrize("mode", ["balanced", "control"])
@pytest.mark.parametrize("window", [StepWindow(), StepWindow(start=0.2, end=0.8)])
def test_images_equal_the_stock_pipeline(tiny_pipelines, prior, controlnet, mode, window):
    from diffusers import DDIMScheduler, StableDiffusionControlNetPipeline

    stock = StableDiffusionControlNetPipeline.from_pretrained(
        tiny_pipelines["sd1"], controlnet=controlnet, safety_checker=None, local_files_only=True
    )
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    images = condition_images(prior, 2)
    expected = stock(
        PROMPTS, image=images.movedim(-1, 1), num_inference_steps=5, guidance_scale=4.0,
        generator=_generators(), output_type="pt", controlnet_conditioning_scale=0.7,
        guess_mode=mode == "control", control_guidance_start=window.start,
        control_guidance_end=window.end,
    ).images.movedim(1, -1)  # fmt: skip
    control = Control(controlnet, images, strength=0.7, window=window, mode=mode)
    ours, plain = _sampled(ControlledPrior(prior, [control])), _sampled(prior)
    assert (ours - expected).abs().max() < ROUNDING
    assert (ours - plain).abs().max() > 50 * ROUNDING


def test_sdxl_images_equal_the_stock_pipeline(tiny_pipelines):
    from diffusers import DDIMScheduler, StableDiffusionXLControlNetPipeline

    prior = load_tiny(tiny_pipelines, "sdxl")
    model, images = tiny_controlnet(prior), condition_images(prior, 2)
    stock = StableDiffusionXLControlNetPipeline.from_pretrained(
        tiny_pipelines["sdxl"], controlnet=model, add_watermarker=False, local_files_only=True
    )
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        PROMPTS, image=images.movedim(-1, 1), num_inference_steps=5, guidance_scale=4.0,
        generator=_generators(), output_type="pt",
    ).images.movedim(1, -1)  # fmt: skip
    ours = _sampled(ControlledPrior(prior, [Control(model, images)]))
    assert (ours - expected).abs().max() < ROUNDING
    assert (ours - _sampled(prior)).abs().max() > 50 * ROUNDING


def test_several_controls_add_up_as_in_the_stock_class(prior, controlnet):
    from diffusers import MultiControlNetModel

    second = tiny_controlnet(prior, seed=6)
    images, strengths = [condition_images(prior, seed=k) for k in (1, 2)], (0.6, 1.3)
    latents, t = _inputs(prior, 1)
    text = prior.encode_prompt(PROMPTS[:1])
    with torch.no_grad():
        down, mid = MultiControlNetModel([controlnet, second])(
            latents, t, text.tokens, [i.movedim(-1, 1) for i in images], strengths,
            return_dict=False,
        )  # fmt: skip
        expected = prior.unet(
            latents, t, encoder_hidden_states=text.tokens, return_dict=False,
            down_block_additional_residuals=down, mid_block_additional_residual=mid,
        )[0]  # fmt: skip
        controls = [
            Control(model, image, strength)
            for model, image, strength in zip((controlnet, second), images, strengths, strict=True)
        ]
        ours = ControlledPrior(prior, controls).predict_output(latents, t, text)
        nested = ControlledPrior(ControlledPrior(prior, controls[:1]), controls[1:])
        assert torch.equal(nested.predict_output(latents, t, text), ours)
    torch.testing.assert_close(ours, expected, atol=ROUNDING, rtol=0)


def test_modes_act_on_the_halves_that_they_name(prior, controlnet):
    images, (latents, t) = condition_images(prior), _inputs(prior)
    cond, uncond = prior.encode_prompt(["a duck"]), prior.encode_negative([""])

    def prediction(mode, text):
        one = ControlledPrior(prior, [Control(controlnet, images, mode=mode)])
        return one.predict_noise(latents, t, text)

    with torch.no_grad():
        plain_uncond = prior.predict_noise(latents, t, uncond)
        halves = {
            "balanced": (prediction("balanced", uncond), prediction("balanced", cond)),
            "prompt": (prediction("prompt", uncond), prediction("prompt", cond)),
            "control": (plain_uncond, prediction("control", cond)),
        }
        for mode, (without, with_text) in halves.items():
            one = ControlledPrior(prior, [Control(controlnet, images, mode=mode)])
            guided = one.guided_noise(latents, t, cond, uncond, 4.0)
            expected = classifier_free_guidance(without, with_text, 4.0)
            torch.testing.assert_close(guided, expected, atol=ROUNDING, rtol=0)
    assert torch.equal(halves["prompt"][1], halves["control"][1])
    assert (halves["balanced"][1] - halves["prompt"][1]).abs().max() > 1e-3


def test_layers_count_less_towards_the_finest_and_as_in_the_paper():
    weights = layer_weights(13, decays=True)
    assert weights[-1] == 1.0
    assert weights[0] == pytest.approx(0.1)
    official = [0.825 ** (12 - i) for i in range(13)]
    ratios = [ours / theirs for ours, theirs in zip(weights, official, strict=True)]
    assert min(ratios) > 0.994
    assert max(ratios) < 1.0061
    assert layer_weights(4, decays=False) == [1.0] * 4


def test_a_batch_equals_its_rows_one_by_one(prior, controlnet):
    images = condition_images(prior, 2)
    together = _guided(ControlledPrior(prior, [Control(controlnet, images)]))
    cond, uncond = prior.encode_prompt(["a purple duck"]), prior.encode_negative([""])
    latents, t = _inputs(prior)
    for row in range(2):
        one = ControlledPrior(prior, [Control(controlnet, images[row : row + 1])])
        alone = one.guided_noise(latents[row : row + 1], t[row : row + 1], cond, uncond, 5.0)
        torch.testing.assert_close(together[row : row + 1], alone, atol=ROUNDING, rtol=0)


def test_windows_by_noise_choose_rows_of_one_batch(prior, controlnet):
    """Rows at t = 100 and 700; only the second is noisy enough."""
    images = condition_images(prior)
    window = NoiseWindow(low=0.5)
    with torch.no_grad():
        part = _guided(ControlledPrior(prior, [Control(controlnet, images, window=window)]))
        whole = _guided(ControlledPrior(prior, [Control(controlnet, images)]))
        plain = _guided(prior)
    torch.testing.assert_close(part[:1], plain[:1], atol=ROUNDING, rtol=0)
    torch.testing.assert_close(part[1:], whole[1:], atol=ROUNDING, rtol=0)


def test_windows_by_steps_follow_the_stock_rule():
    steps = (900, 700, 500, 300, 100)
    gate = window_gate(StepWindow(start=0.2, end=0.8), torch.tensor(steps), 1000, steps)
    assert gate.tolist() == [False, True, True, True, False]
    with pytest.raises(StudioError, match="timestep 42 is no known step"):
        window_gate(StepWindow(start=0.2), torch.tensor([42]), 1000, steps)
    with pytest.raises(StudioError, match="window of kind noise"):
        window_gate(StepWindow(end=0.5), torch.tensor([900]), 1000, None)


def test_gradients_reach_latents_and_images_and_no_weights(prior, controlnet):
    images = condition_images(prior).requires_grad_()
    latents, t = _inputs(prior)
    latents.requires_grad_()
    one = ControlledPrior(prior, [Control(controlnet, images, strength=0.5)])
    probe = torch.randn(latents.shape, generator=torch.Generator().manual_seed(4))
    text = prior.encode_prompt(["a duck"])
    (one.predict_noise(latents, t, text) * probe).sum().backward()
    assert all(p.grad is None for p in [*controlnet.parameters(), *prior.unet.parameters()])
    step, row, col = 1e-2, 3, 4
    moved = images.detach().clone()
    values = []
    for sign in (1.0, -1.0):
        moved[0, row, col, 1] = images[0, row, col, 1].detach() + sign * step
        one.show([moved.clamp(0.0, 1.0)])
        with torch.no_grad():
            values.append((one.predict_noise(latents, t, text) * probe).sum().item())
    slope = (values[0] - values[1]) / (2.0 * step)
    assert slope == pytest.approx(images.grad[0, row, col, 1].item(), rel=2e-2, abs=2e-3)
    assert latents.grad.abs().sum() > 0


def test_channel_order_of_the_model_is_respected(prior, controlnet):
    images = condition_images(prior)
    with torch.no_grad():
        rgb = _guided(ControlledPrior(prior, [Control(controlnet, images)]))
        flipped = _guided(ControlledPrior(prior, [Control(controlnet, images.flip(-1))]))
        reversed_order = tiny_controlnet(prior, controlnet_conditioning_channel_order="bgr")
        bgr = _guided(ControlledPrior(prior, [Control(reversed_order, images.flip(-1))]))
    assert torch.equal(rgb, bgr)
    assert not torch.equal(rgb, flipped)


def test_pooled_controls_act_on_the_prompt_alone(prior):
    model, images = tiny_controlnet(prior, global_pool_conditions=True), condition_images(prior)
    with torch.no_grad():
        balanced = _guided(ControlledPrior(prior, [Control(model, images)]))
        control = _guided(ControlledPrior(prior, [Control(model, images, mode="control")]))
        assert torch.equal(balanced, control)
        assert not torch.equal(balanced, _guided(prior))


def test_controls_work_inside_and_around_other_priors(tiny_pipelines, prior, controlnet):
    """Consistency guidance of students that change nothing is the base's own prediction."""
    plain = load_tiny(tiny_pipelines, "sd1")
    student = ConsistencyPrior(plain, [Student(loras={})])
    controlled = ControlledPrior(student, [Control(controlnet, condition_images(prior))])
    assert isinstance(controlled, NoisePrior)
    alone = ControlledPrior(prior, [Control(controlnet, condition_images(prior))])
    with torch.no_grad():
        torch.testing.assert_close(_guided(controlled), _guided(alone), atol=ROUNDING, rtol=0)


def test_evaluations_are_the_priors(prior, controlnet):
    controlled = ControlledPrior(prior, [Control(controlnet, condition_images(prior))])
    before = prior.denoiser_evaluations
    with torch.no_grad():
        _guided(controlled)
    assert controlled.denoiser_evaluations == before + 4
    controlled.denoiser_evaluations = before
    assert prior.denoiser_evaluations == before


@pytest.mark.wrong_shapes
def test_bad_images_are_refused(prior, controlnet):
    images = condition_images(prior)

    def controlled(bad):
        return ControlledPrior(prior, [Control(controlnet, bad, name="depth")])

    with pytest.raises(ShapeError, match=r"control 'depth' has shape \(1, 16, 16\)"):
        controlled(images[..., 0])
    with pytest.raises(StudioError, match=r"'depth' have values from -1 to 1 - expected 0 to 1"):
        controlled(torch.linspace(-1.0, 1.0, 768).reshape(1, 16, 16, 3))
    with pytest.raises(ShapeError, match=r"'depth' are 8x16 pixels, expected 16x16 .* 8x8"):
        _guided(controlled(images[:, :8]))
    with pytest.raises(ShapeError, match=r"'depth' has 3 images for 2 rows"):
        _guided(controlled(images.repeat(3, 1, 1, 1)))
    with pytest.raises(ShapeError, match="2 condition images came for 1 controls"):
        controlled(images).show([images, images])


def test_an_inpainting_controlnet_sees_minus_one_in_holes(prior, controlnet):
    """As control_v11p_sd15_inpaint was trained: -1 in all channels where a picture is painted."""
    images = condition_images(prior)
    mask = torch.zeros(1, *images.shape[1:3], 1)
    mask[:, 4:9] = 1.0
    holed = image_with_holes(images, mask)
    assert bool((holed[:, 4:9] == -1.0).all())
    assert torch.equal(holed[:, 9:], images[:, 9:])
    with pytest.raises(StudioError, match=r"holes are -1, see Control\.has_holes"):
        ControlledPrior(prior, [Control(controlnet, holed)])
    seen = []
    hook = controlnet.register_forward_pre_hook(
        lambda module, inputs, settings: seen.append(settings["controlnet_cond"]),
        with_kwargs=True,
    )
    _guided(ControlledPrior(prior, [Control(controlnet, holed, has_holes=True)]))
    hook.remove()
    assert torch.equal(seen[0][0], holed[0].movedim(-1, 0))
    centred = 2.0 * images - 1.0
    with pytest.raises(StudioError, match="do not centre them around 0"):
        ControlledPrior(prior, [Control(controlnet, centred, has_holes=True)])


def test_a_controlnet_of_another_family_is_refused(tiny_pipelines, controlnet, prior):
    other = load_tiny(tiny_pipelines, "sdxl")
    with pytest.raises(UnsupportedModel, match=r"'control' has cross_attention_dim 16, .* 32"):
        ControlledPrior(other, [Control(controlnet, condition_images(prior))])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: StepWindow(start=0.5, end=0.5), "start 0.5, end 0.5 - expected"),
        (lambda: NoiseWindow(low=-0.1), "low -0.1, high 1.0 - expected"),
        (lambda: ControlConfig(weights="x", strength=-1.0), "strength is -1.0 - expected"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        settings()


def _generators():
    return [torch.Generator().manual_seed(seed) for seed in (5, 6)]


def _sampled(prior) -> torch.Tensor:
    config = DdimConfig(steps=5, guidance_scale=4.0)
    if not isinstance(prior, ControlledPrior):
        return sample_images(prior, PROMPTS, generators=_generators(), config=config)
    cond, uncond = prior.encode_prompt(PROMPTS), prior.encode_negative([""])
    with prior.sampling([step.t for step in ddim_steps(prior, config.steps)]):
        latents = sample_latents(prior, cond, uncond, generators=_generators(), config=config)
    return prior.decode_latents(latents)

"""Distillation under rendered conditions: what the ControlNet sees, its formula, and off."""

from __future__ import annotations

import pytest
import torch

from guidance.build import build_guidance
from guidance.configs import PlainPromptsConfig, SDSConfig
from guidance.control_sds import ControlSDSGuidance, condition_image
from guidance.control_sds_configs import ControlSDSConfig, SceneControlConfig
from guidance.critic_configs import CriticConfig, VSDConfig
from guidance.prompts import build_view_prompts
from guidance.sds import SDSGuidance
from guidance.vsd import VSDGuidance
from image_tools.control.annotators import depth_of_render
from image_tools.control.control_configs import ControlConfig, NoiseWindow, StepWindow
from image_tools.control.controlnet import Control, ControlledPrior
from image_tools.diffusion.parametrization import add_noise, alpha_sigma
from image_tools.errors import UnsupportedModel, WeightsMissing
from renderers.cameras import orbit_cameras
from renderers.errors import StudioError
from tests.image_tools.control.tiny_controls import tiny_controlnet
from tests.image_tools.personalization.subjects import load_tiny
from tests.renderers.test_condition_images import two_boxes
from tests.renderers.test_painted_mesh import field, renderer

RULES = {
    "sds": SDSConfig(guidance_scale=5.0),
    "vsd": VSDConfig(guidance_scale=5.0, critic=CriticConfig(rank=2)),
}


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_tiny(tiny_pipelines, "pocket")


@pytest.fixture(scope="module")
def net(prior, tmp_path_factory) -> str:
    """Folder of a ControlNet that does something."""
    folder = tmp_path_factory.mktemp("controlnet")
    tiny_controlnet(prior).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def views():
    """A render of two boxes, with normals, and its cameras."""
    size = 16
    cameras = orbit_cameras(2, elevation_deg=15, distance=4.0, fovy_deg=40, height=size, width=size)
    return renderer(field(two_boxes())).render(cameras, with_normals=True), cameras


def prompts(prior):
    return build_view_prompts(PlainPromptsConfig(), prior, "a red duck")


def config(net: str, *, rule="sds", sees="depth", **settings) -> ControlSDSConfig:
    control = SceneControlConfig(ControlConfig(weights=net, **settings), sees=sees)
    return ControlSDSConfig(controls=(control,), rule=RULES[rule])


def gradient(rule, views, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient on the renders, and the timesteps."""
    output, cameras = views
    images = output.comp_rgb.detach().clone().requires_grad_()
    rule.look(output, cameras)
    guided = rule(images, cameras, fraction=0.2, generator=torch.Generator().manual_seed(seed))
    guided.loss.backward()
    return images.grad, guided.t


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("settings", [{"strength": 0.0}, None], ids=["strength 0", "no control"])
def test_off_is_the_plain_rule_bit_for_bit(rule, settings, prior, net, views):
    off = (
        ControlSDSConfig(rule=RULES[rule])
        if settings is None
        else config(net, rule=rule, **settings)
    )
    guidance = build_guidance(off, prior, prompts(prior), seed=1)
    assert isinstance(guidance, ControlSDSGuidance)
    assert not guidance.wants_normals
    found, _ = gradient(guidance, views)
    guidance.close()
    plain = {"sds": SDSGuidance, "vsd": VSDGuidance}[rule](
        RULES[rule], prior, prompts(prior), seed=1
    )
    expected, _ = gradient(plain, views)
    plain.close()
    assert torch.equal(found, expected)


def test_gradient_is_that_of_the_controlled_prediction(prior, net, views):
    """g = (1 - alpha_bar) (eps_guided - eps) with both halves under the depth of the views."""
    output, cameras = views
    guidance = ControlSDSGuidance(config(net, strength=0.7), prior, prompts(prior), seed=0)
    found, t = gradient(guidance, views)

    depth = torch.nn.functional.interpolate(
        depth_of_render(output, cameras).movedim(-1, 1),
        (prior.image_size, prior.image_size),
        mode="bilinear",
        antialias=output.comp_rgb.shape[1] > prior.image_size,
    ).movedim(1, -1)
    controlled = ControlledPrior(
        prior, [Control(tiny_controlnet(prior), depth.detach().clamp(0, 1), strength=0.7)]
    )
    images = output.comp_rgb.detach().clone().requires_grad_()
    latents = prior.encode_images(images)
    generator = torch.Generator().manual_seed(0)
    torch.randint(20, 981, (2,), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    alpha, sigma = alpha_sigma(prior.alphas_cumprod, t, latents)
    with torch.no_grad():
        z_t = add_noise(latents, noise, alpha, sigma)
        text, empty = prior.encode_prompt(["a red duck"]), prior.encode_negative([""])
        cond = controlled.predict_noise(z_t, t, text)
        uncond = controlled.predict_noise(z_t, t, empty)
        g = sigma**2 * (uncond + 5.0 * (cond - uncond) - noise)
    latents.backward(g / 2)
    scale = float(found.abs().max())
    torch.testing.assert_close(found, images.grad, rtol=1e-3, atol=1e-4 * scale)
    plain, _ = gradient(SDSGuidance(RULES["sds"], prior, prompts(prior)), views)
    assert float((plain - found).abs().max()) > 1e-2 * scale, "the control changes nothing"


@pytest.mark.parametrize("sees", ["depth", "normals", "normals_bae", "edges", "regions"])
def test_every_condition_is_an_image_of_the_prior_size_and_reaches_the_guidance(
    sees, prior, net, views
):
    output, cameras = views
    image = condition_image(sees, output, cameras, size=32)
    assert image.shape == (2, 32, 32, 3)
    assert 0.0 <= float(image.min()) < float(image.max()) <= 1.0
    guidance = ControlSDSGuidance(config(net, sees=sees), prior, prompts(prior), seed=0)
    assert guidance.wants_normals == (sees in ("normals", "normals_bae", "edges"))
    found, _ = gradient(guidance, views)
    plain, _ = gradient(SDSGuidance(RULES["sds"], prior, prompts(prior)), views)
    assert not torch.equal(found, plain)


def test_public_normals_are_red_to_the_left(views):
    """The same surface: red is mirrored about its middle, green and blue are as they were."""
    output, cameras = views
    ours = condition_image("normals", output, cameras, size=32)
    theirs = condition_image("normals_bae", output, cameras, size=32)
    torch.testing.assert_close(theirs[..., 0], 1.0 - ours[..., 0])
    assert torch.equal(theirs[..., 1:], ours[..., 1:])
    assert float((theirs - ours).abs().max()) > 0.3


def test_conditions_do_not_see_the_colours(views):
    """A texture that is being painted must not become its own condition."""
    output, cameras = views
    painted = renderer(field(two_boxes()))
    with torch.no_grad():
        painted.field.head.weights[-1].mul_(-300.0)
        painted.field.grid.table.mul_(1e4)
    other = painted.render(cameras, with_normals=True)
    assert float((other.comp_rgb - output.comp_rgb).abs().max()) > 0.1
    for sees in ("depth", "normals", "edges", "regions"):
        mine = condition_image(sees, output, cameras, size=16)
        assert torch.equal(mine, condition_image(sees, other, cameras, size=16))


def test_regions_are_parts_in_different_colours(views):
    output, cameras = views
    image = condition_image("regions", output, cameras, size=16)
    assert len(image[0].reshape(-1, 3).unique(dim=0)) == 3


def test_no_gradient_reaches_the_shape(prior, net, views):
    output, cameras = views
    guidance = ControlSDSGuidance(config(net), prior, prompts(prior), seed=0)
    guidance.look(output, cameras)
    assert not guidance.prior.controls[0].images.requires_grad


def test_guidance_about_views_it_has_not_seen_is_refused(prior, net, views):
    output, cameras = views
    guidance = ControlSDSGuidance(config(net), prior, prompts(prior), seed=0)
    with pytest.raises(StudioError, match="has not seen"):
        guidance(output.comp_rgb, cameras, fraction=0.0, generator=torch.Generator())


def test_state_is_the_critics(prior, net, views):
    output, cameras = views
    guidance = build_guidance(config(net, rule="vsd"), prior, prompts(prior), seed=1)
    gradient(guidance, views)
    learned = guidance.after_step(
        output.comp_rgb.detach(), cameras, fraction=0.2, generator=torch.Generator().manual_seed(4)
    )
    assert set(learned) == set(guidance.metric_names()) == {"critic_loss"}
    state = {name: value.clone() for name, value in guidance.state().items()}
    expected, _ = gradient(guidance, views, seed=9)
    guidance.close()
    again = build_guidance(config(net, rule="vsd"), prior, prompts(prior), seed=2)
    again.load_state(state)
    found, _ = gradient(again, views, seed=9)
    again.close()
    assert torch.equal(found, expected)


def test_a_missing_adapter_is_one_clear_error(prior):
    absent = config("pocket-control-nothing")
    with pytest.raises(WeightsMissing, match="ControlNet are missing: 'pocket-control-nothing'"):
        build_guidance(absent, prior, prompts(prior), seed=0)


def test_a_controlnet_of_another_family_is_refused(prior, tiny_pipelines, tmp_path):
    from diffusers import ControlNetModel, UNet2DConditionModel

    settings = {**prior.unet.config, "cross_attention_dim": 8}
    other = UNet2DConditionModel.from_config(settings)
    ControlNetModel.from_unet(other, conditioning_embedding_out_channels=(4, 8)).save_pretrained(
        tmp_path
    )
    with pytest.raises(UnsupportedModel, match="cross_attention_dim"):
        build_guidance(config(str(tmp_path)), prior, prompts(prior), seed=0)


def test_windows_by_a_samplers_steps_are_refused_where_there_is_none():
    with pytest.raises(ValueError, match=r"net\.window\.kind=noise"):
        SceneControlConfig(ControlConfig(weights="x", window=StepWindow(end=0.5)))
    SceneControlConfig(ControlConfig(weights="x", window=NoiseWindow(low=0.5)))

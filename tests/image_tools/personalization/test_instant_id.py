"""InstantID beside a prior: equal to the stock pipeline's recipe, and nothing where it is off."""

from __future__ import annotations

import copy

import pytest
import torch

from image_tools.configs import DdimConfig
from image_tools.control.controlnet import Control, ControlledPrior
from image_tools.diffusion.additions import DenoiserCall
from image_tools.diffusion.conditions import Condition, cat_embeddings
from image_tools.diffusion.parametrization import classifier_free_guidance
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.sampling import sample_images
from image_tools.errors import UnsupportedModel
from image_tools.personalization.instant_id import InstantID, InstantIDPrior, identity_tokens
from image_tools.personalization.instant_id_configs import HeadConfig
from image_tools.personalization.ip_adapter import new_ip_adapter
from renderers.cameras import orbit_cameras
from renderers.errors import StudioError
from tests.image_tools.control.tiny_controls import condition_images, tiny_controlnet
from tests.image_tools.personalization.subjects import load_tiny
from tests.image_tools.personalization.tiny_instant_ids import (
    person,
    tiny_instant_id,
    tiny_prior_of,
)
from tests.image_tools.personalization.tiny_ip_adapters import nested

STOCK, ROUNDING = 1e-5, 2e-5
SCALE, CONTROL_SCALE = 0.8, 0.7
PROMPT = "a film still"
CONFIG = DdimConfig(steps=3, guidance_scale=4.0)


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_tiny(tiny_pipelines, "sdxl")


@pytest.fixture(scope="module")
def parts(prior):
    return tiny_instant_id(prior)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def _inputs(rows: int = 2):
    latents = torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return latents, torch.tensor([100, 700])[:rows]


def _guided(prior, scale: float = 4.0) -> torch.Tensor:
    cond, uncond = prior.encode_prompt([PROMPT]), prior.encode_negative([""])
    return prior.guided_noise(*_inputs(), cond, uncond, scale)


def _drawn(prior) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(5)]
    return sample_images(prior, [PROMPT], generators=generators, config=CONFIG)


def test_images_equal_the_stock_recipe(tiny_pipelines, prior, parts):
    """The ControlNet pipeline with load_ip_adapter, and a net that sees tokens of the identity."""
    from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionXLControlNetPipeline

    class IdentityNet(ControlNetModel):
        def forward(self, sample, timestep, encoder_hidden_states, *args, **kwargs):
            return super().forward(sample, timestep, self.identity, *args, **kwargs)

    net = copy.deepcopy(parts.net)
    net.__class__ = IdentityNet
    stock = StableDiffusionXLControlNetPipeline.from_pretrained(
        tiny_pipelines["sdxl"], controlnet=net, add_watermarker=False, local_files_only=True
    )
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    adapter = nested(parts.adapter)
    stock.load_ip_adapter(adapter, subfolder=None, weight_name=None, image_encoder_folder=None)
    stock.set_ip_adapter_scale(SCALE)
    embeds = torch.cat([torch.zeros_like(person()), person()])[:, None, None]
    net.identity = stock.unet.encoder_hid_proj([embeds])[0].flatten(1, 2)
    images = condition_images(prior)
    expected = stock(
        PROMPT, image=images.movedim(-1, 1), num_inference_steps=CONFIG.steps,
        guidance_scale=CONFIG.guidance_scale, generator=torch.Generator().manual_seed(5),
        output_type="pt", controlnet_conditioning_scale=CONTROL_SCALE,
        ip_adapter_image_embeds=[embeds],
    ).images.movedim(1, -1)  # fmt: skip
    ours = _drawn(tiny_prior_of(prior, parts, scale=SCALE, control_scale=CONTROL_SCALE))
    assert (ours - expected).abs().max() < STOCK
    told = Control(parts.net, images, CONTROL_SCALE)
    with_text = tiny_prior_of(ControlledPrior(prior, [told]), parts, scale=SCALE, control_scale=0.0)
    assert (_drawn(with_text) - expected).abs().max() > 50 * STOCK


@pytest.mark.parametrize("kind", ["sd1", "sd2_v", "sdxl", "pocket"])
def test_switched_off_the_prediction_is_the_plain_one_bit_for_bit(tiny_pipelines, kind):
    plain = load_tiny(tiny_pipelines, kind)
    parts = tiny_instant_id(plain)
    off = tiny_prior_of(plain, parts, scale=0.0, control_scale=0.0)
    assert isinstance(off, NoisePrior)
    assert torch.equal(_guided(off), _guided(plain))
    for one in ({"scale": 0.0}, {"control_scale": 0.0}, {}):
        assert (_guided(tiny_prior_of(plain, parts, **one)) - _guided(plain)).abs().max() > 1e-3


def test_the_unconditional_half_sees_an_identity_of_zeros_and_the_same_landmarks(prior, parts):
    tool, latents_t = tiny_prior_of(prior, parts), _inputs()
    guided = _guided(tool)
    cond = tool.predict_noise(*latents_t, prior.encode_prompt([PROMPT]))
    tool.show_identity(torch.zeros_like(person()))
    uncond = tool.predict_noise(*latents_t, prior.encode_negative([""]))
    expected = classifier_free_guidance(uncond, cond, 4.0)
    torch.testing.assert_close(guided, expected, atol=ROUNDING, rtol=0)


def test_rows_with_the_role_of_an_unconditional_one_see_zeros_in_any_call(prior, parts):
    tool, (latents, t) = tiny_prior_of(prior, parts), _inputs()
    text = prior.encode_prompt([PROMPT])
    both = Condition(cat_embeddings([text, text]), roles=("uncond", "cond"))
    together = tool.predict_noise(latents, t, both)
    told = tool.predict_noise(latents, t, text)
    tool.show_identity(torch.zeros_like(person()))
    untold = tool.predict_noise(latents, t, text)
    expected = torch.cat([untold[:1], told[1:]])
    torch.testing.assert_close(together, expected, atol=ROUNDING, rtol=0)


def test_each_latent_may_have_its_own_person_and_pose(prior, parts):
    images, people = condition_images(prior, 2), person(count=2)
    tool = tiny_prior_of(prior, parts)
    tool.show_identity(people)
    tool.show_keypoints(images)
    together = _guided(tool)
    latents, t = _inputs()
    cond, uncond = prior.encode_prompt([PROMPT]), prior.encode_negative([""])
    for row in range(2):
        rows = slice(row, row + 1)
        tool.show_identity(people[rows])
        tool.show_keypoints(images[rows])
        alone = tool.guided_noise(latents[rows], t[rows], cond, uncond, 4.0)
        torch.testing.assert_close(together[rows], alone, atol=ROUNDING, rtol=0)


def test_a_mask_limits_landmarks_and_identity(prior, parts):
    plain, free = _guided(prior), _guided(tiny_prior_of(prior, parts))
    masks = {name: torch.full((16, 16), value) for name, value in (("all", 1.0), ("none", 0.0))}
    inside = _guided(tiny_prior_of(prior, parts, mask=masks["all"]))
    nowhere = _guided(tiny_prior_of(prior, parts, mask=masks["none"]))
    torch.testing.assert_close(inside, free, atol=ROUNDING, rtol=0)
    torch.testing.assert_close(nowhere, plain, atol=ROUNDING, rtol=0)
    left = torch.zeros(16, 16)
    left[:, :8] = 1.0
    half = _guided(tiny_prior_of(prior, parts, mask=left))
    assert (half - plain).abs().max() > 1e-3
    assert (half - free).abs().max() > 1e-3


def test_residuals_are_masked_at_their_own_resolution(prior):
    """By a ControlNet alone: a residual is scaled by the share of its cell that is covered."""
    net, images = tiny_controlnet(prior), condition_images(prior)
    column = torch.zeros(16, 16)
    column[:, :5] = 1.0
    latents, t = _inputs()
    text = prior.encode_prompt([PROMPT])
    residuals = {}
    for name, mask in (("masked", column), ("whole", None)):
        tool = ControlledPrior(prior, [Control(net, images, mask=mask)])
        told = tool.modify(Condition(text).expand(2), 2, is_cond=True)
        added = {"text_embeds": text.expand(2).pooled, "time_ids": torch.zeros(2, 6)}
        call = DenoiserCall(latents, t, text.expand(2).tokens, added=added)
        residuals[name] = told.additions[0].apply(call)
    shares = torch.tensor([1.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0])
    whole, masked = (residuals[name].down[0] for name in ("whole", "masked"))
    torch.testing.assert_close(masked, whole * shares)
    torch.testing.assert_close(
        residuals["masked"].mid, residuals["whole"].mid * torch.tensor([1.0, 0.25, 0.0, 0.0])
    )


def test_other_controlnets_add_up_and_see_the_text(prior, parts):
    other = Control(tiny_controlnet(prior, seed=9), condition_images(prior, seed=3), 0.6)
    inside = _guided(tiny_prior_of(prior, parts, others=[other]))
    around = _guided(tiny_prior_of(ControlledPrior(prior, [other]), parts))
    torch.testing.assert_close(inside, around, atol=ROUNDING, rtol=0)
    assert (inside - _guided(tiny_prior_of(prior, parts))).abs().max() > 1e-3


def test_a_head_in_a_scene_is_followed_from_its_front_and_forgotten_behind(prior, parts):
    cameras = orbit_cameras(4, elevation_deg=0.0, distance=3.0, fovy_deg=40.0, height=16, width=16)[
        [0, 2]
    ]
    tool = tiny_prior_of(prior, parts, head=HeadConfig(height=1.2))
    tool.see_cameras(cameras)
    assert tool.controlled.controls[0].images[0].max() > 0.05
    assert tool.controlled.controls[0].images[1].max() == 0.0
    seen, plain = _guided(tool), _guided(prior)
    assert (seen[0] - plain[0]).abs().max() > 1e-3
    torch.testing.assert_close(seen[1], plain[1], atol=ROUNDING, rtol=0)
    tool.see_cameras(cameras[[1]])
    assert torch.equal(_guided(tool), plain)
    with pytest.raises(StudioError, match=r"none is given. Say where it is: prior.tool.head="):
        tiny_prior_of(prior, parts).see_cameras(cameras)


def test_gradients_reach_the_embedding(prior, parts):
    with torch.enable_grad():
        embedding = person().requires_grad_()
        tool = tiny_prior_of(prior, parts)
        tool.show_identity(embedding)
        _guided(tool).sum().backward()
    assert embedding.grad.abs().sum() > 0
    assert all(p.grad is None for p in [*parts.net.parameters(), *parts.adapter.parameters()])


def test_tokens_are_those_of_a_sequence_of_one(parts):
    tokens = identity_tokens(parts.adapter, person(count=3))
    assert tokens.shape == (3, 16, 32)
    torch.testing.assert_close(tokens[1:2], identity_tokens(parts.adapter, person(count=3)[1:2]))


def test_nobody_and_strangers_are_refused(prior, parts):
    tool = InstantIDPrior(prior, parts, condition_images(prior))
    with pytest.raises(StudioError, match=r"draws nobody yet. Call show_identity first"):
        _guided(tool)
    with pytest.raises(UnsupportedModel, match=r"of the person has 5 numbers - expected 12"):
        tool.show_identity(torch.zeros(1, 5))
    generator = torch.Generator().manual_seed(0)
    other = new_ip_adapter(prior.unet, "base", image_width=8, generator=generator)
    with pytest.raises(UnsupportedModel, match=r"is an IP-Adapter \(base\) - expected InstantID's"):
        InstantID(other, parts.net)

"""A prior with an IP-Adapter: off is plain, what each half sees, views, other tools beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from guidance.configs import PerpNegPromptsConfig, PlainPromptsConfig
from guidance.prompts import build_view_prompts
from image_tools.configs import DdimConfig, ReferencedPriorConfig
from image_tools.control.controlnet import Control, ControlledPrior
from image_tools.diffusion.conditions import Condition, cat_conditions
from image_tools.diffusion.loading import load_prior
from image_tools.diffusion.lora_apply import attach_to_prior, detach_from_prior
from image_tools.diffusion.multiview import MultiViewPrior
from image_tools.diffusion.parametrization import classifier_free_guidance
from image_tools.diffusion.prior import PriorParts
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.sampling import sample_images
from image_tools.editing.editing_configs import EditedPromptConfig, PromptToPromptConfig
from image_tools.editing.prompt_to_prompt import PromptToPromptPrior
from image_tools.errors import UnsupportedModel, WeightsMissing
from image_tools.personalization.ip_adapter_configs import (
    BlockScaleConfig,
    IPAdapterConfig,
    ViewFadeConfig,
)
from image_tools.personalization.ip_adapter_files import write_ip_adapter
from image_tools.personalization.ip_adapter_prior import IPAdapterPrior, view_scale
from image_tools.personalization.references import build_reference_tool
from image_tools.vision.face_configs import InsightFacesConfig
from renderers.errors import BackendMissing, ShapeError
from tests.image_tools.control.tiny_controls import condition_images, tiny_controlnet
from tests.image_tools.personalization.subjects import load_tiny
from tests.image_tools.personalization.tiny_ip_adapters import (
    FACE_WIDTH,
    nested,
    random_features,
    random_lora_keys,
    tiny_ip_adapter,
)
from tests.image_tools.random_loras import random_lora
from tests.image_tools.tiny_unets import tiny_multiview_unet
from tests.image_tools.vision.tiny_clip import write_tiny_clip

PROMPT, SCALE = "a purple duck", 5.0
KINDS = ["sd1", "sdxl", "pocket"]


def tiny_multiview_prior(base) -> MultiViewPrior:
    """Sets of four views with a prior's VAE, text and schedule."""
    parts = PriorParts(tiny_multiview_unet(), base.vae, base.text, base.scheduler_config, "mv")
    return MultiViewPrior(parts, views=4)


def latents_of(rows: int = 2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 4, 8, 8, generator=generator), torch.full((rows,), 400)


@torch.no_grad()
def guided(prior, cond=None, uncond=None, scale: float = SCALE, t: int = 400):
    latents, _ = latents_of()
    cond = prior.encode_prompt([PROMPT]) if cond is None else cond
    uncond = prior.encode_negative([""]) if uncond is None else uncond
    return prior.guided_noise(latents, torch.full((2,), t), cond, uncond, scale)


def shown(prior, images: int = 1, **settings) -> IPAdapterPrior:
    tool = IPAdapterPrior(prior, tiny_ip_adapter(prior.unet), **settings)
    absent = replace(random_features("base", images), clip=torch.zeros(images, 24))
    tool.show(random_features("base", images), absent)
    return tool


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_tiny(tiny_pipelines, "sd1")


@pytest.mark.parametrize("kind", KINDS)
def test_switched_off_it_is_the_plain_prior_bit_for_bit(tiny_pipelines, kind):
    prior = load_tiny(tiny_pipelines, kind)
    plain = guided(prior)
    nothing = IPAdapterPrior(prior, tiny_ip_adapter(prior.unet))
    off = [
        nothing,
        shown(prior, scale=0.0),
        shown(prior, blocks=[BlockScaleConfig("mid", (0.0,))]),
        shown(prior, window=(0.0, 0.5)),  # t = 400 is at 0.6
        shown(prior, window=(0.7, 1.0)),
    ]
    for tool in off:
        assert isinstance(tool, NoisePrior)
        assert torch.equal(guided(tool), plain)
    assert not torch.allclose(guided(shown(prior)), plain, atol=1e-3)
    assert torch.equal(guided(shown(prior, window=(0.5, 0.7))), guided(shown(prior)))
    assert torch.equal(guided(prior), plain)


def test_each_half_of_guidance_sees_its_own_images(prior):
    tool = shown(prior)
    latents, t = latents_of()
    cond, uncond = prior.encode_prompt([PROMPT]), prior.encode_negative([""])
    swapped = shown(prior)
    swapped.show_tokens(swapped._absent, swapped._tokens)  # to show a prompt no image
    with torch.no_grad():
        parts = swapped.predict_output(latents, t, uncond), tool.predict_output(latents, t, cond)
    expected = tool.to_noise(classifier_free_guidance(*parts, SCALE), latents, t)
    torch.testing.assert_close(guided(tool), expected, atol=2e-5, rtol=1e-5)


def test_rows_with_roles_are_halves_of_one_call(prior):
    tool = shown(prior)
    latents, t = latents_of()
    cond, uncond = (
        Condition(text.expand(2), roles=(role,) * 2)
        for text, role in (
            (prior.encode_prompt([PROMPT]), "cond"),
            (prior.encode_negative([""]), "uncond"),
        )
    )
    with torch.no_grad():
        both = tool.predict_output(
            torch.cat([latents, latents]), torch.cat([t, t]), cat_conditions([uncond, cond])
        )
    expected = tool.to_noise(classifier_free_guidance(*both.chunk(2), SCALE), latents, t)
    torch.testing.assert_close(guided(tool), expected, atol=2e-5, rtol=1e-5)


def test_images_of_several_rows_are_told_apart(prior):
    tool = shown(prior, images=2)
    alone = [shown(prior), shown(prior)]
    for k, one in enumerate(alone):
        own = tool._tokens[:, k : k + 1]
        one.show_tokens(own, own)
    mixed = shown(prior)
    own = tool._tokens.transpose(0, 1)
    mixed.show_tokens(own, own)
    outputs = torch.stack([guided(one)[k] for k, one in enumerate(alone)])
    torch.testing.assert_close(guided(mixed), outputs, atol=2e-5, rtol=1e-5)
    with pytest.raises(ShapeError, match="2 images came with 1 masks"):
        shown(prior, images=2, masks=torch.ones(1, 8, 8))


def test_scale_of_a_view_falls_from_the_front_to_the_sides():
    azimuth = torch.tensor([0.0, 60.0, -60.0, 90.0, 180.0, torch.nan])
    scale = view_scale(azimuth, 6, least=0.2)
    torch.testing.assert_close(scale, torch.tensor([1.0, 0.6, 0.6, 0.2, 0.2, 1.0]))
    assert torch.equal(view_scale(None, 3, least=0.2), torch.ones(3))


class Cameras:
    """Angles of two views."""

    def __init__(self, *azimuth: float) -> None:
        self.azimuth_deg, self.elevation_deg = torch.tensor(azimuth), torch.zeros(len(azimuth))


@pytest.mark.parametrize("prompts", [PlainPromptsConfig(), PerpNegPromptsConfig()])
def test_guidance_of_views_tells_the_tool_where_they_are(prior, prompts):
    """No rule knows the tool: prompts by view say from where each row is seen."""
    latents, t = latents_of()

    @torch.no_grad()
    def views(tool, *azimuth):
        text = build_view_prompts(prompts, tool, PROMPT)
        return text.at(Cameras(*azimuth)).guided_noise(tool, latents, t, SCALE)

    tool, faded = (shown(prior, fade=ViewFadeConfig(least)) for least in (1.0, 0.0))
    front, plain = views(tool, 0.0, 180.0), views(prior, 0.0, 180.0)
    both = views(faded, 0.0, 180.0)
    torch.testing.assert_close(both[0], front[0], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(both[1], plain[1], atol=2e-5, rtol=1e-5)
    assert not torch.allclose(front[1], plain[1], atol=1e-3)
    assert torch.equal(views(faded, 120.0, 180.0), views(prior, 120.0, 180.0))


def test_it_composes_with_controls_from_both_sides(prior):
    controls = [Control(tiny_controlnet(prior), condition_images(prior), 0.8)]
    inside = shown(ControlledPrior(prior, controls))
    around = ControlledPrior(shown(prior), controls)
    torch.testing.assert_close(guided(inside), guided(around), atol=2e-5, rtol=1e-5)
    for one in (ControlledPrior(prior, controls), shown(prior), prior):
        assert not torch.allclose(guided(inside), guided(one), atol=1e-3)


def test_adapters_around_each_other_add_up_in_either_order(prior):
    """As with several adapters of the stock pipeline: Z = text + sum of their images."""
    plus = tiny_ip_adapter(prior.unet, "plus")

    def beside(inner):
        tool = IPAdapterPrior(inner, plus, scale=0.5)
        tool.show(random_features("plus"), random_features("plus", seed=2))
        return tool

    both = guided(beside(shown(prior)))
    torch.testing.assert_close(both, guided(shown(beside(prior))), atol=2e-5, rtol=1e-5)
    for one in (beside(prior), shown(prior)):
        assert not torch.allclose(both, guided(one), atol=1e-3)


def test_it_composes_with_loras(prior):
    plain = guided(shown(prior))
    attach_to_prior(prior, random_lora({"unet": prior.unet}), name="style")
    try:
        assert not torch.allclose(guided(shown(prior)), plain, atol=1e-3)
        assert torch.equal(guided(shown(prior, scale=0.0)), guided(prior))
    finally:
        detach_from_prior(prior, "style")
    assert torch.equal(guided(shown(prior)), plain)


@torch.no_grad()
def test_it_composes_with_attention_across_views(tiny_pipelines):
    """In each view of a set images count by where it is seen from, in one call for both halves."""
    prior = tiny_multiview_prior(load_tiny(tiny_pipelines, "pocket"))
    latents, t = latents_of(4)
    cameras = torch.randn(4, 16, generator=torch.Generator().manual_seed(3))
    text = prior.encode_prompt([PROMPT]).expand(4)

    def views(tool, *azimuth):
        condition = Condition(text.seen_from(torch.tensor(azimuth)), cameras)
        return tool.predict_noise(latents, t, condition)

    tool = shown(prior, fade=ViewFadeConfig(0.0))
    behind = (120.0, 180.0, 240.0, 150.0)
    assert torch.equal(views(tool, *behind), views(prior, *behind))
    front = views(tool, 0.0, *behind[1:])
    assert not torch.allclose(front[0], views(prior, *behind)[0], atol=1e-3)
    assert not torch.allclose(front[2], views(prior, *behind)[2], atol=1e-5)  # they see each other


def test_it_composes_with_prompt_to_prompt(prior):
    """An edit to the same prompt that shares all attention is its source, images included."""
    config = PromptToPromptConfig(PROMPT, (EditedPromptConfig(PROMPT),), None, 4)
    tool = shown(prior)
    edited = PromptToPromptPrior(tool, config)
    latents, _ = latents_of(1)
    t = torch.full((2,), edited.clock.timesteps[1])
    text, untold = prior.encode_prompt([PROMPT] * 2), prior.encode_negative([""])
    with torch.no_grad():
        both = edited.guided_noise(latents.repeat(2, 1, 1, 1), t, text, untold, SCALE)
        alone = tool.guided_noise(latents, t[:1], text.select(torch.tensor([0])), untold, SCALE)
    torch.testing.assert_close(both, alone.expand_as(both), atol=2e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def files(prior, tmp_path_factory):
    """An encoder, adapters of two variants with what they want, and pictures."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("ip_adapter")
    write_tiny_clip(folder / "encoder", width=32, pooled=24)
    write_ip_adapter(folder / "base.safetensors", tiny_ip_adapter(prior.unet))
    face = nested(tiny_ip_adapter(prior.unet, "faceid"))
    face["ip_adapter"] |= random_lora_keys(prior.unet)
    torch.save(face, folder / "faceid.bin")
    np.save(folder / "me.npy", np.eye(FACE_WIDTH, dtype=np.float32)[0])
    for name, colour in (("red", (200, 20, 20)), ("blue", (20, 20, 200))):
        Image.new("RGB", (40, 30), colour).save(folder / f"{name}.png")
    return folder


def base_config(files, **settings) -> IPAdapterConfig:
    named = {"images": (str(files / "red.png"),), "image_encoder": str(files / "encoder")}
    return IPAdapterConfig(str(files / "base.safetensors"), **{**named, **settings})


def test_a_config_becomes_a_prior_that_draws(prior, files):
    tool = build_reference_tool(base_config(files), prior)
    draws = [
        sample_images(
            each,
            [PROMPT],
            generators=[torch.Generator().manual_seed(0)],
            config=DdimConfig(steps=2),
        )
        for each in (
            prior,
            build_reference_tool(base_config(files, scale=0.0), prior),
            tool,
            build_reference_tool(base_config(files, images=(str(files / "blue.png"),)), prior),
        )
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[2], draws[3])


def test_the_lora_of_faces_acts_with_the_tool_alone(prior, files):
    config = IPAdapterConfig(str(files / "faceid.bin"), identities=(str(files / "me.npy"),))
    plain = guided(prior)
    tool = build_reference_tool(config, prior)
    without = build_reference_tool(replace(config, lora_scale=0.0), prior)
    try:
        assert torch.equal(guided(prior), plain)
        acting = guided(tool)
        assert not torch.allclose(acting, guided(without), atol=1e-3)
        assert torch.equal(guided(prior), plain)
        tool.scale = 0.0
        assert torch.equal(guided(tool), plain)
    finally:
        tool.lora.remove()


@torch.no_grad()
def test_the_lora_of_faces_acts_in_the_tools_part_of_the_denoising(prior, files):
    """Row by row: in a batch of a guidance rule each has a timestep of its own."""
    config = IPAdapterConfig(
        str(files / "faceid.bin"), identities=(str(files / "me.npy"),), start=0.5
    )
    tool = build_reference_tool(config, prior)
    latents, t = latents_of()[0], torch.tensor([700, 300])
    cond, uncond = prior.encode_prompt([PROMPT]), prior.encode_negative([""])
    try:
        assert torch.equal(guided(tool, t=700), guided(prior, t=700))
        assert not torch.allclose(guided(tool, t=300), guided(prior, t=300), atol=1e-3)
        mixed, plain = (
            [p.guided_noise(latents, t, cond, uncond, SCALE), p.predict_output(latents, t, cond)]
            for p in (tool, prior)
        )
        late = guided(tool, t=300)[1]
        torch.testing.assert_close(mixed[0][1], late, atol=2e-5, rtol=1e-5)
        for ours, theirs in zip(mixed, plain, strict=True):
            assert torch.equal(ours[0], theirs[0])
            assert not torch.allclose(ours[1], theirs[1], atol=1e-3)
    finally:
        tool.lora.remove()


def test_a_prior_of_kind_referenced_is_the_same_tool(tiny_pipelines, prior, files):
    from image_tools.configs import DiffusersPriorConfig

    base = DiffusersPriorConfig(model=str(tiny_pipelines["sd1"]))
    config = ReferencedPriorConfig(base_config(files), base=base)
    loaded = load_prior(config, torch.device("cpu"))
    assert torch.equal(guided(loaded), guided(build_reference_tool(base_config(files), prior)))
    assert config.memory == base.memory


REFUSED = {
    "no encoder": ({"image_encoder": None}, WeightsMissing, "image_encoder: is empty"),
    "no weights": ({"weights": "absent.safetensors"}, WeightsMissing, "is not there"),
    "unknown block": ({"blocks": (BlockScaleConfig("up.9"),)}, UnsupportedModel, "names up.9"),
    "structure": ({"structure": 1.0}, UnsupportedModel, "an adapter that is a base"),
    "faces": ({"identities": ("me.npy",)}, UnsupportedModel, r"\(base\) reads no face"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(prior, files, name):
    settings, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        build_reference_tool(replace(base_config(files), **settings), prior)


def test_another_encoder_or_face_is_refused(prior, files, tmp_path):
    other = write_tiny_clip(tmp_path / "other", pooled=20)
    with pytest.raises(UnsupportedModel, match=r"makes 20 numbers, and .* reads 24"):
        build_reference_tool(base_config(files, image_encoder=str(other)), prior)
    config = IPAdapterConfig(str(files / "faceid.bin"), images=(str(files / "red.png"),))
    with pytest.raises(UnsupportedModel, match="faces 'mesh' has 1024 numbers - expected 12"):
        build_reference_tool(config, prior)
    with pytest.raises((BackendMissing, WeightsMissing), match="models/buffalo_l'"):
        build_reference_tool(replace(config, faces=InsightFacesConfig(root=str(tmp_path))), prior)
    np.save(tmp_path / "other.npy", np.zeros(5, np.float32))
    with pytest.raises(UnsupportedModel, match="has 5 numbers - expected 12"):
        build_reference_tool(replace(config, identities=(str(tmp_path / "other.npy"),)), prior)


def test_the_second_version_of_faceid_plus_is_not_read_as_the_first(prior, files, tmp_path):
    """Both have the same tensors, and the sum that only one of them knows makes another face."""
    adapter = tiny_ip_adapter(prior.unet, "faceid_plus")
    for name in ("ip-adapter-faceid-plusv2_sd15.bin", "ip-adapter-faceid-plus_sd15.bin"):
        write_ip_adapter(tmp_path / name, adapter)
    first = IPAdapterConfig(
        str(tmp_path / "ip-adapter-faceid-plus_sd15.bin"),
        images=(str(files / "red.png"),),
        identities=(str(files / "me.npy"),),
        image_encoder=str(write_tiny_clip(tmp_path / "encoder", width=24)),
    )
    second = replace(first, weights=str(tmp_path / "ip-adapter-faceid-plusv2_sd15.bin"))
    with pytest.raises(UnsupportedModel, match=r"of version 2 - expected .* tool.structure=1.0"):
        build_reference_tool(second, prior)
    tools = [build_reference_tool(one, prior) for one in (first, replace(second, structure=1.0))]
    assert not torch.allclose(*(tool._tokens for tool in tools), atol=1e-2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "images is empty"),
        ({"images": ("a", "b"), "identities": ("i",)}, "identities has 1 entries for 2 images"),
        ({"images": ("a", "b"), "masks": ("m",)}, "1 entries for 2 images"),
        ({"images": ("a",), "start": 0.5, "end": 0.5}, "start 0.5, end 0.5"),
        ({"images": ("a",), "scale": -1.0}, "scale is -1.0"),
        ({"images": ("a",), "blocks": (BlockScaleConfig("mid"),) * 2}, "each block once"),
    ],
)
def test_configs_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        IPAdapterConfig("adapter.safetensors", **settings)

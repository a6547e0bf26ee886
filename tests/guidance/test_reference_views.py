"""IP-Adapter under guidance: the base's gradient where it is off, and pictures by the view."""

from __future__ import annotations

import pytest
import torch

from guidance.configs import DirectionalPromptsConfig, SDSConfig, UniformTimestepsConfig
from guidance.multiview import MultiViewGuidance
from guidance.multiview_configs import MultiViewConfig
from guidance.prompts import build_view_prompts
from guidance.sds import SDSGuidance
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.multiview import MultiViewPrior
from image_tools.diffusion.prior import PriorParts
from image_tools.personalization.ip_adapter_configs import ViewFadeConfig
from image_tools.personalization.ip_adapter_prior import IPAdapterPrior
from renderers.cameras import orbit_cameras
from tests.image_tools.personalization.tiny_ip_adapters import random_features, tiny_ip_adapter
from tests.image_tools.tiny_unets import tiny_multiview_unet

# From the front, the left, behind and the right.
CAMERAS = orbit_cameras(4, elevation_deg=0.0, distance=3.0, fovy_deg=40.0, height=16, width=16)


def shown(prior, **settings) -> IPAdapterPrior:
    tool = IPAdapterPrior(prior, tiny_ip_adapter(prior.unet), **settings)
    tool.show(random_features("base"), random_features("base", seed=2))
    return tool


def gradient(rule, prior, config) -> torch.Tensor:
    """On the pixels of four renders."""
    prompts = build_view_prompts(DirectionalPromptsConfig(), prior, "a mug")
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(4, 16, 16, 3, generator=generator).requires_grad_()
    output = rule(config, prior, prompts)(images, CAMERAS, fraction=0.5, generator=generator)
    output.loss.backward()
    return images.grad


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_folder(tiny_pipelines["pocket"], torch.device("cpu"))


def test_score_distillation_of_a_tool_that_is_off_is_the_base_s_bit_for_bit(prior):
    plain = gradient(SDSGuidance, prior, SDSConfig())
    assert torch.equal(gradient(SDSGuidance, shown(prior, scale=0.0), SDSConfig()), plain)
    assert not torch.allclose(gradient(SDSGuidance, shown(prior), SDSConfig()), plain)


def test_a_picture_of_the_front_is_nothing_to_sides_and_back(prior):
    config = SDSConfig(timesteps=UniformTimestepsConfig())
    plain = gradient(SDSGuidance, prior, config)
    faded = gradient(SDSGuidance, shown(prior, fade=ViewFadeConfig(0.0)), config)
    changed = (faded - plain).abs().amax(dim=(1, 2, 3)) / plain.abs().max()
    assert changed[0] > 1e-3
    assert changed[1:].max() < 1e-2 * changed[0]  # guidance by 100 enlarges what is rounded


def test_the_rule_of_several_views_shows_each_its_own_share(prior):
    parts = PriorParts(tiny_multiview_unet(), prior.vae, prior.text, prior.scheduler_config, "mv")
    views = MultiViewPrior(parts, views=4)
    plain = gradient(MultiViewGuidance, views, MultiViewConfig())
    off = shown(views, scale=0.0)
    assert torch.equal(gradient(MultiViewGuidance, off, MultiViewConfig()), plain)
    faded = gradient(MultiViewGuidance, shown(views, fade=ViewFadeConfig(0.0)), MultiViewConfig())
    everywhere = gradient(
        MultiViewGuidance, shown(views, fade=ViewFadeConfig(1.0)), MultiViewConfig()
    )
    assert not torch.allclose(faded, plain)
    assert not torch.allclose(everywhere, faded)

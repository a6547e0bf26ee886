"""InstantID under score distillation: it follows the head from its front, and is nothing behind."""

from __future__ import annotations

import pytest
import torch

from guidance.configs import PlainPromptsConfig, SDSConfig
from guidance.prompts import build_view_prompts
from guidance.sds import SDSGuidance
from image_tools.diffusion.loading import load_folder
from image_tools.personalization.instant_id_configs import HeadConfig
from renderers.cameras import orbit_cameras
from tests.image_tools.personalization.tiny_instant_ids import tiny_instant_id, tiny_prior_of

HEAD = HeadConfig(height=1.0)
FRONT_AND_BACK = orbit_cameras(
    4, elevation_deg=0.0, distance=3.0, fovy_deg=40.0, height=16, width=16
)[[0, 2]]


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_folder(tiny_pipelines["sd1"], torch.device("cpu"))


@pytest.fixture(scope="module")
def parts(prior):
    return tiny_instant_id(prior)


def gradient(prior) -> torch.Tensor:
    """On the pixels of two renders."""
    prompts = build_view_prompts(PlainPromptsConfig(), prior, "a head")
    rule = SDSGuidance(SDSConfig(guidance_scale=5.0), prior, prompts)
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(2, 16, 16, 3, generator=generator).requires_grad_()
    prior.see_cameras(FRONT_AND_BACK)
    rule(images, FRONT_AND_BACK, fraction=0.5, generator=generator).loss.backward()
    return images.grad


def test_switched_off_the_gradient_is_the_base_s_bit_for_bit(prior, parts):
    off = tiny_prior_of(prior, parts, head=HEAD, scale=0.0, control_scale=0.0)
    assert torch.equal(gradient(off), gradient(prior))


def test_the_front_is_changed_and_the_back_is_not(prior, parts):
    changed = gradient(tiny_prior_of(prior, parts, head=HEAD)) - gradient(prior)
    assert changed[0].abs().max() > 1e-5
    assert changed[1].abs().max() < 1e-2 * changed[0].abs().max()

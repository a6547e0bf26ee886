"""Score distillation in the style of a picture: off it is plain, on it is the styled prediction."""

from __future__ import annotations

import pytest
import torch

from guidance.configs import DirectionalPromptsConfig, PerpNegPromptsConfig, SDSConfig
from guidance.prompts import build_view_prompts
from guidance.sds import SDSGuidance
from image_tools.diffusion.loading import load_folder
from image_tools.personalization.style_aligned import StyleReferencePrior
from image_tools.personalization.style_aligned_configs import StyleSharingConfig
from image_tools.personalization.style_references import noised_reference
from renderers.cameras import orbit_cameras
from tests.image_tools.personalization.subjects import images_of

OFF = StyleSharingConfig(attention="off", normalized=(), group_norm="own")
VIEWS = 3


@pytest.fixture(scope="module")
def plain(tiny_pipelines):
    return load_folder(tiny_pipelines["sd1"], torch.device("cpu"))


@pytest.fixture(scope="module")
def reference(plain):
    return noised_reference(plain, images_of(1), "a purple mushroom")


def gradient(prior, prompts_config, *, generator_seed=5):
    """Of the renders' colours, and the timesteps."""
    images = images_of(VIEWS, seed=2).requires_grad_()
    prompts = build_view_prompts(prompts_config, prior, "a red duck")
    rule = SDSGuidance(SDSConfig(guidance_scale=10.0), prior, prompts)
    generator = torch.Generator().manual_seed(generator_seed)
    cameras = orbit_cameras(
        VIEWS, elevation_deg=10.0, distance=2.0, fovy_deg=40.0, height=8, width=8
    )
    output = rule(images, cameras, fraction=0.2, generator=generator)
    output.loss.backward()
    return images.grad, output.t


@pytest.mark.parametrize("prompts", [DirectionalPromptsConfig(), PerpNegPromptsConfig()])
def test_off_gives_the_plain_gradient_bit_for_bit(plain, reference, prompts):
    wanted, _ = gradient(plain, prompts)
    off, _ = gradient(StyleReferencePrior(plain, reference, OFF), prompts)
    assert torch.equal(off, wanted)
    found, t = gradient(StyleReferencePrior(plain, reference), prompts)
    assert len(t.unique()) == VIEWS  # each view's reference has noise of its own
    assert found.isfinite().all()
    assert (found - wanted).abs().max() > 1e-3 * wanted.abs().max()


def test_the_same_step_gives_the_same_gradient(plain, reference):
    """The reference's noise is a function of the timestep, so a resumed run repeats it."""
    prior = StyleReferencePrior(plain, reference)
    first, _ = gradient(prior, DirectionalPromptsConfig())
    gradient(prior, DirectionalPromptsConfig(), generator_seed=6)
    again, _ = gradient(prior, DirectionalPromptsConfig())
    assert torch.equal(first, again)

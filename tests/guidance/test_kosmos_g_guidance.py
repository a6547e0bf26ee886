"""Sentences with pictures in 3D: view words follow them, and off is the plain prior's gradient."""

from __future__ import annotations

import pytest
import torch

from guidance.configs import DirectionalPromptsConfig, PerpNegPromptsConfig, SDSConfig
from guidance.critic import LoraCritic
from guidance.critic_configs import CriticConfig
from guidance.prompts import build_view_prompts
from guidance.sds import SDSGuidance
from image_tools.diffusion.loading import load_folder
from image_tools.personalization.kosmos_g import KosmosGPrior
from renderers.cameras import orbit_cameras
from tests.image_tools.personalization.subjects import images_of
from tests.image_tools.personalization.tiny_kosmos import tiny_kosmos

VIEWS = 3
PROMPT, WORDS = "a <i> hat", "a hat"


@pytest.fixture(scope="module")
def plain(tiny_pipelines):
    return load_folder(tiny_pipelines["sd1"], torch.device("cpu"))


@pytest.fixture(scope="module")
def prior(plain, tmp_path_factory):
    model = tiny_kosmos(tmp_path_factory.mktemp("vocabulary"))
    return KosmosGPrior(plain, model, images_of(1))


def cameras():
    return orbit_cameras(VIEWS, elevation_deg=10.0, distance=2.0, fovy_deg=40.0, height=8, width=8)


def gradient(prior, config, prompt):
    """Of the renders' colours."""
    images = images_of(VIEWS, seed=2).requires_grad_()
    prompts = build_view_prompts(config, prior, prompt, "red")
    rule = SDSGuidance(SDSConfig(guidance_scale=10.0), prior, prompts)
    generator = torch.Generator().manual_seed(5)
    rule(images, cameras(), fraction=0.2, generator=generator).loss.backward()
    return images.grad


@pytest.mark.parametrize("config", [DirectionalPromptsConfig(), PerpNegPromptsConfig()])
def test_off_gives_the_plain_gradient_bit_for_bit(plain, prior, config):
    wanted = gradient(plain, config, WORDS)
    with prior.off():
        assert torch.equal(gradient(prior, config, PROMPT), wanted)
    found = gradient(prior, config, PROMPT)
    assert found.isfinite().all()
    assert ((found - wanted).abs().amax(dim=(1, 2, 3)) > 1e-6).all()


def test_each_view_is_the_sentence_with_its_words(prior):
    prompts = build_view_prompts(DirectionalPromptsConfig(), prior, PROMPT)
    text = prompts.at(cameras()).positive.tokens
    told = prior.encode_prompt([f"{PROMPT}, front view"]).tokens
    assert torch.equal(text[:1], told)
    assert all(not torch.equal(text[0], other) for other in text[1:])


def test_a_critic_begins_as_the_prior_with_the_pictures(prior):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    t, text = torch.tensor([900, 100]), prior.encode_prompt([PROMPT])
    critic = LoraCritic(prior, CriticConfig(), seed=0)
    with torch.no_grad():
        found = critic.predict_noise(latents, t, critic.encode_prompt([PROMPT]), torch.zeros(2, 16))
        torch.testing.assert_close(found, prior.predict_noise(latents, t, text))
    critic.close()

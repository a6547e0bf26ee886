"""A person in 3D: views are decided by words, the person comes late, and off is the plain prior."""

from __future__ import annotations

import pytest
import torch

from guidance.configs import DirectionalPromptsConfig, PerpNegPromptsConfig, SDSConfig
from guidance.critic import LoraCritic
from guidance.critic_configs import CriticConfig
from guidance.prompts import build_view_prompts
from guidance.sds import SDSGuidance
from image_tools.diffusion.loading import load_folder
from image_tools.personalization.photomaker import photomaker_prior
from renderers.cameras import orbit_cameras
from tests.image_tools.personalization.subjects import images_of
from tests.image_tools.personalization.tiny_photomakers import portraits, tiny_photomaker

VIEWS = 3


@pytest.fixture(scope="module")
def plain(tiny_pipelines):
    return load_folder(tiny_pipelines["sdxl"], torch.device("cpu"))


@pytest.fixture(scope="module")
def person(plain):
    return photomaker_prior(plain, tiny_photomaker(plain, "v1"), portraits(), merge_t=800)


def cameras():
    return orbit_cameras(VIEWS, elevation_deg=10.0, distance=2.0, fovy_deg=40.0, height=8, width=8)


def gradient(prior, config, prompt):
    """Of the renders' colours, and the timesteps."""
    images = images_of(VIEWS, seed=2).requires_grad_()
    prompts = build_view_prompts(config, prior, prompt)
    rule = SDSGuidance(SDSConfig(guidance_scale=10.0), prior, prompts)
    generator = torch.Generator().manual_seed(5)
    output = rule(images, cameras(), fraction=0.2, generator=generator)
    output.loss.backward()
    return images.grad, output.t


@pytest.mark.parametrize("config", [DirectionalPromptsConfig(), PerpNegPromptsConfig()])
def test_off_gives_the_plain_gradient_bit_for_bit(plain, person, config):
    wanted, _ = gradient(plain, config, "a man")
    with person.off():
        off, _ = gradient(person, config, "a man img")
    assert torch.equal(off, wanted)
    found, _ = gradient(person, config, "a man img")
    assert found.isfinite().all()
    assert not torch.equal(found, wanted)


def test_views_with_less_noise_know_the_person(person):
    config = DirectionalPromptsConfig()
    person.merge_t = -1
    nobody, t = gradient(person, config, "a man img")
    person.merge_t = int(t.median())
    some, _ = gradient(person, config, "a man img")
    knows = (some - nobody).abs().amax(dim=(1, 2, 3)) > 1e-6
    assert knows.tolist() == (t <= t.median()).tolist()
    assert 0 < knows.sum() < VIEWS


def test_views_are_told_apart_with_and_without_the_person(plain, person):
    """View words stand in both halves of the embedding."""
    prompts = build_view_prompts(DirectionalPromptsConfig(), person, "a man img")
    text = prompts.at(cameras()).positive.tokens
    plain_text = build_view_prompts(DirectionalPromptsConfig(), plain, "a man").at(cameras())
    assert torch.equal(text[..., :32], plain_text.positive.tokens)
    for half in text.chunk(2, dim=-1):
        front, *others = half
        assert all(not torch.equal(front, other) for other in others)


def test_a_critic_begins_as_the_prior_with_the_person(person):
    """Adapters of critic and tool act together, and the critic leaves nothing behind."""
    person.merge_t = 500
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    t, text = torch.tensor([900, 100]), person.encode_prompt(["a man img"])
    with torch.no_grad():
        wanted = person.predict_noise(latents, t, text)
    critic = LoraCritic(person, CriticConfig(), seed=0)
    camera = torch.zeros(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(critic.predict_noise(latents, t, text, camera), wanted)
    critic.train_step(latents, text, camera, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        assert not torch.allclose(critic.predict_noise(latents, t, text, camera), wanted)
        assert torch.equal(person.predict_noise(latents, t, text), wanted)
    critic.close()
    with torch.no_grad():
        assert torch.equal(person.predict_noise(latents, t, text), wanted)

"""DreamFlow's last stage on an SDXL refiner: LoRA critic, camera embedding, quality scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from guidance.configs import PlainPromptsConfig
from guidance.critic import LoraCritic
from guidance.critic_configs import CriticConfig
from guidance.dreamflow import DreamFlowGuidance
from guidance.dreamflow_configs import DreamFlowConfig
from guidance.prompts import build_view_prompts
from image_tools.diffusion.camera_embedding import camera_vector
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.prior import DiffusionPrior
from renderers.cameras import Cameras, orbit_cameras
from tests.tiny_models import write_refiner

T = torch.tensor([40, 250])
REFINING = {"start_t": 0.3, "end_t": 0.0, "timesteps": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder of a tiny refiner."""
    return write_refiner(tmp_path_factory.mktemp("refiner") / "refiner")


@pytest.fixture
def prior(folder) -> DiffusionPrior:
    """A fresh refiner, since the critic changes its UNet."""
    return load_folder(folder, torch.device("cpu"))


def seeded(seed: int = 0) -> torch.Generator:
    """A new generator."""
    return torch.Generator().manual_seed(seed)


def cameras() -> Cameras:
    """Two views."""
    return orbit_cameras(2, elevation_deg=20.0, distance=3.0, fovy_deg=40.0, height=16, width=16)


def renders() -> Tensor:
    """Two pictures."""
    return torch.rand(2, 16, 16, 3, generator=seeded(1)).requires_grad_()


def rule_on(prior: DiffusionPrior, **critic) -> DreamFlowGuidance:
    """The rule of the last stage with its own critic."""
    config = DreamFlowConfig(
        **REFINING, critic=CriticConfig(learning_rate=0.05, camera_dropout=0.0, **critic)
    )
    prompts = build_view_prompts(PlainPromptsConfig(), prior, "a red duck", "blurry")
    return DreamFlowGuidance(config, prior, prompts, seed=0)


def train(rule: DreamFlowGuidance, seed: int = 5) -> None:
    """Two updates of the critic."""
    generator = seeded(seed)
    for fraction in (0.2, 0.3):
        rule.after_step(renders().detach(), cameras(), fraction=fraction, generator=generator)


def gradient(rule: DreamFlowGuidance) -> Tensor:
    """What reaches the pictures."""
    images = renders()
    output = rule(images, cameras(), fraction=0.5, generator=seeded(6))
    return torch.autograd.grad(output.loss, images)[0]


@torch.no_grad()
def prediction(critic: LoraCritic, camera: Tensor | None) -> Tensor:
    """The critic's noise for fixed latents."""
    latents = torch.randn(2, 4, 8, 8, generator=seeded(2))
    return critic.predict_noise(latents, T, critic.encode_prompt(["a red duck"]), camera)


def test_critic_starts_as_the_refiner_and_learns_to_tell_cameras(prior):
    rule = rule_on(prior)
    camera = camera_vector(cameras().c2w)
    start = prediction(rule.critic, None)
    assert torch.equal(prediction(rule.critic, camera), start)
    train(rule)
    moved = prediction(rule.critic, camera)
    assert (moved - start).abs().max() > 1e-4
    assert (moved - prediction(rule.critic, camera.flip(0))).abs().max() > 1e-4
    names = set(rule.critic.parameters)
    assert any(name.startswith("class_embedding") for name in names)
    assert any("lora" in name for name in names)


def test_refiner_predicts_bit_for_bit_as_without_a_critic(prior):
    def guided() -> Tensor:
        cond, uncond = prior.encode_prompt(["a duck"]), prior.encode_negative(["blurry"])
        with torch.no_grad():
            return prior.guided_noise(torch.ones(2, 4, 8, 8), T, cond, uncond, 7.5)

    names, plain = set(prior.unet.state_dict()), guided()
    rule = rule_on(prior)
    train(rule)
    assert torch.equal(guided(), plain)
    rule.close()
    assert torch.equal(guided(), plain)
    assert set(prior.unet.state_dict()) == names


def test_prior_and_critic_are_told_score_and_text_beside_the_camera(prior):
    """With a class embedding for the camera, the refiner's own conditions still arrive."""
    rule, seen = rule_on(prior), []

    def keep(_, args, kwargs) -> None:
        scores = kwargs["added_cond_kwargs"]["time_ids"][:, -1].tolist()
        labels = kwargs.get("class_labels")
        seen.append((scores, labels is not None and bool(labels.abs().sum() > 0)))

    prior.unet.register_forward_pre_hook(keep, with_kwargs=True)
    rule(renders(), cameras(), fraction=0.5, generator=seeded())
    rule.after_step(renders().detach(), cameras(), fraction=0.5, generator=seeded())
    assert [sorted(scores) for scores, _ in seen] == [[2.5, 2.5, 6.0, 6.0], [6.0] * 2, [6.0] * 2]
    assert [knows_camera for _, knows_camera in seen] == [False, True, True]


def test_no_gradient_without_guidance_until_the_critic_learns(prior):
    prompts = build_view_prompts(PlainPromptsConfig(), prior, "a red duck", "")
    config = DreamFlowConfig(**REFINING, guidance_scale=1.0)
    rule = DreamFlowGuidance(config, prior, prompts, seed=0)
    assert torch.count_nonzero(gradient(rule)) == 0
    train(rule)
    assert gradient(rule).abs().max() > 0


def test_state_goes_on_exactly(folder):
    rules = [rule_on(load_folder(folder, torch.device("cpu"))) for _ in range(2)]
    train(rules[0])
    rules[1].load_state(rules[0].state())
    for rule in rules:
        train(rule, seed=9)
    assert torch.equal(gradient(rules[0]), gradient(rules[1]))
    states = [rule.state() for rule in rules]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

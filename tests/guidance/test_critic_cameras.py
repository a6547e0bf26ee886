"""What variational distillation tells its critic of the cameras."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guidance.configs import PlainPromptsConfig
from guidance.critic_configs import CriticConfig, VSDConfig
from guidance.prompts import build_view_prompts
from guidance.vsd import VSDGuidance
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.prior import DiffusionPrior
from renderers.cameras import orbit_cameras
from tests.guidance.test_vsd import (
    GivenCritic,
    _cameras,
    _gradient,
    _learn,
    _learning,
    _renders,
    _seeded,
)

CPU = torch.device("cpu")


@pytest.fixture
def prior(tiny_pipelines) -> DiffusionPrior:
    """A fresh prior, since the critic changes its UNet."""
    return load_folder(tiny_pipelines["pocket"], CPU)


class ListeningCritic(GivenCritic):
    """Notes what it is told of the cameras, for a prediction and for an update."""

    def __init__(self) -> None:
        super().__init__(lambda z_t, t: z_t)
        self.told: list[Tensor | None] = []

    def predict_noise(self, latents: Tensor, t: Tensor, text, camera) -> Tensor:
        self.told.append(camera)
        return super().predict_noise(latents, t, text, camera)

    def train_step(self, latents, text, camera, *, t=None, generator) -> float:
        self.told.append(camera)
        return 0.0


@pytest.mark.parametrize("condition", ["extrinsics", "mvp", "none"])
def test_the_critic_is_told_the_pose_or_the_projection_or_nothing(prior, condition):
    """The projection alone tells views apart that differ in distance or field of view."""
    critic, prompts = ListeningCritic(), build_view_prompts(PlainPromptsConfig(), prior, "a duck")
    config = VSDConfig(critic=CriticConfig(camera_condition=condition))
    rule = VSDGuidance(config, prior, prompts, seed=0, critic=critic)
    views = [
        orbit_cameras(1, elevation_deg=15.0, distance=d, fovy_deg=f, height=16, width=16)
        for d, f in ((2.0, 40.0), (3.0, 60.0))
    ]
    for cameras in views:
        images = _renders(1)
        rule(images, cameras, fraction=0.5, generator=_seeded())
        rule.after_step(images, cameras, fraction=0.5, generator=_seeded())
    if condition == "none":
        assert critic.told == [None] * 4
        return
    near, near_again, far, _ = critic.told
    assert torch.equal(near, near_again)
    assert torch.allclose(near, far, atol=1e-6) is (condition == "extrinsics")
    if condition == "mvp":
        corner = torch.tensor([0.3, -0.2, 0.1, 1.0])
        clip = far.view(4, 4) @ corner
        depth = -(views[1].w2c()[0] @ corner)[2]
        assert float(clip[3]) == pytest.approx(float(depth), abs=1e-5)


def test_a_critic_of_projections_learns_and_resumes(prior):
    settings = {"camera_condition": "mvp", "learning_rate": 0.02, "guidance_scale": 1.5}
    rule = _learning(prior, **settings)
    start = _gradient(rule, _renders(), _cameras())
    _learn(rule, _renders())
    state = {name: value.clone() for name, value in rule.state().items()}
    learned = _gradient(rule, _renders(), _cameras())
    assert torch.count_nonzero(state["class_embedding.linear_2.weight"])
    assert not torch.equal(learned, start)
    rule.close()
    again = _learning(prior, **settings)
    again.load_state(state)
    assert torch.equal(_gradient(again, _renders(), _cameras()), learned)

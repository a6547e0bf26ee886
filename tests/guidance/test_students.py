"""The weight of the subject over a stage: a factor of every student's own."""

from __future__ import annotations

import pytest
import torch

from guidance.configs import PlainPromptsConfig, SDSConfig
from guidance.critic_configs import VSDConfig
from guidance.dreamflow_configs import DreamFlowConfig
from guidance.prompts import build_view_prompts
from guidance.sds import SDSGuidance
from guidance.students import weigh_students
from guidance.vsd import VSDGuidance
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.lora_apply import attach_to_prior, prior_modules
from image_tools.personalization.consistency import ConsistencyPrior, Student
from image_tools.personalization.dreambooth_configs import LoraShapeConfig
from image_tools.personalization.trainable_lora import new_lora
from renderers.cameras import orbit_cameras
from renderers.errors import StudioError

RISING = ((0.0, 0.0), (0.5, 2.0))


@pytest.fixture
def prior(tiny_pipelines):
    """A prior and a student that differs from it."""
    plain = load_folder(tiny_pipelines["pocket"], torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    attach_to_prior(plain, new_lora(plain, LoraShapeConfig(rank=2), generator), name="subject")
    with torch.no_grad():
        for name, parameter in prior_modules(plain)["unet"].named_parameters():
            if ".subject." in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return ConsistencyPrior(plain, [Student({"subject": 1.0}, scale=3.0)])


def gradient(rule, prior, fraction: float) -> torch.Tensor:
    """Of the same renders with the same noise."""
    images = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    cameras = orbit_cameras(2, elevation_deg=10.0, distance=2.0, fovy_deg=40.0, height=16, width=16)
    generator = torch.Generator().manual_seed(2)
    rule(images, cameras, fraction=fraction, generator=generator).loss.backward()
    return images.grad


def sds(prior, schedule) -> SDSGuidance:
    """Plain SDS, whose gradient is linear in the prediction."""
    prompts = build_view_prompts(PlainPromptsConfig(), prior, "a red duck")
    return SDSGuidance(SDSConfig(guidance_scale=7.5, consistency=schedule), prior, prompts)


def test_the_gradient_is_linear_in_the_factor(prior):
    none, half, whole = (gradient(sds(prior, RISING), prior, f) for f in (0.0, 0.125, 0.25))
    assert not torch.isclose(none, whole).all()
    torch.testing.assert_close(whole - none, 2.0 * (half - none), atol=1e-7, rtol=1e-3)
    assert torch.equal(gradient(sds(prior, 1.0), prior, 0.0), whole)


def test_a_critic_s_rule_follows_the_schedule_too(prior):
    prompts = build_view_prompts(PlainPromptsConfig(), prior, "a red duck")
    rule = VSDGuidance(VSDConfig(consistency=RISING), prior, prompts, seed=0)
    for fraction, strength in ((0.0, 0.0), (0.25, 1.0), (0.9, 2.0)):
        gradient(rule, prior, fraction)
        assert prior.scales == [3.0 * strength]
    rule.close()


def test_a_prior_without_students_takes_no_schedule(prior):
    weigh_students(prior.plain, 1.0, 0.5)
    with pytest.raises(StudioError, match=r"guidance\.consistency is 0\.5 with a prior without"):
        weigh_students(prior.plain, 0.5, 0.5)


@pytest.mark.parametrize("config", [SDSConfig, VSDConfig, DreamFlowConfig])
def test_factors_below_0_are_refused(config):
    with pytest.raises(ValueError, match=r"consistency has the value -1\.0"):
        config(consistency=((0.0, 1.0), (1.0, -1.0)))

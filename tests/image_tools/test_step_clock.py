"""What tools need of a sampler: its steps by timestep, roles of rows, a hand between steps."""

from __future__ import annotations

import pytest
import torch

from image_tools.configs import DdimConfig
from image_tools.diffusion.conditions import Condition, cat_conditions
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.sampling import ddim_steps, denoise_latents, unit_noise
from image_tools.diffusion.step_clock import StepClock
from renderers.errors import ShapeError


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_folder(tiny_pipelines["sd2_v"], torch.device("cpu"))


def generators(count: int = 2):
    return [torch.Generator().manual_seed(k) for k in range(count)]


@pytest.mark.parametrize("steps", [1, 7, 30, 50])
def test_each_timestep_of_a_sampler_is_its_step(prior, steps):
    schedule = [step.t for step in ddim_steps(prior, steps)]
    clock = StepClock(schedule)
    assert len(clock) == steps
    assert [clock.step(torch.tensor([t, t])) for t in schedule] == list(range(steps))


def test_other_timesteps_belong_to_the_step_below():
    clock = StepClock([801, 601, 401, 201, 1])
    told = {999: 0, 801: 0, 800: 1, 602: 1, 601: 1, 2: 4, 1: 4, 0: 4}
    assert {t: clock.step(torch.tensor([t])) for t in told} == told
    with pytest.raises(ShapeError, match=r"t holds \[1, 801\]"):
        clock.step(torch.tensor([1, 801]))


def test_roles_travel_with_conditions(prior):
    text = prior.encode_prompt(["a duck"])
    pair = cat_conditions(
        [Condition(text, roles=("uncond",)).expand(2), Condition(text, roles=("cond",)).expand(2)]
    )
    assert pair.roles == ("uncond", "uncond", "cond", "cond")
    assert Condition(text).expand(3).roles == ()


def test_latents_may_be_changed_between_steps(prior):
    cond, uncond = prior.encode_prompt(["a duck"]), prior.encode_negative([""])
    start, seen = unit_noise((4, 8, 6), generators(1), prior.device), []

    def remember(index, latents):
        seen.append(index)
        return torch.zeros_like(latents) if index == 3 else latents

    result = denoise_latents(
        prior, start, cond, uncond, generators=[], config=DdimConfig(steps=4), after_step=remember
    )
    assert seen == [0, 1, 2, 3]
    assert torch.equal(result, torch.zeros(1, 4, 8, 6))

"""Sampling with eta 1 against diffusers' DDPMScheduler, with the settings of SDXL's own file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from image_tools.diffusion.parametrization import noise_schedule
from image_tools.diffusion.sampling import ddim_step, ddim_steps
from image_tools.tryon.sampling import ddpm_schedule
from tests.image_tools.tryon.public_files import SDXL_SCHEDULER


@dataclass(frozen=True)
class Schedule:
    """What a sampler asks of a prior."""

    scheduler_config: dict[str, Any]
    alphas_cumprod: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "alphas_cumprod", noise_schedule(self.scheduler_config))

    @property
    def num_train_timesteps(self) -> int:
        return len(self.alphas_cumprod)


@pytest.mark.parametrize("zero_terminal", [False, True])  # SDXL's own, IDM-VTON's and BootComp's
@pytest.mark.parametrize("steps", [7, 30])
def test_every_step_is_ddpms_the_last_one_too(zero_terminal, steps):
    from diffusers import DDPMScheduler

    config = {**SDXL_SCHEDULER, "rescale_betas_zero_snr": zero_terminal}
    stock = DDPMScheduler.from_config(config)
    stock.set_timesteps(steps)
    own = ddim_steps(Schedule(ddpm_schedule(config)), steps)
    assert [step.t for step in own] == stock.timesteps.tolist()
    generator = torch.Generator().manual_seed(0)
    latents, output = (torch.randn(1, 4, 16, 12, generator=generator) for _ in range(2))
    for step in own:
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(step.t))
        found = ddim_step(latents, output, step, eta=1.0, noise=noise)
        again = torch.Generator().manual_seed(step.t)
        wanted = stock.step(output, step.t, latents, generator=again).prev_sample
        assert torch.allclose(found, wanted, atol=2e-5, rtol=2e-5), step.t


def test_without_it_the_last_step_is_ddims_and_leaves_noise():
    """CatVTON is sampled by DDIM with eta 1, whose files' settings hold as they are."""
    last = ddim_steps(Schedule(SDXL_SCHEDULER), 30)[-1]
    assert 0.999 < last.alpha_bar_prev < 1.0
    assert ddim_steps(Schedule(ddpm_schedule(SDXL_SCHEDULER)), 30)[-1].alpha_bar_prev == 1.0

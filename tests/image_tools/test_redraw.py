"""Images redrawn from part of the way into the noise."""

from __future__ import annotations

import pytest
import torch

from image_tools.configs import DdimConfig
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.redraw import redraw_images, redraw_steps
from image_tools.diffusion.sampling import ddim_steps

OLD_FOLDERS_LACK = ("clip_sample", "steps_offset")
SAMPLER = DdimConfig(steps=10, guidance_scale=3.0)


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_folder(tiny_pipelines["sd1"], torch.device("cpu"))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 16, 16, 3, generator=torch.Generator().manual_seed(0))


def redraw(prior, images, strength, *, first_seed=0):
    """Redraw with the stock guided prediction."""
    cond, uncond = prior.encode_prompt(["a duck"]), prior.encode_negative([""])
    return redraw_images(
        prior,
        images,
        lambda z_t, t: prior.guided_noise(z_t, t, cond, uncond, SAMPLER.guidance_scale),
        strength=strength,
        generators=[torch.Generator().manual_seed(first_seed + k) for k in range(len(images))],
        config=SAMPLER,
    )


def test_strength_0_returns_the_very_images(prior, images):
    before = prior.denoiser_evaluations
    assert torch.equal(redraw(prior, images, 0.0), images)
    assert prior.denoiser_evaluations == before


def test_the_last_steps_are_run_and_no_others(prior, images):
    every = ddim_steps(prior, 10)
    assert redraw_steps(prior, strength=1.0, steps=10) == every
    assert redraw_steps(prior, strength=0.6, steps=10) == every[4:]
    assert redraw_steps(prior, strength=0.01, steps=10) == every[-1:]
    before = prior.denoiser_evaluations
    redraw(prior, images, 0.6)
    assert prior.denoiser_evaluations - before == 6 * 2 * len(images)


def test_old_folders_are_read_as_the_stock_pipelines_read_them(prior, monkeypatch):
    """Theirs say nothing of clipping, and DDIM's own default is for pixels in -1..1."""
    every = ddim_steps(prior, 10)
    old = {k: v for k, v in prior.scheduler_config.items() if k not in OLD_FOLDERS_LACK}
    assert len(old) == len(prior.scheduler_config) - len(OLD_FOLDERS_LACK)
    monkeypatch.setattr(prior, "scheduler_config", old)
    assert ddim_steps(prior, 10) == every
    assert all(step.clip is None for step in every)


def test_a_denoiser_that_knows_the_noise_finds_the_way_back(prior, images):
    """It ends where DDIM's last step does: at the image with as much noise as that leaves in."""
    latents = prior.encode_images(images[:1])

    def known(z_t, t):
        alpha_bar = prior.alphas_cumprod[t].view(-1, 1, 1, 1)
        return (z_t - alpha_bar.sqrt() * latents) / (1.0 - alpha_bar).sqrt()

    redrawn = redraw_images(
        prior,
        images[:1],
        known,
        strength=0.7,
        generators=[torch.Generator().manual_seed(5)],
        config=SAMPLER,
    )
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(5))
    left = ddim_steps(prior, 10)[-1].alpha_bar_prev
    expected = prior.decode_latents(left**0.5 * latents + (1.0 - left) ** 0.5 * noise)
    torch.testing.assert_close(redrawn, expected, atol=1e-3, rtol=0.0)


def test_an_image_does_not_depend_on_its_neighbours(prior, images):
    together = redraw(prior, images, 0.5)
    alone = redraw(prior, images[1:2], 0.5, first_seed=1)
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=0.0)
    assert not torch.allclose(together[0], redraw(prior, images[:1], 0.5, first_seed=9)[0])


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_strengths_that_are_no_share_are_refused(prior, strength):
    with pytest.raises(ValueError, match=f"strength is {strength}"):
        redraw_steps(prior, strength=strength, steps=4)


def test_every_image_needs_a_generator(prior, images):
    with pytest.raises(ValueError, match="3 images came with 1 generators"):
        redraw_images(
            prior,
            images,
            lambda z_t, t: z_t,
            strength=0.5,
            generators=[torch.Generator()],
            config=SAMPLER,
        )

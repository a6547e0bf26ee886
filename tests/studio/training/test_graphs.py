"""Captured networks: the same numbers as layer by layer, forward and backward."""

from __future__ import annotations

import copy

import pytest
import torch

from studio.training.denoiser import DenoiserConfig, build_unet
from studio.training.graphs import Denoiser, captured
from studio.training.vae import VAEConfig, VAELoss, build_vae


def arguments(device: str, seed: int) -> tuple[torch.Tensor, ...]:
    """Noisy latents, timesteps and text states."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (
        torch.randn(4, 4, 16, 16, generator=generator),
        torch.randint(1000, (4,), generator=generator),
        torch.randn(4, 24, 384, generator=generator),
    )
    return tuple(tensor.to(device) for tensor in drawn)


def small_denoiser() -> Denoiser:
    """A stock UNet of few channels."""
    torch.manual_seed(0)
    return Denoiser(build_unet(DenoiserConfig(widths=(16, 32, 32), heads=2)))


def test_on_the_cpu_a_network_stays_as_it_is() -> None:
    denoiser = small_denoiser()
    assert captured(denoiser, arguments("cpu", 0)) is denoiser
    expected = denoiser.unet(*arguments("cpu", 1)[:2], arguments("cpu", 1)[2]).sample
    assert torch.equal(denoiser(*arguments("cpu", 1)), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_graph_gives_the_values_and_gradients_of_its_network() -> None:
    plain = small_denoiser().cuda().train()
    replayed = copy.deepcopy(plain)
    graph = captured(replayed, arguments("cuda", 0))
    for seed in (1, 2):
        for module, call in ((plain, plain), (replayed, graph)):
            module.zero_grad(set_to_none=True)
            call(*arguments("cuda", seed)).square().mean().backward()
        for (name, one), other in zip(plain.named_parameters(), replayed.parameters()):
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-2, atol=1e-4, msg=name)
        with torch.no_grad():  # a step of the weights must be seen by the next replay
            for one, other in zip(plain.parameters(), replayed.parameters()):
                one -= 0.1 * one.grad
                other -= 0.1 * one.grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_captured_loss_of_an_autoencoder_equals_the_plain_one() -> None:
    torch.manual_seed(0)
    config = VAEConfig(widths=(8, 8, 8))
    loss = VAELoss(build_vae(config).cuda().train(), config)
    images = torch.rand(2, 3, 64, 64, device="cuda") * 2 - 1
    noise = torch.randn(2, 4, 16, 16, device="cuda")
    expected = loss(images, noise).detach()
    graph = captured(loss, (torch.zeros_like(images), torch.zeros_like(noise)))
    torch.testing.assert_close(graph(images, noise).detach(), expected, rtol=1e-2, atol=1e-4)

"""Preconditioned text states: an exact change of coordinates that undoes the states' imbalance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from studio.training.conditioning import TextPreconditioner, text_projections
from studio.training.denoiser import TEXT_WIDTH, DenoiserConfig, build_unet


@pytest.fixture(scope="module")
def states() -> np.ndarray:
    """Text states ``[512, 4, 384]`` whose directions differ a thousandfold in size."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((TEXT_WIDTH, TEXT_WIDTH)))[0]
    rows = rng.standard_normal((512, 4, TEXT_WIDTH)) * np.geomspace(10, 0.01, TEXT_WIDTH)
    return (rows @ basis.T).astype(np.float32)


def small_unet() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_unet(DenoiserConfig(widths=(16, 16, 16), heads=2)).eval()


def prediction(unet: torch.nn.Module, text: torch.Tensor) -> torch.Tensor:
    latents = torch.randn(len(text), 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return unet(latents, torch.tensor(500), encoder_hidden_states=text).sample


def test_every_cross_attention_has_its_keys_and_values_changed_and_nothing_else(states) -> None:
    unet = small_unet()
    before = {name: p.clone() for name, p in unet.named_parameters()}
    TextPreconditioner.of_states(states, 1e-2).enter(unet)
    changed = {n for n, p in unet.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    assert len(changed) == len(text_projections(unet)) > 0


def test_entering_changes_no_prediction(states) -> None:
    unet, text = small_unet(), torch.from_numpy(states[:3])
    plain = prediction(unet, text)
    preconditioner = TextPreconditioner.of_states(states, 1e-2)
    preconditioner.enter(unet)
    torch.testing.assert_close(prediction(unet, preconditioner(text)), plain, atol=2e-5, rtol=1e-4)


def test_what_was_learned_stays_after_leaving(states) -> None:
    unet, text = small_unet(), torch.from_numpy(states[:3])
    preconditioner = TextPreconditioner.of_states(states, 1e-2)
    preconditioner.enter(unet)
    with torch.no_grad():
        for projection in text_projections(unet):
            projection.weight.add_(torch.randn_like(projection.weight), alpha=0.05)
    learned = prediction(unet, preconditioner(text))
    preconditioner.leave(unet)
    torch.testing.assert_close(prediction(unet, text), learned, atol=2e-4, rtol=1e-3)


def test_without_a_ridge_the_states_become_white(states) -> None:
    preconditioner = TextPreconditioner.of_states(states, 0.0)
    seen = preconditioner(torch.from_numpy(states)).flatten(0, 1).double()
    moment = seen.T @ seen / len(seen)
    torch.testing.assert_close(moment, torch.eye(TEXT_WIDTH).double(), atol=1e-2, rtol=0)


def test_the_ridge_bounds_how_much_a_direction_grows(states) -> None:
    flat = states.reshape(-1, TEXT_WIDTH).astype(np.float64)
    mean = np.square(flat).sum(1).mean() / TEXT_WIDTH
    for ridge in (1e-1, 1e-3):
        largest = torch.linalg.eigvalsh(TextPreconditioner.of_states(states, ridge).matrix)[-1]
        assert 0.9 < float(largest) * np.sqrt(ridge * mean) <= 1.0 + 1e-4


def test_states_that_never_vary_give_a_finite_matrix() -> None:
    states = np.ones((2, 3, 8), dtype=np.float16)
    preconditioner = TextPreconditioner.of_states(states, 1e-2)
    identity = preconditioner.matrix @ preconditioner.inverse
    torch.testing.assert_close(identity, torch.eye(8), atol=1e-4, rtol=0)

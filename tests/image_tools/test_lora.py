"""LoRA deltas: exactly absent when off, on top of other adapters when on, and cleanly removed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.lora import LORA_TARGETS, LoraAdapter
from image_tools.diffusion.prior import DiffusionPrior


@pytest.fixture
def prior(tiny_pipelines) -> DiffusionPrior:
    """A fresh prior, since these tests change its UNet."""
    return load_folder(tiny_pipelines["pocket"], torch.device("cpu"))


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _adapter(prior: DiffusionPrior, seed: int = 0, rank: int = 2) -> LoraAdapter:
    return LoraAdapter(prior.unet, rank=rank, generator=_seeded(seed))


def _train(parameters: dict[str, nn.Parameter]) -> None:
    """Stand in for training: numbers everywhere."""
    for parameter in parameters.values():
        nn.init.normal_(parameter, std=0.3, generator=_seeded(2))


@torch.no_grad()
def _predict(prior: DiffusionPrior) -> Tensor:
    latents = torch.randn(2, prior.latent_channels, 8, 8, generator=_seeded(1))
    return prior.predict_noise(latents, torch.tensor([100, 700]), prior.encode_prompt(["a duck"]))


def _wants_gradient(unet: nn.Module) -> set[str]:
    return {name for name, parameter in unet.named_parameters() if parameter.requires_grad}


def test_zero_at_first_and_exactly_absent_when_off(prior):
    plain = _predict(prior)
    lora = _adapter(prior)
    with lora.on():
        assert torch.equal(_predict(prior), plain)
    _train(lora.parameters)
    assert torch.equal(_predict(prior), plain)
    with lora.on():
        assert (_predict(prior) - plain).abs().max() > 1e-3
    assert torch.equal(_predict(prior), plain)


def test_every_attention_projection_has_a_delta_of_the_rank(prior):
    layers = [
        name
        for name, module in prior.unet.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(tuple(f".{t}" for t in LORA_TARGETS))
    ]
    lora = _adapter(prior, rank=3)
    expected = {f"{layer}.lora_{half}.weight" for layer in layers for half in "AB"}
    assert set(lora.parameters) == expected
    ranks = {p.shape[0] for name, p in lora.parameters.items() if ".lora_A." in name}
    assert ranks == {3}


def test_gradient_flags_follow_the_switch_although_peft_changes_them(prior):
    lora = _adapter(prior)
    assert _wants_gradient(prior.unet) == set()
    for _ in range(2):
        with lora.on():
            wanting = {id(p) for p in prior.unet.parameters() if p.requires_grad}
            assert wanting == {id(p) for p in lora.parameters.values()}
        assert _wants_gradient(prior.unet) == set()
    prior.unet.disable_adapters()
    prior.unet.enable_adapters()  # anyone may call these
    with lora.on():
        assert all(p.requires_grad for p in lora.parameters.values())
        assert _predict(prior).isfinite().all()
    assert _wants_gradient(prior.unet) == set()


def test_it_is_switched_off_after_an_error(prior):
    plain, lora = _predict(prior), _adapter(prior)
    _train(lora.parameters)

    def fail_inside() -> None:
        with lora.on():
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert torch.equal(_predict(prior), plain)
    assert _wants_gradient(prior.unet) == set()


@pytest.mark.parametrize("is_enabled", [True, False])
def test_another_adapter_stays_as_it_is(prior, is_enabled):
    from peft import LoraConfig

    plain = _predict(prior)
    prior.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "personal")
    named = dict(prior.unet.named_parameters())
    _train({name: value for name, value in named.items() if "personal" in name})
    if not is_enabled:
        prior.unet.disable_adapters()
    before, flags = _predict(prior), _wants_gradient(prior.unet)
    assert torch.equal(before, plain) == (not is_enabled)

    lora = _adapter(prior)
    assert torch.equal(_predict(prior), before)
    assert _wants_gradient(prior.unet) == flags
    with lora.on():
        assert torch.equal(_predict(prior), before), "zero deltas on top of the other adapter"
    _train(lora.parameters)
    with lora.on():
        assert not torch.equal(_predict(prior), before)
    assert torch.equal(_predict(prior), before)
    lora.remove()
    assert torch.equal(_predict(prior), before)
    assert _wants_gradient(prior.unet) == flags
    assert list(prior.unet.peft_config) == ["personal"]


def test_two_of_them_do_not_meet(prior):
    plain = _predict(prior)
    first, second = _adapter(prior, 0), _adapter(prior, 1)
    _train(first.parameters)
    with second.on():
        assert torch.equal(_predict(prior), plain)
    with first.on():
        seen = _predict(prior)
    second.remove()
    with first.on():
        assert torch.equal(_predict(prior), seen)
    assert not torch.equal(seen, plain)


def test_removing_it_leaves_the_unet_as_it_was(prior):
    plain, names = _predict(prior), list(prior.unet.state_dict())
    kinds = [type(module) for module in prior.unet.modules()]
    lora = _adapter(prior)
    _train(lora.parameters)
    lora.remove()
    lora.remove()
    assert torch.equal(_predict(prior), plain)
    assert list(prior.unet.state_dict()) == names
    assert [type(module) for module in prior.unet.modules()] == kinds
    assert _adapter(prior).parameters.keys() == lora.parameters.keys()


def test_deltas_are_float32_on_a_half_precision_unet(tiny_pipelines):
    prior = load_folder(tiny_pipelines["pocket"], torch.device("cpu"), torch.bfloat16)
    plain, lora = _predict(prior), _adapter(prior)
    assert {p.dtype for p in lora.parameters.values()} == {torch.float32}
    assert prior.dtype == torch.bfloat16
    with lora.on():
        assert torch.equal(_predict(prior), plain)
        _train(lora.parameters)
        assert not torch.equal(_predict(prior), plain)
    assert torch.equal(_predict(prior), plain)


def test_the_seed_decides_and_the_global_generator_is_left_alone(tiny_pipelines):
    values = []
    for seed in (5, 5, 6):
        prior = load_folder(tiny_pipelines["pocket"], torch.device("cpu"))
        before = torch.random.get_rng_state()
        values.append(next(iter(_adapter(prior, seed).parameters.values())))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])

"""LyCORIS layers become exact low-rank deltas: compared with their defining formulas and peft's."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from image_tools.diffusion.lora_deltas import LoraDelta
from image_tools.diffusion.lora_factors import (
    kept_energy,
    plain_delta,
    resized_delta,
    truncated_delta,
)
from image_tools.diffusion.lora_files import lora_layout, read_lora
from image_tools.diffusion.lora_layouts import lora_from_tensors
from image_tools.errors import UnsupportedModel, WeightsMissing
from renderers.errors import StudioError

LINEAR = "lora_unet_mid_block_attentions_0_proj_in"
CONV = "lora_unet_mid_block_resnets_0_conv1"
NAMES = {LINEAR: "mid_block.attentions.0.proj_in", CONV: "mid_block.resnets.0.conv1"}
ALPHA = 3.0


@pytest.fixture
def draw(generator):
    """Random tensors of a shape, from one generator."""
    return lambda *shape: torch.randn(*shape, generator=generator)


def read(stem: str, parts: dict[str, Tensor], alpha: float | None = ALPHA) -> LoraDelta:
    """The delta of a layer from its tensors."""
    tensors = {f"{stem}.{part}": value for part, value in parts.items()}
    if alpha is not None:
        tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    return lora_from_tensors(tensors, {}).sections["unet"][NAMES[stem]]


def close(delta: LoraDelta, weight: Tensor) -> bool:
    """Whether a delta is a change, in the same shape."""
    return delta.shape == weight.shape and torch.allclose(delta.weight(), weight, atol=1e-5)


@pytest.mark.parametrize("sides", [(24, 20), (6, 5)], ids=["low rank", "dense"])
def test_loha_is_the_product_of_two_products(sides, draw):
    outs, ins = sides
    parts = {
        "hada_w1_a": draw(outs, 3),
        "hada_w1_b": draw(3, ins),
        "hada_w2_a": draw(outs, 3),
        "hada_w2_b": draw(3, ins),
    }
    first = parts["hada_w1_a"] @ parts["hada_w1_b"]
    second = parts["hada_w2_a"] @ parts["hada_w2_b"]
    delta = read(LINEAR, parts)
    assert close(delta, ALPHA / 3 * first * second)
    assert delta.rank == min(9, *sides)


def test_loha_of_a_convolution_flat_and_with_cores(draw):
    flat = {
        "hada_w1_a": draw(8, 2),
        "hada_w1_b": draw(2, 6 * 9),
        "hada_w2_a": draw(8, 2),
        "hada_w2_b": draw(2, 6 * 9),
    }
    wanted = (flat["hada_w1_a"] @ flat["hada_w1_b"]) * (flat["hada_w2_a"] @ flat["hada_w2_b"])
    assert close(read(CONV, flat), ALPHA / 2 * wanted.reshape(8, 6, 3, 3))
    cores = {
        "hada_w1_a": draw(2, 8),
        "hada_w1_b": draw(2, 6),
        "hada_t1": draw(2, 2, 3, 3),
        "hada_w2_a": draw(2, 8),
        "hada_w2_b": draw(2, 6),
        "hada_t2": draw(2, 2, 3, 3),
    }
    rule = "ijkl,jr,ip->prkl"
    first = torch.einsum(rule, cores["hada_t1"], cores["hada_w1_b"], cores["hada_w1_a"])
    second = torch.einsum(rule, cores["hada_t2"], cores["hada_w2_b"], cores["hada_w2_a"])
    assert close(read(CONV, cores), ALPHA / 2 * first * second)


def test_lokr_is_a_kronecker_product(draw):
    coarse, up, down = draw(4, 3), draw(6, 2), draw(2, 8)
    delta = read(LINEAR, {"lokr_w1": coarse, "lokr_w2_a": up, "lokr_w2_b": down})
    assert close(delta, ALPHA / 2 * torch.kron(coarse, up @ down))
    assert delta.rank == 6
    small = {"lokr_w1_a": draw(4, 2), "lokr_w1_b": draw(2, 3)}
    both = read(LINEAR, {**small, "lokr_w2_a": up, "lokr_w2_b": down})
    coarse = small["lokr_w1_a"] @ small["lokr_w1_b"]
    assert close(both, ALPHA / 2 * torch.kron(coarse, up @ down))
    mixed = read(LINEAR, {**small, "lokr_w2": draw(6, 8)})
    assert mixed.shape == (24, 24)


def test_lokr_of_two_dense_factors_has_no_scale(draw):
    coarse, fine = draw(2, 2), draw(4, 3)
    assert close(read(LINEAR, {"lokr_w1": coarse, "lokr_w2": fine}), torch.kron(coarse, fine))


def test_lokr_of_a_convolution_dense_flat_and_with_a_core(draw):
    coarse, fine = draw(2, 2), draw(4, 3, 3, 3)
    wanted = torch.kron(coarse[:, :, None, None], fine)
    assert close(read(CONV, {"lokr_w1": coarse, "lokr_w2": fine}), wanted)
    up, down, core = draw(4, 2), draw(2, 3 * 9), draw(2, 2, 3, 3)
    flat = (up @ down).reshape(4, 3, 3, 3)
    found = read(CONV, {"lokr_w1": coarse, "lokr_w2_a": up, "lokr_w2_b": down})
    assert close(found, ALPHA / 2 * torch.kron(coarse[:, :, None, None], flat))
    first, second = draw(2, 4), draw(2, 3)
    fine = torch.einsum("ijkl,ip,jr->prkl", core, first, second).contiguous()
    parts = {"lokr_w1": coarse, "lokr_w2_a": first, "lokr_w2_b": second, "lokr_t2": core}
    assert close(read(CONV, parts), ALPHA / 2 * torch.kron(coarse[:, :, None, None], fine))


def test_cp_convolution_keeps_its_rank(draw):
    down, mid, up = draw(2, 6, 1, 1), draw(2, 2, 3, 3), draw(8, 2, 1, 1)
    parts = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up}
    delta = read(CONV, parts)
    wanted = torch.einsum("oi,ijkl,jc->ockl", up[..., 0, 0], mid, down[..., 0, 0])
    assert close(delta, ALPHA / 2 * wanted)
    assert (delta.rank, delta.alpha) == (2, ALPHA)


def test_full_differences_are_taken_as_they_are(draw):
    weight = draw(8, 6, 3, 3)
    assert close(read(CONV, {"diff": weight}, alpha=None), weight)
    with pytest.raises(UnsupportedModel, match="changes of norms"):
        read(CONV, {"diff": draw(8)})


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_peft_s_own_layers_of_the_kind_agree(kind):
    """An implementation that is not ours, with its own scale."""
    import peft

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 10))
    settings = getattr(peft, f"{kind}Config")(
        r=2, alpha=3, target_modules=["0"], init_weights=False
    )
    layer = peft.get_peft_model(model, settings).base_model.model[0]
    prefix = "hada_" if kind == "LoHa" else "lokr_"
    parts = {
        name.removesuffix(".default"): value.detach()
        for name, value in layer.named_parameters()
        if name.startswith(prefix)
    }
    with torch.no_grad():
        wanted = layer.get_delta_weight("default")
    assert len(parts) in (3, 4)
    assert close(read(LINEAR, parts), wanted)


def test_a_lycoris_file_is_told_and_read(draw, tmp_path):
    path = tmp_path / "lora.safetensors"
    factors = {"hada_w1_a": (8, 2), "hada_w1_b": (2, 6), "hada_w2_a": (8, 2), "hada_w2_b": (2, 6)}
    tensors = {f"{LINEAR}.{part}": draw(*shape) for part, shape in factors.items()}
    save_file({**tensors, f"{LINEAR}.alpha": torch.tensor(1.0)}, path)
    assert lora_layout(path) == "LyCORIS"
    assert read_lora(path).sections["unet"][NAMES[LINEAR]].rank == 4


def test_missing_and_misfit_factors_are_named(draw):
    parts = {"hada_w1_a": draw(8, 2), "hada_w1_b": draw(2, 6), "hada_w2_a": draw(8, 2)}
    with pytest.raises(WeightsMissing, match="'hada_w2_b'"):
        read(LINEAR, parts)
    with pytest.raises(WeightsMissing, match=r"do not fit.*hada_w2_b \[3, 6\]"):
        read(LINEAR, {**parts, "hada_w2_b": draw(3, 6)})
    with pytest.raises(WeightsMissing, match=r"do not fit.*hada_w2_b \[2\]"):
        read(LINEAR, {**parts, "hada_w2_b": draw(2)})
    with pytest.raises(WeightsMissing, match="'lokr_w2_a'"):
        read(LINEAR, {"lokr_w1": draw(2, 2)})
    mid = {"lora_mid.weight": draw(3, 3, 3, 3), "lora_up.weight": draw(8, 2, 1, 1)}
    with pytest.raises(WeightsMissing, match="lora_mid"):
        read(CONV, {"lora_down.weight": draw(2, 6, 1, 1), **mid})
    flat = {"hada_w1_a": (8, 2), "hada_w1_b": (2, 7), "hada_w2_a": (8, 2), "hada_w2_b": (2, 7)}
    with pytest.raises(UnsupportedModel, match="no multiple of its kernel"):
        read(CONV, {part: draw(*shape) for part, shape in flat.items()})


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (6, 4, 3, 3)])
def test_truncation_is_the_optimum_and_plain_deltas_are_exact(shape, draw):
    weight = draw(*shape)
    assert close(plain_delta(weight), weight)
    values = torch.linalg.svdvals(weight.flatten(1))
    delta = truncated_delta(weight, rank=3)
    error = (weight - delta.weight()).square().sum()
    assert torch.allclose(error, values[3:].square().sum(), rtol=1e-4)
    wanted = 1.0 - float(values[3:].square().sum() / values.square().sum())
    assert kept_energy(weight, delta) == pytest.approx(wanted, abs=1e-5)


def test_resizing_a_product_equals_truncating_what_it_multiplies_out_to(draw):
    delta = LoraDelta(draw(6, 5, 3, 3), draw(9, 6, 1, 1), alpha=2.0)
    wanted = truncated_delta(delta.weight(), rank=2)
    assert close(resized_delta(delta, 2), wanted.weight())
    assert resized_delta(delta, 6) is delta
    with pytest.raises(StudioError, match="rank of a LoRA is 0"):
        resized_delta(delta, 0)

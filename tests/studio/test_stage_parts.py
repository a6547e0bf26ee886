"""Devices, generators, optimiser state and loss weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from guidance.base import GuidanceOutput
from renderers.outputs import RenderOutput
from studio.configs import AdamConfig, AdamWConfig, LossesConfig
from studio.device import (
    PeakMemory,
    make_generators,
    peak_memory_bytes,
    resolve_device,
    thread_counts,
    use_thread_counts,
)
from studio.errors import CheckpointError, ConfigError
from studio.losses import active_weights, wants_normals, weighted_losses
from studio.optimizers import (
    build_optimizer,
    load_optimizer,
    optimizer_tensors,
    set_learning_rates,
)

CPU = torch.device("cpu")


def test_auto_is_a_device_that_exists():
    assert resolve_device("auto").type in {"cpu", "cuda"}
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize(
    ("capability", "built", "chosen"),
    [
        ((6, 1), ["sm_75", "sm_80", "sm_120", "compute_120"], "cpu"),
        ((7, 5), ["sm_75", "sm_80", "sm_90"], "cuda"),
        ((12, 0), ["sm_75", "sm_90a", "sm_120"], "cuda"),
        ((9, 0), ["gfx90a", "gfx1100"], "cuda"),  # ROCm
    ],
)
def test_auto_takes_no_gpu_that_this_pytorch_has_no_kernels_for(
    monkeypatch, caplog, capability, built, chosen
):
    for name, value in {
        "is_available": lambda: True,
        "get_arch_list": lambda: built,
        "get_device_capability": lambda _: capability,
        "get_device_name": lambda _: "GeForce GTX 1060",
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    assert resolve_device("auto").type == chosen
    assert ("GTX 1060 has CUDA capability 6.1" in caplog.text) is (chosen == "cpu")


@pytest.mark.parametrize(
    "name", ["", "gpu", "cuda:x", "cuda:99", "cpu:1", "CPU", "cpu:", "cuda:", "mps:", "cpu:²", ":0"]
)
def test_impossible_devices_are_refused(name):
    with pytest.raises(ConfigError, match="device:"):
        resolve_device(name)


def test_generators_depend_on_seed_and_name_only():
    first = make_generators(("a", "b"), seed=1, device=CPU)
    again = make_generators(("b",), seed=1, device=CPU)
    other = make_generators(("b",), seed=2, device=CPU)
    numbers = torch.rand(4, generator=first["b"])
    assert torch.equal(numbers, torch.rand(4, generator=again["b"]))
    assert not torch.equal(numbers, torch.rand(4, generator=other["b"]))
    assert not torch.equal(numbers, torch.rand(4, generator=first["a"]))


def test_peak_memory_is_plausible():
    assert 50e6 < peak_memory_bytes(CPU) < 1e12


def test_memory_of_stages_is_known_of_gpus_only():
    memory = PeakMemory(CPU)
    memory.begin("shape")
    assert memory.stages() == {}
    assert 50e6 < memory.total() <= peak_memory_bytes(CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_each_stage_has_its_own_peak_on_a_gpu():
    memory = PeakMemory(torch.device("cuda"))
    sizes = {"large": 1 << 26, "small": 1 << 22}
    for name, size in sizes.items():
        memory.begin(name)
        torch.empty(size, dtype=torch.uint8, device="cuda")
    peaks = memory.stages()
    assert peaks["large"]["allocated"] - peaks["small"]["allocated"] == (1 << 26) - (1 << 22)
    assert peaks["small"]["reserved"] < peaks["large"]["reserved"]
    assert memory.total() == peaks["large"]["allocated"]


def test_thread_counts_are_restored_or_refused():
    before = thread_counts()
    try:
        assert use_thread_counts({"torch": 2, "numba": 1})
        assert thread_counts() == {"torch": 2, "numba": 1}
        assert not use_thread_counts({"torch": 1, "numba": 100_000})
        assert use_thread_counts({})
        assert thread_counts() == {"torch": 2, "numba": 1}
    finally:
        use_thread_counts(before)


ADAM = AdamConfig()


class Model(nn.Module):
    """Two parameters, one of which may stay without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(3))
        self.weight = nn.Parameter(torch.ones(2, 2))


def train(model: Model, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """A few steps on a curved loss."""
    for _ in range(steps):
        optimizer.zero_grad()
        (model.table.cos().sum() + (model.weight**4).sum()).backward()
        optimizer.step()


def make(config: AdamConfig = ADAM) -> tuple[Model, torch.optim.Optimizer]:
    model = Model()
    groups = {"grid": [model.table], "network": [model.weight], "background": []}
    return model, build_optimizer(config, groups)


@pytest.mark.parametrize("config", [ADAM, AdamWConfig(weight_decay=0.5)])
def test_restored_optimizer_continues_bit_for_bit(config):
    model, optimizer = make(config)
    train(model, optimizer, 5)
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    tensors = optimizer_tensors(optimizer, dict(model.named_parameters()))
    tensors = {name: value.clone() for name, value in tensors.items()}
    assert set(tensors) == {
        f"{name}/{key}" for name in ("table", "weight") for key in ("step", "exp_avg", "exp_avg_sq")
    }
    train(model, optimizer, 3)

    again, fresh = make(config)
    again.load_state_dict(saved)
    load_optimizer(fresh, dict(again.named_parameters()), tensors)
    train(again, fresh, 3)
    assert torch.equal(again.table, model.table)
    assert torch.equal(again.weight, model.weight)


def test_optimizer_state_of_another_shape_is_refused():
    model, optimizer = make()
    with pytest.raises(CheckpointError, match=r"'table/exp_avg' has shape \(4,\)"):
        load_optimizer(optimizer, dict(model.named_parameters()), {"table/exp_avg": torch.zeros(4)})


@pytest.mark.parametrize("kind", [AdamConfig, AdamWConfig])
def test_learning_rates_follow_their_schedules(kind):
    model = Model()
    config = kind(grid=((0.0, 0.0), (1.0, 2.0)), network=0.5)
    optimizer = build_optimizer(config, {"grid": [model.table], "network": [model.weight]})
    set_learning_rates(optimizer, config, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    assert optimizer.param_groups[0]["name"] == "grid"


def test_weight_decay_takes_its_share_of_the_scheduled_rate_and_leaves_idle_parameters_alone():
    config = AdamWConfig(grid=((0.0, 0.0), (1.0, 0.4)), network=0.1, weight_decay=0.5)
    model, optimizer = make(config)
    idle = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [idle], "name": "network", "lr": 0.1})
    set_learning_rates(optimizer, config, 0.25)
    (0.0 * (model.table.sum() + model.weight.sum())).backward()
    optimizer.step()
    torch.testing.assert_close(model.table, torch.full((3,), 1 - 0.1 * 0.5))
    torch.testing.assert_close(model.weight, torch.full((2, 2), 1 - 0.1 * 0.5))
    assert torch.equal(idle, torch.ones(2)), "a particle whose turn it is not"


def test_without_weight_decay_adamw_is_adam():
    models = []
    for config in (AdamConfig(), AdamWConfig(weight_decay=0.0)):
        model, optimizer = make(config)
        train(model, optimizer, 4)
        models.append(model)
    assert torch.equal(models[0].table, models[1].table)
    assert torch.equal(models[0].weight, models[1].weight)


def test_a_negative_weight_decay_is_refused():
    with pytest.raises(ValueError, match=r"weight_decay is -0\.1 - expected 0 or more"):
        AdamWConfig(weight_decay=-0.1)


def test_only_terms_with_a_weight_are_computed_and_weighted():
    config = LossesConfig(guidance=2.0, sparsity=((0.0, 0.0), (1.0, 4.0)), orient=0.0)
    assert active_weights(config, 0.0) == {}
    assert active_weights(config, 0.5) == {"sparsity": 2.0}
    assert wants_normals(LossesConfig(orient=1.0), 0.5)
    assert not wants_normals(config, 0.5)
    opacity = torch.full((1, 2, 2, 1), 0.5)
    image = torch.zeros(1, 2, 2, 3)
    output = RenderOutput(comp_rgb=image, opacity=opacity, depth=opacity, comp_rgb_bg=image)
    none = torch.zeros(())
    guided = GuidanceOutput(torch.tensor(3.0), none, none, none, lambda: image)
    losses = weighted_losses(config, output, guided, 0.5)
    assert float(losses["guidance"]) == 6.0
    assert float(losses["sparsity"]) == pytest.approx(2.0 * (0.25 + 0.01) ** 0.5)
    assert set(losses) == {"guidance", "sparsity"}


def test_what_the_autoencoder_reads_is_decoded_only_where_it_has_a_weight():
    config = LossesConfig(autoencoder=((0.0, 0.0), (0.5, 0.0), (1.0, 2.0)))
    image, none, calls = torch.zeros(1, 2, 2, 3), torch.zeros(()), []
    output = RenderOutput(
        comp_rgb=image, opacity=image[..., :1], depth=image[..., :1], comp_rgb_bg=image
    )

    def read_back() -> torch.Tensor:
        calls.append("decoded")
        return torch.tensor(3.0)

    guided = GuidanceOutput(none, none, none, none, lambda: image, read_back)
    assert set(weighted_losses(config, output, guided, 0.4)) == {"guidance"}
    assert not calls
    assert float(weighted_losses(config, output, guided, 0.75)["autoencoder"]) == 3.0
    assert calls == ["decoded"]

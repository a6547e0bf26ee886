"""The personalization loop: only named parameters move, and a killed training goes on exactly."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from image_tools.personalization.loop import (
    LoopHooks,
    ParameterGroup,
    TrainingDiverged,
    TuningLoop,
    batch_generator,
    rate_share,
)
from image_tools.personalization.loop_configs import TuningConfig
from renderers.errors import StudioError

CPU = torch.device("cpu")
CONFIG = TuningConfig(steps=9, learning_rate=0.05, save_every=4, log_every=2)


class Killed(Exception):
    """Stands for the process that ends between two steps."""


def _model() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def _named(module: nn.Module, prefix: str = "") -> dict[str, nn.Parameter]:
    return {prefix + name: value for name, value in module.named_parameters()}


def _loss_of(model: nn.Module):
    def loss(_: int, generator: torch.Generator) -> Tensor:
        x = torch.randn(6, 4, generator=generator)
        return (model(x) - x[:, :2]).square().mean()

    return loss


def _train(folder, config=CONFIG, hooks=None, model=None) -> tuple[nn.Module, TuningLoop]:
    model = model or _model()
    loop = TuningLoop([ParameterGroup(_named(model))], config, folder, device=CPU, identity="a")
    loop.run(_loss_of(model), hooks)
    return model, loop


def _equal(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_killed_training_goes_on_bit_for_bit(tmp_path, precision, schedule):
    config = replace(CONFIG, precision=precision, schedule=schedule, accumulate=2, warmup_steps=2)
    whole, _ = _train(tmp_path / "whole", config)

    def kill(step: int) -> None:
        if step == 7:  # three steps after the last save
            raise Killed

    with pytest.raises(Killed):
        _train(tmp_path / "killed", config, LoopHooks(after_step=kill))
    resumed, loop = _train(tmp_path / "killed", config)
    assert _equal(whole, resumed)
    assert loop.step == 9
    logs = [
        [line.split(",")[:4] for line in (tmp_path / name / "log.csv").read_text().splitlines()]
        for name in ("whole", "killed")
    ]
    assert logs[0] == logs[1]
    assert [row[0] for row in logs[0]] == ["step", "2", "4", "6", "8", "9"]


@pytest.mark.parametrize("torn", ["12", "6,0.1", "", "st"])
def test_a_line_that_was_cut_short_does_not_stop_a_resume(tmp_path, torn):
    _train(tmp_path, replace(CONFIG, steps=4))
    log = tmp_path / "log.csv"
    whole = log.read_text()
    log.write_text(whole + torn if torn != "st" else torn)
    _train(tmp_path, replace(CONFIG, steps=8))
    rows = [line.split(",")[0] for line in log.read_text().splitlines()]
    assert rows == ["step", *(() if torn == "st" else ("2", "4")), "6", "8"]


def test_stop_request_saves_and_the_next_run_finishes(tmp_path):
    whole, _ = _train(tmp_path / "whole")
    model, stops = _model(), iter([False, False, True])
    loop = TuningLoop(
        [ParameterGroup(_named(model))], CONFIG, tmp_path / "b", device=CPU, identity="a"
    )
    assert not loop.run(_loss_of(model), LoopHooks(should_stop=lambda: next(stops)))
    assert loop.step == 3
    resumed, _ = _train(tmp_path / "b")
    assert _equal(whole, resumed)


def test_accumulated_batches_step_along_their_mean_gradient(tmp_path):
    config = replace(CONFIG, steps=1, accumulate=3, clip_norm=0.0, weight_decay=0.0)
    model, _ = _train(tmp_path, config)
    reference = _model()
    batches = [_loss_of(reference)(k, batch_generator(0, k)) for k in range(3)]
    (sum(batches) / 3).backward()
    torch.optim.AdamW(reference.parameters(), lr=0.05, weight_decay=0.0).step()
    for ours, theirs in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(ours, theirs)


def test_only_the_parameters_given_move_although_others_want_gradients(tmp_path):
    model = _model()
    before = [p.detach().clone() for p in model.parameters()]
    first = ParameterGroup(_named(model[0], "first."))
    TuningLoop([first], CONFIG, tmp_path, device=CPU).run(_loss_of(model))
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters())]
    assert moved == [True, True, False, False]
    state = load_file(tmp_path / "state.safetensors")
    assert {name.split(".")[1] for name in state} == {"first"}


def test_requires_grad_is_set_again_before_each_batch(tmp_path):
    model = _model()

    def forget(step: int) -> None:
        model.requires_grad_(False)  # what disabling and enabling adapters does to them

    _train(tmp_path / "a", hooks=LoopHooks(after_step=forget), model=model)
    other, _ = _train(tmp_path / "b")
    assert _equal(model, other)


def test_groups_have_their_own_rates(tmp_path):
    model = _model()
    before = model[2].weight.detach().clone()
    groups = [
        ParameterGroup(_named(model[0], "0."), learning_rate=0.05),
        ParameterGroup(_named(model[2], "2."), learning_rate=0.0, weight_decay=0.0),
    ]
    TuningLoop(groups, CONFIG, tmp_path, device=CPU).run(_loss_of(model))
    assert torch.equal(model[2].weight, before)
    assert not torch.equal(model[0].weight, _model()[0].weight)


def test_checkpoints_hold_the_parameters_of_their_steps(tmp_path):
    seen: dict[int, Tensor] = {}
    model = _model()
    hooks = LoopHooks(checkpoint=lambda step: seen.update({step: model[0].weight.clone()}))
    config = replace(CONFIG, checkpoint_steps=(2, 9))
    _, loop = _train(tmp_path, config, hooks, model)
    assert sorted(seen) == [2, 9]
    for step, weight in seen.items():
        assert torch.equal(load_file(loop.checkpoint_path(step))["0.weight"], weight)
    assert not torch.equal(seen[2], seen[9])
    assert not list(tmp_path.rglob("*.tmp"))


def test_samples_are_asked_for_at_the_start_at_intervals_and_at_the_end(tmp_path):
    steps: list[int] = []
    config = replace(CONFIG, sample_every=4)
    _train(tmp_path, config, LoopHooks(sample=steps.append))
    assert steps == [0, 4, 8, 9]
    _train(tmp_path, config, LoopHooks(sample=steps.append))
    assert steps == [0, 4, 8, 9], "a finished training does nothing more"


def test_batches_depend_on_seed_and_number_alone():
    def draw(seed: int, k: int) -> list[float]:
        return torch.randn(3, generator=batch_generator(seed, k)).tolist()

    assert draw(0, 5) == draw(0, 5)
    assert len({tuple(draw(seed, k)) for seed in range(4) for k in range(4)}) == 16


def test_rate_warms_up_and_falls_to_zero():
    config = TuningConfig(steps=100, warmup_steps=10, schedule="cosine")
    assert rate_share(0, config) == pytest.approx(0.1)
    assert rate_share(9, config) == pytest.approx(1.0)
    assert rate_share(10, config) == pytest.approx(1.0)
    assert rate_share(55, config) == pytest.approx(0.5)
    assert rate_share(99, config) < 0.001
    assert rate_share(99, replace(config, schedule="constant")) == 1.0
    assert rate_share(55, replace(config, schedule="linear")) == pytest.approx(0.5)
    assert rate_share(97, replace(config, schedule="linear")) == pytest.approx(0.0333, abs=1e-4)


def test_lost_trainings_end_with_the_last_save_kept(tmp_path):
    model = _model()
    loop = TuningLoop(
        [ParameterGroup(_named(model))], replace(CONFIG, steps=99), tmp_path, device=CPU
    )
    good = _loss_of(model)

    def loss(batch: int, generator: torch.Generator) -> Tensor:
        return good(batch, generator) * (1.0 if batch < 5 else math.nan)

    with pytest.raises(TrainingDiverged, match="precision: float32") as caught:
        loop.run(loss)
    assert caught.value.exit_code == 4
    assert all(p.isfinite().all() for p in model.parameters())
    assert load_file(tmp_path / "state.safetensors")["parameter.0.weight"].isfinite().all()


def test_another_training_in_the_folder_is_refused_by_name(tmp_path):
    _train(tmp_path)
    model = _model()
    group = [ParameterGroup(_named(model))]
    with pytest.raises(StudioError, match="other settings or photos"):
        TuningLoop(group, CONFIG, tmp_path, device=CPU, identity="b")
    wide = nn.Linear(5, 5)
    with pytest.raises(StudioError, match=r"'weight' in .* is absent .* another model"):
        TuningLoop([ParameterGroup(_named(wide))], CONFIG, tmp_path, device=CPU, identity="a")


def test_a_state_that_may_not_be_read_is_not_to_be_thrown_away(tmp_path, monkeypatch):
    _train(tmp_path)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StudioError, match=r"cannot be opened \(Permission denied\)") as caught:
        _train(tmp_path)
    assert "start again" not in str(caught.value)


def test_damaged_state_is_refused_by_name(tmp_path):
    _train(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "state.safetensors").write_bytes(b"not a state")
    with pytest.raises(StudioError, match=r"state\.safetensors' cannot be read"):
        _train(tmp_path / "b")


class ThroughFrozen(nn.Module):
    """A factor that trains through a frozen layer, as a LoRA does through a denoiser."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(4))
        self.frozen = nn.Linear(4, 2, bias=False).to(dtype).requires_grad_(False)
        with torch.no_grad():
            self.frozen.weight.copy_(torch.tensor([[1.0, 2.0, -1.0, 0.5], [0.25, 1.0, 3.0, -2.0]]))

    def loss(self, _: int, generator: torch.Generator) -> Tensor:
        """Its gradients in the layer are 2e-8, which float16 rounds to 0 (its least is 6e-8)."""
        x = torch.ones(1, 4) * self.factor
        return 2e-8 * self.frozen(x.to(self.frozen.weight.dtype)).float().sum()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_through_a_float16_denoiser_are_scaled(tmp_path, accumulate):
    config = replace(CONFIG, steps=3, accumulate=accumulate, epsilon=1e-12)
    trained = {}
    for dtype in (torch.float32, torch.float16):
        model = ThroughFrozen(dtype)
        folder = tmp_path / str(dtype)
        parameters = [ParameterGroup({"factor": model.factor})]
        loop = TuningLoop(parameters, config, folder, device=CPU, frozen_dtype=dtype)
        loop.run(model.loss)
        trained[dtype] = model.factor.detach()
        norms = [float(row.split(",")[2]) for row in log_rows(folder)]
        assert norms == pytest.approx([norms[0]] * len(norms), rel=1e-2)
        assert norms[0] == pytest.approx(2e-8 * (1.25**2 + 9.0 + 4.0 + 1.5**2) ** 0.5, rel=2e-2)
    assert (trained[torch.float32] - 1.0).abs().min() > 0.01
    torch.testing.assert_close(trained[torch.float16], trained[torch.float32], atol=1e-3, rtol=0.0)


def test_a_scaled_training_goes_on_where_it_stopped(tmp_path):
    trained = []
    for name, stops in (("whole", ()), ("parts", (1, 2))):
        for steps in (*stops, 4):
            model = ThroughFrozen(torch.float16)
            loop = TuningLoop(
                [ParameterGroup({"factor": model.factor})],
                replace(CONFIG, steps=steps),
                tmp_path / name,
                device=CPU,
                frozen_dtype=torch.float16,
            )
            loop.run(model.loss)
        trained.append(model.factor.detach())
    assert torch.equal(*trained)


def log_rows(folder):
    """The lines of a log below its head."""
    return (folder / "log.csv").read_text().splitlines()[1:]


def test_impossible_precisions_are_refused(tmp_path):
    half = nn.Linear(2, 2).half()
    with pytest.raises(StudioError, match=r"'weight' is torch\.float16 - expected float32"):
        TuningLoop([ParameterGroup(_named(half))], CONFIG, tmp_path, device=CPU)
    config = replace(CONFIG, precision="float16")
    with pytest.raises(StudioError, match="precision is float16 on a CPU"):
        TuningLoop([ParameterGroup(_named(_model()))], config, tmp_path, device=CPU)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps is 0 - expected at least 1"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0 - expected at least 0"),
        ({"steps": 5, "checkpoint_steps": (2, 6)}, "checkpoint_steps has 6 - .* from 1 to 5"),
    ],
)
def test_configs_refuse_what_cannot_be_meant(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(CONFIG, **changes)

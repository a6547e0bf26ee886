"""The training loop: learning rate, averaging, clipping, and resuming to the same bits."""

from __future__ import annotations

import contextlib
import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from image_tools.personalization.loop import TrainingDiverged
from studio.training.loop import LoopConfig, TrainingLoop, cosine_rate

CONFIG = LoopConfig(steps=12, learning_rate=0.1, warmup=3, save_every_s=0.0, log_every=4)


class Stopped(Exception):
    """Stands for a killed process."""


def small_model() -> nn.Module:
    """A network with a buffer, so that more than parameters must be restored."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def loss_of(model: nn.Module, stop_at: int | None = None):
    """A loss whose data depend on the step alone."""

    def loss_at(step: int) -> Tensor:
        if step == stop_at:
            raise Stopped
        data = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
        return (model(data).squeeze(1) - data.sum(1)).square().mean()

    return loss_at


def train(folder: Path, stop_at: int | None = None, config: LoopConfig = CONFIG) -> TrainingLoop:
    """Train a new model in ``folder``, from its saved state if there is one."""
    model = small_model()
    loop = TrainingLoop(model, config, folder)
    if stop_at is None:
        loop.run(loss_of(model), log=lambda line: None)
    else:
        with pytest.raises(Stopped):
            loop.run(loss_of(model, stop_at), log=lambda line: None)
    return loop


@pytest.mark.parametrize("stop_at", [1, 5, 11])
def test_a_killed_training_ends_in_the_same_bits(tmp_path: Path, stop_at: int) -> None:
    whole = train(tmp_path / "whole")
    train(tmp_path / "killed", stop_at=stop_at)
    resumed = train(tmp_path / "killed")
    assert resumed.step == whole.step == CONFIG.steps
    expected, actual = whole.model.state_dict(), resumed.model.state_dict()
    for name in expected:
        assert torch.equal(expected[name], actual[name]), name
        if name in whole.ema:
            assert torch.equal(whole.ema[name], resumed.ema[name]), name


def test_a_network_that_lies_channels_last_goes_on_in_the_same_bits(tmp_path: Path) -> None:
    """Files hold tensors row by row; moments must lie as their weights do, or they are mixed up."""

    def run(folder: Path, steps: int) -> nn.Module:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        net = net.to(memory_format=torch.channels_last)

        def loss_at(step: int) -> Tensor:
            if step == steps:
                raise Stopped
            draw = torch.randn(2, 8, 9, 9, generator=torch.Generator().manual_seed(step))
            return (net(draw) - 1.0).square().mean()

        with contextlib.suppress(Stopped):
            TrainingLoop(net, CONFIG, folder).run(loss_at, log=lambda line: None)
        return net

    whole = run(tmp_path / "whole", CONFIG.steps)
    run(tmp_path / "killed", 6)
    resumed = run(tmp_path / "killed", CONFIG.steps)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def forget(folder: Path) -> None:
    """Killed after the tensors were renamed, before ``state.json`` was."""
    (folder / "state.json").unlink()


def fall_back(folder: Path) -> None:
    """The same in a later save: ``state.json`` is still of an earlier one."""
    (folder / "state.json").write_text(json.dumps({"step": 2, "seconds": 0.5}))


def tear(folder: Path) -> None:
    """Killed while the next state was being written aside."""
    whole = (folder / "state.safetensors").read_bytes()
    (folder / "state.safetensors.tmp").write_bytes(whole[: len(whole) // 2])


def age(folder: Path) -> None:
    """A state of an earlier version of this package: the step is in ``state.json`` alone."""
    path = folder / "state.safetensors"
    save_file(load_file(path), path)


@pytest.mark.parametrize("damage", [forget, fall_back, tear, age])
def test_a_kill_while_saving_does_no_harm(tmp_path: Path, damage) -> None:
    """Tensors and step always belong together, whatever lies beside them."""
    whole = train(tmp_path / "whole")
    train(tmp_path / "killed", stop_at=5)
    damage(tmp_path / "killed")
    resumed = train(tmp_path / "killed")
    assert resumed.step == whole.step
    for name, expected in whole.model.state_dict().items():
        assert torch.equal(expected, resumed.model.state_dict()[name]), name


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first = train(tmp_path)
    again = train(tmp_path, stop_at=None)
    assert again.step == first.step
    assert again.seconds == first.seconds


def test_training_lowers_the_loss_and_logs_it(tmp_path: Path) -> None:
    train(tmp_path, config=replace(CONFIG, steps=60))
    with (tmp_path / "log.csv").open() as file:
        rows = [[float(cell) for cell in row] for row in csv.reader(file)]
    assert [row[0] for row in rows] == list(range(4, 61, 4))
    assert rows[-1][1] < 0.3 * rows[0][1]
    assert json.loads((tmp_path / "state.json").read_text())["step"] == 60
    assert not list(tmp_path.glob("*.tmp"))


def test_the_average_follows_its_closed_form(tmp_path: Path) -> None:
    """A parameter that jumps from 0 to 1 at step 0: average = 1 - product of decays."""
    model = nn.Linear(1, 1, bias=False)
    config = LoopConfig(steps=1, ema_decay=0.5)
    loop = TrainingLoop(model, config, tmp_path)
    loop.ema["weight"].zero_()
    nn.init.ones_(model.weight)
    left = 1.0
    for step in range(6):
        loop.step = step
        loop._average()
        left *= min(0.5, (1 + step) / (10 + step))
    assert loop.ema["weight"].item() == pytest.approx(1 - left)
    loop.load_average()
    assert model.weight.item() == pytest.approx(1 - left)


def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    model = nn.Linear(1, 1, bias=False)
    seen = []

    def loss_at(step: int) -> Tensor:
        seen.append(model.weight.item())
        return (model.weight * (float("nan") if step == 1 else 1.0)).sum()

    TrainingLoop(model, LoopConfig(steps=4, warmup=0), tmp_path).run(loss_at, log=lambda line: None)
    assert seen[1] == seen[2]
    assert len(set(seen)) == 3


@pytest.mark.parametrize("steps", [7, 90])
def test_a_lost_training_is_no_success_and_keeps_its_last_save(tmp_path: Path, steps: int) -> None:
    model, lines = small_model(), []
    good = loss_of(model)

    def loss_at(step: int) -> Tensor:
        return good(step) * (float("nan") if step >= steps - 30 else 1.0)

    loop = TrainingLoop(model, LoopConfig(steps=steps, save_every_s=0.0), tmp_path)
    with pytest.raises(TrainingDiverged, match=r"not finite - expected numbers. Lower") as caught:
        loop.run(loss_at, log=lines.append)
    assert caught.value.exit_code == 4
    assert loop.step == steps
    assert all(p.isfinite().all() for p in load_file(loop.state_path).values())


def test_gradients_are_clipped(tmp_path: Path) -> None:
    """AdamW ignores the scale of a gradient, so the clipped norm is read off its first moment."""
    model = nn.Linear(4, 1, bias=False)
    loop = TrainingLoop(model, LoopConfig(steps=1, warmup=0, clip_norm=0.25), tmp_path)
    loop.run(lambda step: 1000.0 * model.weight.sum(), log=lambda line: None)
    moment = loop.optimizer.state[model.weight]["exp_avg"]
    assert moment.norm().item() == pytest.approx((1 - 0.9) * 0.25, rel=1e-4)


def test_cosine_rate_at_its_landmarks() -> None:
    config = LoopConfig(steps=1100, learning_rate=1.0, warmup=100, final_rate=0.1)
    assert cosine_rate(0, config) == pytest.approx(0.01)
    assert cosine_rate(49, config) == pytest.approx(0.5)
    assert cosine_rate(99, config) == pytest.approx(1.0)
    assert cosine_rate(100, config) == pytest.approx(1.0)
    assert cosine_rate(600, config) == pytest.approx(0.55)  # half way: mean of peak and end
    assert cosine_rate(350, config) == pytest.approx(0.1 + 0.9 * (1 + 0.5**0.5) / 2)
    assert cosine_rate(1100, config) == pytest.approx(0.1)
    assert cosine_rate(5000, config) == pytest.approx(0.1)
    rates = [cosine_rate(step, config) for step in range(100, 1101)]
    assert rates == sorted(rates, reverse=True)


def test_half_precision_computes_so_and_keeps_full_weights(tmp_path: Path) -> None:
    seen = []
    model = small_model()
    config = replace(CONFIG, precision="bfloat16", steps=60)
    loop = TrainingLoop(model, config, tmp_path)

    def loss_at(step: int) -> Tensor:
        data = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
        predicted = model(data)
        seen.append(predicted.dtype)
        return (predicted.squeeze(1).float() - data.sum(1)).square().mean()

    loop.run(loss_at, log=lambda line: None)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with (tmp_path / "log.csv").open() as file:
        losses = [float(row[1]) for row in csv.reader(file)]
    assert losses[-1] < 0.3 * losses[0]

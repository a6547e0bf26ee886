"""Following a run for TensorBoard."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from studio.errors import BackendMissing
from studio.metrics_log import MetricsLog
from studio.previews import save_png
from studio.run_folder import RunFolder, create_run
from studio.tensorboard_log import NewRows, TensorboardLog


def log_steps(path: Path, first: int, last: int, *, after: int) -> None:
    """Rows as the runner writes them."""
    log = MetricsLog(path, after_step=after)
    for step in range(first, last + 1):
        row = {"step": step, "stage": "shape", "seconds": 0.1, "opacity": 0.1 * step}
        log.write({**row, "loss_guidance": float(step)})
    log.close()


def test_rows_are_given_once_and_half_lines_wait(tmp_path):
    path = tmp_path / "metrics.csv"
    rows = NewRows(path)
    assert list(rows.read()) == []
    log_steps(path, 1, 2, after=0)
    assert [row["step"] for row in rows.read()] == ["1", "2"]
    assert list(rows.read()) == []
    log_steps(path, 3, 3, after=2)  # what a resumed run does: another file takes its place
    assert [row["step"] for row in rows.read()] == ["1", "2", "3"]
    assert rows.restarts == 1
    with path.open("a") as file:
        file.write("4,shape,0.1,0.")
    assert list(rows.read()) == []
    with path.open("a") as file:
        file.write("4,4.0\n")
    (row,) = rows.read()
    assert (row["step"], row["opacity"], row["loss_guidance"]) == ("4", "0.4", "4.0")


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run with some steps and a preview."""
    run = create_run(tmp_path, prompt="a duck", method="demo", seed=0, info={})
    log_steps(run.metrics_path, 1, 3, after=0)
    save_png(run.previews_dir / "step-000003.png", torch.rand(6, 8, 3))
    return run


def scalars(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="the extra log (tensorboard) is not installed",
    )
    events = accumulator.EventAccumulator(str(run.path / "tb"))
    events.Reload()
    assert events.Tags()["images"] == ["preview"]
    return {
        tag: [(event.step, round(event.value, 4)) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_reads_all_steps_of_an_interrupted_and_resumed_run(run):
    pytest.importorskip("tensorboard", reason="the extra log (tensorboard) is not installed")
    with TensorboardLog(run):
        pass
    with TensorboardLog(run) as log:
        log._read()  # rows of steps that the resumed run will do again
        log_steps(run.metrics_path, 3, 5, after=2)
    found = scalars(run)
    assert found["loss/loss_guidance"] == [(step, float(step)) for step in range(1, 6)]
    assert set(found) == {"loss/loss_guidance", "run/opacity", "run/seconds"}


def test_without_tensorboard_the_command_that_installs_it_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(BackendMissing, match=r"pip install .*\[log\]"):
        TensorboardLog(run).__enter__()
    assert not (run.path / "tb").exists()

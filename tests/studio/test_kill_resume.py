"""The shipped demo, killed at random moments and during a save, ends with the same bits.

The scene is the preset itself at full resolution, batch and field; only the number of steps is
reduced. Processes are real and SIGKILL gives them no chance to tidy up.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from studio.checkpoints import list_checkpoints, load_latest
from studio.metrics_log import read_metrics
from studio.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
STEPS, CHECKPOINT_EVERY, KILLS = 60, 10, 5
SCENE = (
    "demo",
    f"steps={STEPS}",
    "device=cpu",  # the promise of equal bits is made for the CPU
    f"saving.checkpoint_every={CHECKPOINT_EVERY}",
    "saving.preview_every=0",
    # What comes after the optimisation is not the matter here: the cheapest asset and film.
    "export.formats=[ply]",
    "export.appearance=vertex",
    "export.resolution=24",
    "export.film_frames=2",
    "export.film_size=16",
)
WAIT_S = 600.0


def studio(*arguments: str) -> subprocess.Popen:
    """The command in a process of its own, on one thread."""
    return subprocess.Popen(
        [sys.executable, "-m", "studio", "run", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def only_run(out: Path) -> RunFolder:
    """The one run below ``out``."""
    (info,) = out.glob("*/*/run.json")
    return RunFolder(info.parent)


def steps_logged(out: Path) -> int:
    """Last step in the run's metrics; 0 before the first."""
    rows = [row for path in out.glob("*/*/metrics.csv") for row in read_metrics(path)]
    return max((int(row["step"]) for row in rows if row.get("step", "").isdigit()), default=0)


def has_logged(out: Path, step: int) -> bool:
    """Whether the run has come as far as ``step``."""
    return steps_logged(out) >= step


def is_saving(out: Path) -> bool:
    """Whether a checkpoint is half written."""
    return any(out.glob("*/*/checkpoints/.step-*.tmp"))


def kill_when(
    process: subprocess.Popen, ready: Callable[[], bool], *, poll_s: float, delay_s: float
) -> None:
    """Wait for a moment, and a little longer, and end the process by force."""
    until = time.monotonic() + WAIT_S
    while not ready():
        assert process.poll() is None, f"ended before it was killed: {process.stderr.read()}"
        assert time.monotonic() < until, "the moment to kill did not come"
        time.sleep(poll_s)
    time.sleep(delay_s)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def finish(process: subprocess.Popen) -> None:
    """Wait for a good end."""
    _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, err


def contents(run: RunFolder) -> dict[str, bytes]:
    """Tensors of the final checkpoint, and the asset made from them."""
    last = list_checkpoints(run.checkpoints_dir)[-1]
    assert last.name == f"step-{STEPS:06d}"
    files = [last / "scene.safetensors", last / "optim.safetensors", *run.asset_dir.glob("*.ply")]
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.slow
def test_demo_killed_five_times_ends_with_the_same_bits(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finish(studio(*SCENE, "--out", str(whole)))
    expected = contents(only_run(whole))
    assert len(expected) == 3

    draw, saves_hit = random.Random(0), 0
    process = studio(*SCENE, "--out", str(parts))
    for trial in range(KILLS):
        if trial == 2:
            kill_when(process, partial(is_saving, parts), poll_s=0.001, delay_s=0.0)
            saves_hit += is_saving(parts)  # what is left of the save that never ended
        else:
            # Later than all that was logged before, so that every process gets somewhere.
            step = steps_logged(parts) + draw.randint(1, 8)
            reached = partial(has_logged, parts, step)
            kill_when(process, reached, poll_s=0.05, delay_s=draw.uniform(0.0, 0.3))
        run = only_run(parts)
        assert run.read_info()["status"] == "running"
        load_latest(run.checkpoints_dir, warn=pytest.fail)  # none yet, or a sound one
        process = studio("--resume", str(run.path))
    finish(process)
    assert saves_hit == 1
    assert contents(only_run(parts)) == expected

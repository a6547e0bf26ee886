"""Many runs: what is settled, what is continued, which cores, and stopping."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from studio.batch import BatchConfig, Job, run_jobs, settled
from studio.batch import _command as command_of
from studio.batch import _share as share
from studio.errors import ConfigError
from tests.studio.test_resuming import a_run


def job_of(scene: Path, out: Path, *overrides: str) -> Job:
    """One run of the tiny scene."""
    return Job(str(scene), overrides, out)


@pytest.mark.parametrize("status", ["done", "failed", "diverged"])
def test_finished_runs_are_settled(tiny_scene, tmp_path, status):
    run = a_run(tiny_scene, tmp_path, status)
    outcome = settled(job_of(tiny_scene, tmp_path))
    assert (outcome.status, outcome.run.path, outcome.fresh) == (status, run.path, False)


def test_unfinished_runs_and_assets_of_other_settings_are_not_settled(tiny_scene, tmp_path):
    assert settled(job_of(tiny_scene, tmp_path)) is None
    a_run(tiny_scene, tmp_path, "interrupted")
    assert settled(job_of(tiny_scene, tmp_path)) is None
    a_run(tiny_scene, tmp_path, "done")
    assert settled(job_of(tiny_scene, tmp_path)) is not None
    assert settled(job_of(tiny_scene, tmp_path, "export.max_faces=500")) is None


def test_settled_jobs_are_not_run_again(tiny_scene, tmp_path):
    a_run(tiny_scene, tmp_path, "done")
    a_run(tiny_scene, tmp_path, "diverged", "seed=1")
    jobs = [job_of(tiny_scene, tmp_path), job_of(tiny_scene, tmp_path, "seed=1")]
    outcomes = list(run_jobs(jobs))
    assert [(o.status, o.fresh) for o in outcomes] == [("done", False), ("diverged", False)]


def test_a_command_starts_or_continues(tiny_scene, tmp_path):
    job = job_of(tiny_scene, tmp_path, "seed=1")
    new = command_of(job, BatchConfig())
    assert new[3:7] == ["run", str(tiny_scene), "seed=1", "--json"]
    assert "--resume" not in new
    assert "--eval" in new
    assert "--eval" not in command_of(job, BatchConfig(evaluate=False))
    run = a_run(tiny_scene, tmp_path, "interrupted", "seed=1")
    on = command_of(job, BatchConfig())
    assert on[on.index("--resume") + 1] == str(run.path)


def test_after_the_deadline_nothing_begins(tiny_scene, tmp_path):
    (outcome,) = run_jobs([job_of(tiny_scene, tmp_path)], BatchConfig(minutes=1e-9))
    assert outcome.status == "waiting"
    assert not (tmp_path / "a-red-duck").exists()


def test_a_wrong_scene_is_refused_before_anything_starts(tiny_scene, tmp_path):
    jobs = [job_of(tiny_scene, tmp_path), job_of(tiny_scene, tmp_path, "sede=1")]
    with pytest.raises(ConfigError, match="Did you mean 'seed'"):
        list(run_jobs(jobs))
    assert not (tmp_path / "a-red-duck").exists()


@pytest.mark.parametrize(("workers", "threads"), [(2, 1), (1, 2), (3, 2), (4, 1)])
def test_workers_have_cores_of_their_own_as_long_as_there_are_enough(workers, threads):
    cores = [2, 3, 5, 7]
    shares = [share(cores, k, threads) for k in range(workers)]
    assert all(len(cores_of_one) == threads for cores_of_one in shares)
    if workers * threads <= len(cores):
        assert len({core for one in shares for core in one}) == workers * threads


@pytest.mark.parametrize("values", [{"workers": 0}, {"threads": -1}, {"minutes": 0.0}])
def test_impossible_numbers_are_refused(values):
    with pytest.raises(ConfigError, match="expected more than 0"):
        BatchConfig(**values)


@pytest.mark.slow
def test_runs_side_by_side_are_made_measured_and_found_again(tiny_scene, tmp_path):
    jobs = [job_of(tiny_scene, tmp_path, f"seed={seed}") for seed in range(2)]
    jobs.append(job_of(tiny_scene, tmp_path, "export.threshold=1000"))
    outcomes = {o.job: o for o in run_jobs(jobs[1:], BatchConfig(workers=2, threads=1))}
    assert [outcomes[job].status for job in jobs[1:]] == ["done", "failed"]
    assert "No surface" in outcomes[jobs[2]].error
    info = outcomes[jobs[1]].run.read_info()
    assert info["threads"]["torch"] == 1
    assert info["evaluation"]["prompt"] == "a red duck"
    again = list(run_jobs(jobs[1:]))
    assert [(o.status, o.fresh) for o in again] == [("done", False), ("failed", False)]


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_call_goes_on(tiny_scene, tmp_path):
    """A batch in a process of its own is interrupted on its way, then called again."""
    job = job_of(tiny_scene, tmp_path, "stages.0.steps=150")
    code = (
        "from pathlib import Path; from studio.batch import *\n"
        f"job = Job({job.scene!r}, {job.overrides!r}, Path({str(tmp_path)!r}))\n"
        "config = BatchConfig(evaluate=False)\n"
        "print(*[o.status for o in run_jobs([job], config)])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    interrupter = threading.Thread(target=_interrupt_when_running, args=(process, tmp_path))
    interrupter.start()
    assert process.wait(timeout=300) != 0
    interrupter.join()
    (run,) = (tmp_path / "a-red-duck").iterdir()
    assert '"interrupted"' in (run / "run.json").read_text()
    (outcome,) = run_jobs([job], BatchConfig(evaluate=False))
    assert (outcome.status, outcome.run.path) == ("done", run)
    assert outcome.run.read_info()["steps_done"] == 150


def _interrupt_when_running(process: subprocess.Popen, out: Path) -> None:
    """Send Ctrl-C once the first steps are in the log."""
    while process.poll() is None:
        if any(path.stat().st_size > 500 for path in out.glob("*/*/metrics.csv")):
            os.kill(process.pid, signal.SIGINT)
            return
        time.sleep(0.1)

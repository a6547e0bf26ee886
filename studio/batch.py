"""Many runs, one after the other or a few at a time, in a way that can be stopped and continued.

Every run is a `studio run` of its own process, so a crash ends one run and its peak memory is its
own. What is finished is found again by its scene (``studio.resuming``), never made twice.

    jobs = [Job("demo", ("seed=0",), Path("runs/sweeps/seeds"))]
    for outcome in run_jobs(jobs, workers=2, threads=1):
        print(outcome.job, outcome.status)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from studio.config import dump, load_scene
from studio.configs import SceneConfig
from studio.errors import ConfigError
from studio.folder_lock import only_one
from studio.progress import say
from studio.resuming import find_run, is_resumable, scene_of
from studio.run_folder import RunFolder
from studio.waiting import THREADS, listed_cores

__all__ = ["BatchConfig", "Job", "Outcome", "only_one", "run_jobs", "settled"]

INTERRUPTED = 130
# Windows sends Ctrl-C to whole consoles only: there a child ends at once, and has checkpoints.
STOP = signal.SIGTERM if os.name == "nt" else signal.SIGINT


@dataclass(frozen=True)
class Job:
    """One run to make."""

    scene: str
    """Preset, scene file or prompt."""
    overrides: tuple[str, ...]
    """``key.path=value``."""
    out: Path
    """Folder of its runs."""

    def config(self) -> SceneConfig:
        """The scene as it will run.

        Raises:
            ConfigError: the scene or an override is wrong.
        """
        return load_scene(self.scene, self.overrides).config


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    job: Job
    status: str
    """``done``; or ``failed``, ``diverged``; or ``waiting`` if its turn did not come."""
    run: RunFolder | None = None
    """Its run folder, if one was made."""
    error: str | None = None
    """Why it is not done."""
    fresh: bool = False
    """Whether this call worked on it, and did not only find it."""


@dataclass(frozen=True)
class BatchConfig:
    """How many runs at a time, and for how long."""

    workers: int = 1
    """Processes side by side."""
    threads: int | None = None
    """Threads of each; None shares the cores among the workers."""
    evaluate: bool = True
    """Measure every asset against the truth, as studio eval does."""
    retry: bool = False
    """Make failed runs again."""
    minutes: float | None = None
    """No run begins later than this; those that began go on to their end."""

    def __post_init__(self) -> None:
        """Refuse numbers no batch can be run with."""
        for name in ("workers", "threads", "minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"--{name} is {value} - expected more than 0.")


def settled(job: Job) -> Outcome | None:
    """The outcome of a job that needs no more work, else None."""
    scene = job.config()
    run = find_run(job.out, scene)
    if run is None or is_resumable(run):
        return None
    info = run.read_info()
    if info["status"] == "done" and dump(scene_of(run).export) != dump(scene.export):
        return None  # the asset is to be written again
    return Outcome(job, info["status"], run, info.get("error"))


def run_jobs(
    jobs: Sequence[Job], config: BatchConfig | None = None, *, lock: int | None = None
) -> Iterator[Outcome]:
    """Make every job that is not settled; yields outcomes as they come, settled ones first.

    Args:
        jobs: all of them are checked before the first one starts.
        config: workers, threads, time; one run at a time when None.
        lock: of :func:`only_one`; held by the runs as well.

    Raises:
        ConfigError: a scene is wrong.
        KeyboardInterrupt: Ctrl-C; running jobs have saved their checkpoints.
    """
    config, todo = config or BatchConfig(), []
    for job in jobs:
        outcome = settled(job)
        if outcome is None or (config.retry and outcome.status != "done"):
            todo.append(job)
        else:
            yield outcome
    deadline = time.monotonic() + 60.0 * config.minutes if config.minutes else float("inf")
    with _Pool(config, lock) as pool:
        yield from pool.work(todo, deadline)


class _Pool:
    """A few child processes, each on cores of its own."""

    def __init__(self, config: BatchConfig, lock: int | None) -> None:
        cores = listed_cores()
        self.config, self.held = config, () if lock is None else (lock,)
        self.threads = config.threads or max(1, len(cores) // config.workers)
        if self.threads * config.workers > len(cores):
            say(
                f"warning: {config.workers} workers of {self.threads} threads share "
                f"{len(cores)} cores; this is slower than fewer of them."
            )
        self.free = [_share(cores, k, self.threads) for k in range(config.workers)]
        self.children: set[subprocess.Popen] = set()
        self.stopping = threading.Event()
        self.lock = threading.Lock()

    def __enter__(self) -> _Pool:
        """Take the wish to end this process as Ctrl-C, so that no child is left behind."""
        self.before = None
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        return self

    def __exit__(self, *_: object) -> None:
        """Put things back; nothing is left running in any case."""
        self.stop()
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)

    def stop(self) -> None:
        """Let the children save and end; no other begins."""
        self.stopping.set()
        for child in list(self.children):
            with suppress(ProcessLookupError):
                child.send_signal(STOP)
        for child in list(self.children):
            child.wait()

    def work(self, jobs: Sequence[Job], deadline: float) -> Iterator[Outcome]:
        """Outcomes as they come."""
        executor = ThreadPoolExecutor(self.config.workers)
        try:
            futures = [executor.submit(self._one, job, deadline) for job in jobs]
            for future in as_completed(futures):
                yield future.result()
        finally:
            self.stop()
            executor.shutdown(cancel_futures=True)

    def _one(self, job: Job, deadline: float) -> Outcome:
        """Run one job on the next free cores."""
        if self.stopping.is_set() or time.monotonic() > deadline:
            return Outcome(job, "waiting")
        with self.lock:
            cores = self.free.pop()
        try:
            code, answer, last_words = self._child(job, cores)
        finally:
            with self.lock:
                self.free.append(cores)
        if code == INTERRUPTED:
            self.stopping.set()
            return Outcome(job, "waiting", fresh=True)
        run = RunFolder(answer["run"]) if "run" in answer else find_run(job.out, job.config())
        if code == 0:
            return Outcome(job, "done", run, fresh=True)
        error = answer.get("message") or f"the process ended with {code}: {last_words}"
        status = run.read_info().get("status") if run else None
        return Outcome(job, "diverged" if status == "diverged" else "failed", run, error, True)

    def _environment(self) -> dict[str, str]:
        """What a run is told of threads; runs beside each other must not spin."""
        told = dict.fromkeys(THREADS, str(self.threads))
        waiting = {} if self.config.workers == 1 else {"OMP_WAIT_POLICY": "PASSIVE"}
        return {**waiting, **os.environ, **told}

    def _child(self, job: Job, cores: list[int]) -> tuple[int, dict[str, Any], str]:
        """Run `studio run` to its end: its exit code, the JSON it printed, its last line."""
        with TemporaryFile("w+") as words:
            child = subprocess.Popen(
                _command(job, self.config),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=None if self.config.workers == 1 else words,  # two bars would be a mess
                text=True,
                pass_fds=self.held,
                start_new_session=True,  # Ctrl-C comes through this process, once
            )
            self.children.add(child)
            try:
                if hasattr(os, "sched_setaffinity"):
                    with suppress(OSError):
                        os.sched_setaffinity(child.pid, cores)
                out, _ = child.communicate()
            finally:
                self.children.discard(child)
            words.seek(0)
            last_words = (words.read().strip().splitlines() or [""])[-1]
        try:
            return child.returncode, json.loads(out.strip().splitlines()[-1]), last_words
        except (ValueError, IndexError):
            return child.returncode, {}, last_words


def _command(job: Job, config: BatchConfig) -> list[str]:
    """The command line of a job: a new run, or on with an unfinished one."""
    command = [sys.executable, "-m", "studio", "run", job.scene, *job.overrides, "--json"]
    command += ["--out", str(job.out)]
    run = find_run(job.out, job.config())
    on = run is not None and (is_resumable(run) or run.read_info().get("status") == "done")
    if on:
        command += ["--resume", str(run.path)]
    if config.evaluate:
        command += ["--eval"]
    return command


def _share(cores: Sequence[int], worker: int, threads: int) -> list[int]:
    """The cores of one worker; none of another's as long as there are enough."""
    first = worker * threads
    return sorted({cores[(first + k) % len(cores)] for k in range(threads)})

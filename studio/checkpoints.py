"""Checkpoints that survive a crash and resume bit for bit: safetensors and JSON, never pickle.

    checkpoints/latest                       name of the newest step folder
    checkpoints/step-000200/scene.safetensors  parameters and buffers (also the occupancy grid)
    checkpoints/step-000200/optim.safetensors  optimiser moments, states of the random generators
    checkpoints/step-000200/state.json         step, stage, checksums; anything small

A checkpoint is written beside its place, flushed to the disk, and renamed, so that a half-written
one is never seen; the previous one is deleted only afterwards. Reading verifies the checksums and
falls back to the previous checkpoint. It changes nothing, so that a run can be looked at while it
is trained; what a killed process left is removed by the next save.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from image_tools.diffusion.weight_writing import save_tensors
from studio.errors import CheckpointError
from studio.run_folder import storage_errors, write_atomic
from studio.suggestions import command

__all__ = [
    "Checkpoint",
    "generator_states",
    "list_checkpoints",
    "load_checkpoint",
    "load_latest",
    "restore_generators",
    "save_checkpoint",
]

FORMAT = 1
KEEP = 2
_STEP = re.compile(r"^step-\d{6,}$")
_LEFTOVER = re.compile(r"^\.(step-\d{6,})\.(\d+)\.(tmp|old)$")
_FILES = {"scene": "scene.safetensors", "optim": "optim.safetensors"}
_PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl"}
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on as if it had never stopped."""

    step: int
    """Steps done, over all stages."""
    scene: Tensors
    """Parameters and buffers by dotted name."""
    optim: Tensors
    """Optimiser state and generator states by name."""
    state: dict[str, Any] = field(default_factory=dict)
    """Small values: stage, metrics."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int = KEEP) -> Path:
    """Write a checkpoint and drop all but the newest ``keep``.

    Raises:
        StorageError: it cannot be written; the checkpoints already there stay as they were.
    """
    name = f"step-{checkpoint.step:06d}"
    temporary = folder / f".{name}.{os.getpid()}.tmp"
    with storage_errors(folder, "save a checkpoint in"):
        _drop_leftovers(folder)
        try:
            temporary.mkdir(parents=True)
            _write_files(temporary, checkpoint)
            _put_in_place(temporary, folder / name)
            write_atomic(folder / "latest", name + "\n")
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    return folder / name


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the three files of a checkpoint and flush them to the disk."""
    digests = {}
    for part, file in _FILES.items():
        tensors = getattr(checkpoint, part)
        save_tensors(folder / file, tensors)
        digests[file] = _digest(folder / file)
    state = {"format": FORMAT, "step": checkpoint.step, "sha256": digests, **checkpoint.state}
    (folder / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        _flush(path)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename a finished checkpoint to its name; an old one of the same step gives way."""
    if path.exists():
        aside = path.with_name(f".{path.name}.{os.getpid()}.old")
        os.rename(path, aside)
        os.rename(temporary, path)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.rename(temporary, path)
    _flush(path.parent)


def _drop_leftovers(folder: Path) -> None:
    """Remove what killed saves left; a checkpoint that was only set aside comes back."""
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        found = _LEFTOVER.match(path.name)
        if not found or _is_saving(int(found[2])):
            continue
        home = folder / found[1]
        if found[3] == "old" and not home.exists():
            os.rename(path, home)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_saving(pid: int) -> bool:
    """Whether another process that lives wrote this; our own saves are over."""
    return pid != os.getpid() and psutil.pid_exists(pid)


def _flush(path: Path) -> None:
    """fsync a file or folder; not every system and not every shared folder can do folders."""
    if path.is_file():
        with open(path, "r+b") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())
        return
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _digest(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints, oldest first; a file in the place of a folder counts, and is refused later."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _STEP.match(path.name)]
    return sorted(found, key=_step_of)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one step folder and verify it.

    Raises:
        CheckpointError: a file is missing, damaged, of another format, or a pickle.
    """
    path = Path(path)
    if path.suffix in _PICKLES or zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path} is a pickle - expected a folder of safetensors. Loading a pickle can run any "
            "code, so it is refused; export its tensors with safetensors first."
        )
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if state.get("format") != FORMAT:
            raise CheckpointError(
                f"{path}: format {state.get('format')!r} - expected {FORMAT}. "
                "It was written by another version of studio."
            )
        for file, digest in state["sha256"].items():
            if _digest(path / file) != digest:
                raise CheckpointError(f"{path / file}: damaged (checksum differs).")
        parts = {part: load_file(path / file) for part, file in _FILES.items()}
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}).") from error
    extra = {key: value for key, value in state.items() if key not in ("format", "step", "sha256")}
    return Checkpoint(step=state["step"], state=extra, **parts)


def load_latest(folder: Path, *, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that can be read, or None when there is none.

    A damaged one is told through ``warn`` and the previous one is taken. Nothing is changed: a
    trainer may be writing here.

    Raises:
        CheckpointError: there are checkpoints and none can be read.
    """
    found = _readable(folder)
    problems = []
    for path in reversed(found):
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warn(f"{problem} Going back to step {checkpoint.step}.")
        return checkpoint
    if found:
        again = command("run", folder.parent / "resolved.yaml")
        raise CheckpointError(
            f"No checkpoint in {folder} can be read: {problems[0]} Start again with: {again}"
        )
    return None


def _readable(folder: Path) -> list[Path]:
    """Checkpoints, oldest first; also one that a killed save set aside and did not replace."""
    found = list_checkpoints(folder)
    names = {path.name for path in found}
    for path in folder.glob(".step-*.old"):
        home = _LEFTOVER.match(path.name)
        if home and home[1] not in names:
            found.append(path)
    return sorted(found, key=_step_of)


def _step_of(path: Path) -> int:
    """The step in the name of a checkpoint, in place or set aside."""
    return int(path.name.lstrip(".").split(".")[0].removeprefix("step-"))


def generator_states(generators: dict[str, torch.Generator]) -> Tensors:
    """States of random generators as uint8 tensors, by name."""
    return {f"generator.{name}": gen.get_state() for name, gen in generators.items()}


def restore_generators(generators: dict[str, torch.Generator], tensors: Tensors) -> None:
    """Put generators into the states that ``generator_states`` saved.

    One that the checkpoint does not know was added to Studio later and has drawn nothing.
    """
    for name, generator in generators.items():
        if f"generator.{name}" in tensors:
            generator.set_state(tensors[f"generator.{name}"].clone())

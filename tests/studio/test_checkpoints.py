"""Checkpoints: exact round trip, atomic writes, damage, full disks, kills."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from studio.checkpoints import (
    Checkpoint,
    generator_states,
    list_checkpoints,
    load_checkpoint,
    load_latest,
    restore_generators,
    save_checkpoint,
)
from studio.errors import CheckpointError, StorageError


def make(step: int, size: int = 8) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    return Checkpoint(
        step=step,
        scene={"field.table": torch.randn(size, generator=generator), "empty": torch.zeros(0)},
        optim={"grid.exp_avg": torch.randn(size, generator=generator)},
        state={"stage": 0, "note": "é"},
    )


def test_round_trip_is_exact(tmp_path):
    path = save_checkpoint(tmp_path, make(7))
    again = load_checkpoint(path)
    assert (again.step, again.state) == (7, {"stage": 0, "note": "é"})
    for name, tensor in make(7).scene.items():
        assert torch.equal(again.scene[name], tensor)
    assert (tmp_path / "latest").read_text().strip() == "step-000007"


def test_shared_memory_and_odd_strides_are_saved(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    checkpoint = Checkpoint(1, {"a": base.t(), "b": base[1:]}, {"flag": torch.tensor([True])})
    again = load_checkpoint(save_checkpoint(tmp_path, checkpoint))
    assert torch.equal(again.scene["a"], base.t())
    assert torch.equal(again.scene["b"], base[1:])
    assert again.optim["flag"].dtype == torch.bool


def test_generators_continue_where_they_were(tmp_path):
    generators = {"cameras": torch.Generator().manual_seed(1), "guidance": torch.Generator()}
    torch.rand(5, generator=generators["cameras"])
    torch.randn(3, generator=generators["guidance"])  # leaves half of a Box-Muller pair behind
    states = generator_states(generators)
    assert all(state.dtype == torch.uint8 for state in states.values())
    path = save_checkpoint(tmp_path, Checkpoint(1, {}, states))
    expected = [torch.randn(4, generator=gen) for gen in generators.values()]
    fresh = {name: torch.Generator() for name in generators}
    restore_generators(fresh, load_checkpoint(path).optim)
    for gen, numbers in zip(fresh.values(), expected, strict=True):
        assert torch.equal(torch.randn(4, generator=gen), numbers)


def test_only_the_newest_two_are_kept(tmp_path):
    for step in (1, 2, 3, 1_234_567):
        save_checkpoint(tmp_path, make(step))
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["step-000003", "step-1234567"]
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_saving_the_same_step_again_replaces_it(tmp_path):
    save_checkpoint(tmp_path, make(3))
    save_checkpoint(tmp_path, Checkpoint(3, {"x": torch.ones(1)}, {}))
    assert set(load_checkpoint(tmp_path / "step-000003").scene) == {"x"}


@pytest.mark.parametrize("file", ["scene.safetensors", "optim.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_damaged_checkpoint_falls_back_to_the_previous_one(tmp_path, file, damage):
    save_checkpoint(tmp_path, make(1))
    save_checkpoint(tmp_path, make(2))
    path = tmp_path / "step-000002" / file
    data = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 0xFF]) + data[-2:])
    else:
        path.unlink()
    warnings: list[str] = []
    assert load_latest(tmp_path, warn=warnings.append).step == 1
    assert len(warnings) == 1
    assert "Going back to step 1" in warnings[0]


def test_no_checkpoint_is_none_and_only_damaged_ones_are_an_error(tmp_path):
    assert load_latest(tmp_path / "nothing", warn=pytest.fail) is None
    save_checkpoint(tmp_path, make(1))
    (tmp_path / "step-000001" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="No checkpoint in"):
        load_latest(tmp_path, warn=pytest.fail)


def test_pickles_are_refused(tmp_path):
    bomb = tmp_path / "model.ckpt"
    bomb.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="refused"):
        load_checkpoint(bomb)
    zipped = tmp_path / "step-000001"
    torch.save({"a": torch.ones(1)}, zipped)
    with pytest.raises(CheckpointError, match="is a pickle"):
        load_checkpoint(zipped)


def test_pickle_in_the_place_of_tensors_is_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "boom"),)

    path = save_checkpoint(tmp_path, make(1))
    data = pickle.dumps(Bomb())
    (path / "scene.safetensors").write_bytes(data)
    state = json.loads((path / "state.json").read_text())
    state["sha256"]["scene.safetensors"] = hashlib.sha256(data).hexdigest()
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not (tmp_path / "boom").exists()


def test_full_disk_keeps_the_old_checkpoint(tmp_path):
    """A real file-size limit of the system stands for a full disk: writes fail part way."""
    save_checkpoint(tmp_path, make(1))
    script = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import torch
from studio.checkpoints import Checkpoint, save_checkpoint
from studio.errors import StorageError
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save_checkpoint(Path({str(tmp_path)!r}), Checkpoint(2, {{"x": torch.zeros(100_000)}}, {{}}))
except StorageError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert "Cannot save a checkpoint in" in done.stdout, done.stderr
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000001"]
    assert load_latest(tmp_path, warn=pytest.fail).step == 1


def test_unwritable_folder_is_a_clear_error(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(StorageError, match="Cannot save a checkpoint in"):
        save_checkpoint(blocked / "checkpoints", make(1))


def test_kill_between_set_aside_and_rename_loses_nothing(tmp_path):
    path, gone = save_checkpoint(tmp_path, make(5)), pid_of_a_dead_process()
    path.rename(tmp_path / f".step-000005.{gone}.old")
    shutil.copytree(tmp_path / f".step-000005.{gone}.old", tmp_path / f".step-000005.{gone}.tmp")
    assert load_latest(tmp_path, warn=pytest.fail).step == 5
    save_checkpoint(tmp_path, make(6))
    names = ["latest", "step-000005", "step-000006"]
    assert [p.name for p in sorted(tmp_path.iterdir())] == names


def test_folders_that_cannot_be_flushed_do_not_stop_a_save(tmp_path, monkeypatch):
    """Folders shared with a virtual machine have no fsync, and Windows opens none."""
    flush, is_folder = os.fsync, stat.S_ISDIR

    def fsync(descriptor: int) -> None:
        if is_folder(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY, "Windows"
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    save_checkpoint(tmp_path, make(7))
    assert load_latest(tmp_path, warn=pytest.fail).step == 7


def pid_of_a_dead_process() -> int:
    """A number that no process has."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_reading_a_run_changes_nothing_in_it(tmp_path):
    """Whoever renders or exports a run that is being trained must not break its next save."""
    save_checkpoint(tmp_path, make(1))
    (tmp_path / f".step-000002.{pid_of_a_dead_process()}.tmp").mkdir()
    (tmp_path / f".step-000001.{os.getppid()}.old").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert load_latest(tmp_path, warn=pytest.fail).step == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_save_removes_what_dead_processes_and_itself_left_and_no_others(tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        for pid in (writer.pid, os.getpid(), pid_of_a_dead_process()):
            (tmp_path / f".step-000002.{pid}.tmp").mkdir()
        save_checkpoint(tmp_path, make(3))
        left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
        assert left == [f".step-000002.{writer.pid}.tmp"]
    finally:
        writer.communicate(b"\n")
    save_checkpoint(tmp_path, make(4))
    assert not (tmp_path / f".step-000002.{writer.pid}.tmp").exists()


@pytest.mark.slow
def test_kill_at_any_moment_leaves_a_readable_checkpoint(tmp_path):
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import torch
from pathlib import Path
from studio.checkpoints import Checkpoint, save_checkpoint
step = int(sys.argv[1])
while True:
    step += 1
    tensors = {{"x": torch.full((50_000,), float(step))}}
    save_checkpoint(Path({str(tmp_path)!r}), Checkpoint(step, tensors, {{}}))
    print(step, flush=True)
"""
    done = 0
    for trial in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(done)], stdout=subprocess.PIPE, text=True
        )
        first = int(process.stdout.readline())
        time.sleep(0.03 + 0.021 * trial)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        warnings: list[str] = []
        checkpoint = load_latest(tmp_path, warn=warnings.append)
        assert warnings == []
        assert checkpoint.step >= first
        assert torch.equal(checkpoint.scene["x"], torch.full((50_000,), float(checkpoint.step)))
        done = checkpoint.step

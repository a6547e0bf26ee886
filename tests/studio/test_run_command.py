"""`studio run` from the scene file to the files on disk, with a tiny real prior."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
import weakref
from pathlib import Path

import pytest
import trimesh

from studio.cli import main
from studio.commands import run as run_command
from studio.config import load_scene
from studio.errors import StorageError
from studio.folder_lock import hold_run
from tests.studio.conftest import start


@pytest.fixture(scope="module")
def finished(tiny_scene, tmp_path_factory) -> tuple[dict, Path]:
    """The JSON that a whole run printed, and the folder of all runs."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        result = json.loads(studio(patch, "run", str(tiny_scene), "--out", str(out), "--json"))
    return result, out


def studio(patch: pytest.MonkeyPatch, *arguments: str) -> str:
    """Run the command in this process; returns its stdout."""
    captured = io.StringIO()
    patch.setattr(sys, "argv", ["studio", *arguments])
    patch.setattr(sys, "stdout", captured)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in (0, None)
    return captured.getvalue()


def test_json_names_files_that_exist(finished):
    result, _ = finished
    assert result["status"] == "done"
    assert result["prompt"] == "a red duck"
    assert set(result["metrics"]) >= {"opacity", "grad_norm", "guidance_grad_norm"}
    for path in result["files"].values():
        assert Path(path).stat().st_size > 0
    mesh = trimesh.load(result["files"]["glb"], force="mesh")
    assert mesh.extents[1] == pytest.approx(1.0, abs=1e-3)


def test_run_folder_repeats_the_run(finished):
    result, out = finished
    run = Path(result["run"])
    assert run.parent.name == "a-red-duck"
    assert run.name.startswith("tiny-s0-")
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert info["argv"][0] == "run"
    assert info["packages"]["torch"]
    assert info["seconds"]["optimise"] > 0
    assert info["peak_memory_bytes"] > 1e7
    assert len(info["weights"]["prior"]["fingerprint"]) >= 12
    again = load_scene(run / "resolved.yaml")
    assert (again.name, again.config.prompt) == ("tiny", "a red duck")
    assert again.config == load_scene(run / "scene.yaml").config
    (line,) = (out / "index.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["status"] == "done"


@pytest.mark.slow
def test_resume_of_a_finished_run_exports_it_anew(finished, monkeypatch):
    result, _ = finished
    arguments = ["run", "--resume", result["run"], "export.formats=[ply]", "--json"]
    again = json.loads(studio(monkeypatch, *arguments))
    assert again["status"] == "done"
    assert set(again["files"]) >= {"ply"}
    assert again["metrics"] == result["metrics"]


@pytest.mark.slow
def test_last_line_is_the_file_to_open(finished, monkeypatch):
    result, _ = finished
    lines = studio(monkeypatch, "run", "--resume", result["run"]).strip().splitlines()
    assert lines[0].split()[1] == result["run"]
    assert Path(lines[-1].split()[1]).is_file()


def test_the_prior_is_let_go_of_before_the_asset_is_written(tiny_scene, tmp_path, monkeypatch):
    """A card that the prior fills has no room for views of an asset."""
    priors: list[weakref.ref] = []
    load = run_command._load

    def loaded(prepared: run_command.Prepared) -> object:
        runner = load(prepared)
        priors.append(weakref.ref(runner.prior))
        return runner

    def finish(run: object, device: str) -> dict[str, str]:
        assert [prior() for prior in priors] == [None]
        return {"device": device}

    monkeypatch.setattr(run_command, "_load", loaded)
    monkeypatch.setattr(run_command, "_finish", finish)
    arguments = [str(tiny_scene), "steps=1", "--out", str(tmp_path), "--json"]
    result = json.loads(studio(monkeypatch, "run", *arguments))
    assert result["files"]["device"] == "cpu"


@pytest.mark.parametrize("resume", [False, True], ids=["new", "resumed"])
def test_a_run_is_held_while_it_is_worked_on(resume, tiny_scene, tmp_path, monkeypatch):
    """A second process that continues it would save over the first one's checkpoints."""
    seen = []

    def work(prepared: run_command.Prepared, *_: object, **__: object) -> dict[str, str]:
        with pytest.raises(StorageError, match="Another process"), hold_run(prepared.run):
            pass
        seen.append(prepared.run)
        return {}

    monkeypatch.setattr(run_command, "_make", work)
    arguments = [str(tiny_scene), "--out", str(tmp_path)]
    if resume:
        arguments = ["--resume", str(start(tiny_scene, tmp_path)[1].path)]
    studio(monkeypatch, "run", *arguments, "--json")
    (run,) = seen
    with hold_run(run):
        pass


@pytest.fixture
def heard_ctrl_c():
    """Ctrl-C raises KeyboardInterrupt; a job in the background is begun with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_while_the_asset_is_written_lists_the_run_and_says_how_to_go_on(
    number, tiny_scene, tmp_path, monkeypatch, capsys, heard_ctrl_c
):
    """The scheduler's SIGTERM ends a run like Ctrl-C; what was optimised stays usable."""

    def stopped(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)  # the signal ends this

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("studio.finish.finish_run", stopped)
    words = ["studio", "run", str(tiny_scene), "steps=2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130
    (run,) = tmp_path.glob("*/*/run.json")
    assert f"studio export {run.parent}" in capsys.readouterr().err.splitlines()[-1]
    assert json.loads(run.read_text(encoding="utf-8"))["status"] == "optimised"
    (line,) = (tmp_path / "index.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["status"] == "optimised"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_before_the_first_step_marks_the_run_as_interrupted_and_says_how_to_go_on(
    tiny_scene, tmp_path, monkeypatch, capsys
):
    def stopped(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    words = ["studio", "run", str(tiny_scene), "steps=2", "--out", str(tmp_path), "--json"]
    monkeypatch.setattr(sys, "argv", words)
    with monkeypatch.context() as patched:
        patched.setattr("studio.runner.Runner", stopped)
        with pytest.raises(SystemExit) as stop:
            main()
    assert stop.value.code == 130
    (run,) = tmp_path.glob("*/*/run.json")
    told = json.loads(capsys.readouterr().out)
    assert (told["error"], told["exit_code"]) == ("Interrupted", 130)
    assert told["message"].endswith(f"studio run --resume {run.parent}")
    (line,) = (tmp_path / "index.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["status"] == "interrupted"
    studio(monkeypatch, "run", "--resume", str(run.parent))
    assert json.loads(run.read_text(encoding="utf-8"))["status"] == "done"


def test_a_signal_while_nothing_can_be_resumed_is_one_line_and_one_object(
    tiny_scene, tmp_path, monkeypatch, capsys, heard_ctrl_c
):
    monkeypatch.setattr(
        "studio.commands.run.load_task", lambda *_: os.kill(os.getpid(), signal.SIGINT)
    )
    monkeypatch.setattr(sys, "argv", ["studio", "run", str(tiny_scene), "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130
    heard = capsys.readouterr()
    assert heard.err == "error: interrupted\n"
    assert json.loads(heard.out)["exit_code"] == 130

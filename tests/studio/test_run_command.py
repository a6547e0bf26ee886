"""`studio run` from the scene file to the files on disk, with a tiny real prior."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import trimesh

from studio.cli import main
from studio.config import load_scene


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

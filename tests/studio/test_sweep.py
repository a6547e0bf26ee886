"""Sweeps: which runs they hold, and their table."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import yaml

from studio.cli import main
from studio.commands import sweep
from studio.errors import ConfigError, Interrupted
from tests.studio.test_resuming import a_run


def listed(capsys, *arguments: str, **options) -> list[str]:
    """The runs of a sweep, without running them."""
    sweep.run(list(arguments), dry_run=True, **options)
    return capsys.readouterr().out.splitlines()


def test_prompts_come_from_a_file_and_seeds_as_ranges(tiny_scene, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# animals\na red duck, sitting\n\n  a blue fish\n", encoding="utf-8")
    found = listed(capsys, str(tiny_scene), prompts=prompts, seeds="0-1,5")
    assert len(found) == 6
    assert found[0] == "a red duck, sitting, seed=0"
    assert found[-1] == "a blue fish, seed=5"


def test_a_wrong_value_is_refused_before_the_first_run(tiny_scene, tmp_path):
    for arguments, message in (
        (["stages.0.steps=3,-1"], "stages.0.steps is -1"),
        (["stages.0.stesp=3,4"], "Did you mean 'steps'"),
        (["seed=1,01"], "is the same scene as"),
    ):
        with pytest.raises(ConfigError, match=message):
            sweep.run([str(tiny_scene), *arguments], out=tmp_path)
    assert list(tmp_path.iterdir()) == []


FREE = ("export.max_faces=300,400", "saving.keep_checkpoints=2,3", "device=cpu,auto")


@pytest.mark.parametrize("values", FREE)
def test_values_that_would_go_on_with_one_run_are_refused(values, tiny_scene, tmp_path):
    """The last one would overwrite the asset of the others, and stand in every row of the table."""
    key, first, last = *values.split("=")[:1], *values.split("=")[1].split(",")
    with pytest.raises(ConfigError) as refused:
        sweep.run([str(tiny_scene), values, "seed=0,1"], out=tmp_path)
    assert f"{key}={last} seed=0 is the same run as {key}={first} seed=0" in str(refused.value)
    assert "studio export RUN" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_export_may_follow_a_value_that_makes_another_run(tiny_scene, capsys):
    values = ["seed=0,1", "export.max_faces=300,400"]
    found = listed(capsys, str(tiny_scene), *values, side_by_side=True)
    assert found == ["seed=0, max_faces=300", "seed=1, max_faces=400"]


@pytest.mark.parametrize("seeds", ["x", "3-1", "1,,2", "0-99999"])
def test_seeds_that_make_no_sense_are_refused(tiny_scene, tmp_path, seeds):
    with pytest.raises(ConfigError, match="--seeds is"):
        sweep.run([str(tiny_scene)], seeds=seeds, out=tmp_path)


def test_a_finished_sweep_prints_its_table_and_makes_nothing(tiny_scene, tmp_path, capsys):
    """Runs are found by their scene, so that a sweep can be read or widened at any time."""
    folder = tmp_path / "sweeps" / "mine"
    for seed, share in ((0, 0.25), (1, 0.75)):
        run = a_run(tiny_scene, folder, "done", f"seed={seed}")
        run.update_info({"evaluation": {"kind_accuracy": share, "view_consistency": 0.5}})
    before = sorted(folder.glob("*/*"))
    sweep.run([str(tiny_scene), "seed=0,1"], out=tmp_path, name="mine")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["seed=0", "0.250"]
    assert lines[3].split()[:6] == ["mean", "of", "tiny", "(2)", "0.500", "-"]
    assert sorted(folder.glob("*/*")) == before
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["status"], row["kind_accuracy"]) for row in rows] == [
        ("0", "done", "0.25"),
        ("1", "done", "0.75"),
    ]
    assert all(Path(row["run"]).is_dir() for row in rows)
    noted = yaml.safe_load((folder / "sweep.yaml").read_text())
    assert noted["axes"] == {"seed": ["0", "1"]}
    assert (folder / "gallery.html").read_text().count("<article") == 2


def test_what_is_left_is_told(tiny_scene, tmp_path, capsys):
    from studio.batch import BatchConfig

    with pytest.raises(Interrupted, match="2 of 2 runs are left"):
        sweep.run([str(tiny_scene), "seed=0,1"], out=tmp_path, batch=BatchConfig(minutes=1e-9))
    table = capsys.readouterr().out
    assert "waiting" in table
    assert "0.000" not in table


@pytest.mark.slow
def test_a_sweep_makes_measures_and_lists_its_runs(tiny_scene, tmp_path, monkeypatch, capsys):
    arguments = ["studio", "sweep", str(tiny_scene), "stages.0.steps=3,4", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in (0, None)
    found = json.loads(capsys.readouterr().out)
    assert [run["label"] for run in found["runs"]] == ["steps=3", "steps=4"]
    assert {run["status"] for run in found["runs"]} == {"done"}
    assert all(run["metrics"]["kind_accuracy"] is not None for run in found["runs"])
    assert Path(found["files"]["gallery"]).is_file()
    assert (Path(found["runs"][0]["run"]) / "report.html").read_text().count("Evaluation") == 1

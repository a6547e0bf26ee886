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
from studio.commands.sweep import Axis, axes_of, combinations, split_values
from studio.errors import ConfigError, Interrupted
from tests.studio.test_resuming import a_run

VALUES = {
    "1,2,3": ("1", "2", "3"),
    "one": ("one",),
    "[1,2],[3,4]": ("[1,2]", "[3,4]"),
    "[[0,0.98],[1,0.5]],0.9": ("[[0,0.98],[1,0.5]]", "0.9"),
    "{kind: a, b: 1},{kind: c}": ("{kind: a, b: 1}", "{kind: c}"),
    "'a, b', c": ("'a, b'", "c"),
    '"it\'s, red",b': ('"it\'s, red"', "b"),
    "a red duck's beak,b": ("a red duck's beak", "b"),
    "a,": ("a", ""),
}


@pytest.mark.parametrize(("text", "values"), VALUES.items())
def test_values_are_split_at_commas_outside_of_brackets_and_quotes(text, values):
    assert split_values(text) == values


def test_overrides_with_one_value_are_fixed():
    axes, fixed = axes_of(["seed=0,1", "steps=7", "prompt='a, b',c"])
    assert axes == [Axis("seed", ("0", "1")), Axis("prompt", ("'a, b'", "c"))]
    assert fixed == ["steps=7"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["seed=1,"], "an empty value"), (["seed=1,1"], "a value twice"),
     (["seed=1", "seed=2"], "stands twice")],
)  # fmt: skip
def test_values_that_say_nothing_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        axes_of(overrides)


def test_all_combinations_or_side_by_side():
    axes = [Axis("a", ("1", "2")), Axis("b", ("x", "y"))]
    assert combinations(axes) == [("1", "x"), ("1", "y"), ("2", "x"), ("2", "y")]
    assert combinations(axes, side_by_side=True) == [("1", "x"), ("2", "y")]
    assert combinations([]) == [()]
    with pytest.raises(ConfigError, match="a has 2, c has 3"):
        combinations([axes[0], Axis("c", ("1", "2", "3"))], side_by_side=True)
    many = Axis("n", tuple(map(str, range(101))))
    with pytest.raises(ConfigError, match="10201 runs"):
        combinations([many, many])


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

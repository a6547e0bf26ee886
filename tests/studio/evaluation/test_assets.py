"""Metrics of exported assets: a true object, exported, turned and renamed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scenes.toybox.objects import ObjectSpec, ToyObject, build_object
from studio.commands import eval as command
from studio.errors import ConfigError
from studio.evaluation.assets import asset_glb, evaluate_run
from studio.evaluation.judge import load_judge
from studio.run_folder import RunFolder, create_run
from studio.runner import Runner
from tests.studio.conftest import start
from tests.studio.evaluation.shapes import write_glb

DUCK = ObjectSpec("duck", "blue", "plain", 9)


def finished_run(out: Path, prompt: str, toy: ToyObject) -> RunFolder:
    """A run folder whose asset is a toybox object."""
    run = create_run(out, prompt=prompt, method="true", seed=0, info={})
    write_glb(toy, run.asset_dir)
    return run


def turned(toy: ToyObject, degrees: float) -> ToyObject:
    """The object turned about +z."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return replace(toy, vertices=toy.vertices @ matrix.T, normals=toy.normals @ matrix.T)


@pytest.fixture(scope="module")
def duck(tmp_path_factory) -> RunFolder:
    """A perfect asset for its prompt, but facing +y."""
    return finished_run(
        tmp_path_factory.mktemp("runs"), "a blue duck", turned(build_object(DUCK), 90)
    )


def test_a_true_object_scores_nearly_full_marks_whichever_way_it_faces(duck):
    metrics = evaluate_run(duck, load_judge())
    assert (metrics.source, metrics.kind, metrics.color) == ("glb", "duck", "blue")
    assert metrics.kind_accuracy >= 0.75
    assert metrics.color_accuracy == 1.0
    assert metrics.both_accuracy == metrics.kind_accuracy
    assert metrics.silhouette_iou > 0.9
    assert metrics.yaw_deg == 90.0
    assert metrics.chamfer < 0.05
    assert metrics.janus < 0.2
    # The asset shows the colours without the toybox's light, which only darkens.
    assert -0.02 < metrics.saturation_error < 0.25
    assert metrics.saturation_abs == abs(metrics.saturation_error)


def test_another_prompt_makes_the_same_asset_wrong(duck, tmp_path):
    run = finished_run(tmp_path, "a red table", build_object(DUCK))
    metrics = evaluate_run(run, load_judge())
    assert metrics.kind_accuracy <= 0.25
    assert metrics.color_accuracy == 0.0
    assert metrics.janus is None  # a table has no front
    assert metrics.silhouette_iou < 0.6
    assert metrics.chamfer > 0.1
    assert max(metrics.seen_colors, key=metrics.seen_colors.get) == "blue"


def test_eval_writes_figures_into_the_run_and_prints_a_table(duck, capsys):
    command.run([duck.path])
    table = capsys.readouterr().out
    stored = duck.read_info()["evaluation"]
    assert table.splitlines()[1].startswith("a blue duck")
    assert f"{stored['silhouette_iou']:.3f}" in table.splitlines()[1]
    assert stored["kind"] == "duck"


def test_eval_of_several_runs_adds_means_and_json_is_one_list(duck, capsys):
    command.run([duck.path, duck.path])
    assert capsys.readouterr().out.splitlines()[3].startswith("mean")
    command.run([duck.path], as_json=True)
    (row,) = json.loads(capsys.readouterr().out)
    assert row["run"] == str(duck.path)
    assert row["both_accuracy"] == duck.read_info()["evaluation"]["both_accuracy"]


def test_eval_of_another_prompt_says_what_it_can(tmp_path, capsys):
    run = finished_run(tmp_path, "a dragon of blue glass", build_object(DUCK))
    command.run([run.path])
    text = capsys.readouterr().out
    assert "names no single toybox object" in text
    assert "blue 8" in text
    assert run.read_info()["evaluation"]["kind_accuracy"] is None


def test_an_asset_is_found_only_where_there_is_one(duck, tmp_path):
    assert asset_glb(duck).suffix == ".glb"
    assert asset_glb(create_run(tmp_path, prompt="x", method="m", seed=0, info={})) is None


def test_a_glb_that_the_last_export_did_not_write_is_not_the_asset(tmp_path):
    run = create_run(tmp_path, prompt="x", method="m", seed=0, info={})
    (run.asset_dir / "asset.glb").write_bytes(b"older")
    assert asset_glb(run) == run.asset_dir / "asset.glb", "nothing is noted"
    run.update_info({"export": {"files": {"obj": "asset.obj"}}})
    assert asset_glb(run) is None
    run.update_info({"export": {"files": {"glb": "asset.glb", "obj": "asset.obj"}}})
    assert asset_glb(run) == run.asset_dir / "asset.glb"


@pytest.mark.parametrize("arguments", [{}, {"runs": ["a"], "prior": Path("b")}])
def test_eval_wants_either_runs_or_a_prior(arguments):
    with pytest.raises(ConfigError, match="expected run folders, or --prior"):
        command.run(**arguments)


def test_eval_refuses_what_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match="no run folder"):
        command.run([tmp_path])
    run = create_run(tmp_path, prompt="x", method="m", seed=0, info={})
    run.update_info({"prompt": None})
    with pytest.raises(ConfigError, match="has no prompt"):
        evaluate_run(run, load_judge())


def test_eval_of_a_prior_prints_gates_and_writes_a_sheet(tiny_prior, tmp_path, capsys):
    command.run(prior=tiny_prior, samples=4, out=tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("train_kind") and "MISSED" in line for line in lines)
    values = json.loads((tmp_path / "evaluation.json").read_text())
    assert values["figures"]["train_kind"]["n"] == 4
    assert (tmp_path / "samples.png").stat().st_size > 1000


def test_eval_of_a_prior_wants_samples(tiny_prior, tmp_path):
    with pytest.raises(ConfigError, match="--samples is 0"):
        command.run(prior=tiny_prior, samples=0, out=tmp_path)


def test_a_run_without_an_asset_is_judged_by_its_field_and_the_table_says_so(
    tiny_scene, tmp_path, capsys
):
    scene, run = start(tiny_scene, tmp_path, "stages.0.steps=2")
    Runner(scene, run).optimise()
    metrics = evaluate_run(run, load_judge())
    assert (metrics.source, metrics.kind) == ("field", "duck")
    assert sum(metrics.seen_kinds.values()) == 8
    assert 0.0 <= metrics.kind_accuracy <= 1.0
    assert (metrics.silhouette_iou, metrics.chamfer) == (None, None)
    command.run([run.path])
    printed = capsys.readouterr().out
    assert printed.count("no iou, no chamfer") == 1
    assert f"studio export {run.path} --format glb\n" in printed

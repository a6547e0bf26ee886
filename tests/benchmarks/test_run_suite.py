"""The comparison of systems on the suite: which assets, in which order, and the files it writes."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.text_to_3d import run_suite
from benchmarks.text_to_3d.budgets import scene_rows
from benchmarks.text_to_3d.kept import SCHEMA, read_kept, scene_settings
from benchmarks.text_to_3d.results import (
    PAIRS,
    budget_notes,
    code_note,
    coverage_note,
    machine_note,
    mixed_priors,
    page,
)
from studio.config import dump_yaml, load_scene
from studio.errors import ConfigError
from studio.evaluation.comparison import Result
from studio.evaluation.suite import chosen
from studio.export.gltf import glb_bytes
from studio.export.shading import FlatMesh
from studio.run_folder import create_run, write_atomic

MADE = {"command": "x", "date": "y", "workers": 1, "assets": []}
"""How a comparison was made, which the tables of a page do not depend on."""
FIGURES = {"kind_accuracy": 0.75, "color_accuracy": 1.0, "both_accuracy": 0.75, "janus": 0.25}


@pytest.fixture
def tiny_scene(tmp_path) -> Path:
    """A system of which nothing is run."""
    path = tmp_path / "tiny.yaml"
    path.write_text("base: demo\nprompt: a duck\nstages: [{name: shape, steps: 5}]\n")
    return path


def options(*arguments: str, runs: Path = Path("runs")):
    """The parsed command line."""
    found = run_suite.parser().parse_args(arguments)
    found.runs = runs
    return found


def test_cells_go_prompt_by_prompt_through_all_systems():
    cells = run_suite.cells_of(
        options("--systems", "demo,dreamfusion", "--seeds", "0,3", "--limit", "2")
    )
    first, second = (item.prompt for item in chosen(2))
    assert [(c.seed, c.item.prompt, c.system) for c in cells[:5]] == [
        (0, first, "demo"),
        (0, first, "dreamfusion"),
        (0, second, "demo"),
        (0, second, "dreamfusion"),
        (3, first, "demo"),
    ]
    assert len(cells) == 8
    assert cells[1].job.overrides == (f"prompt={first}", "seed=0")
    assert cells[1].job.out == Path("runs/dreamfusion")


def test_an_override_is_for_all_systems_or_for_one():
    cells = run_suite.cells_of(
        options("--systems", "demo,dreamfusion", "--limit", "1", "--set", "steps=5",
                "dreamfusion:stages.0.background.kind=random")
    )  # fmt: skip
    assert cells[0].job.overrides[2:] == ("steps=5",)
    assert cells[1].job.overrides[2:] == ("steps=5", "stages.0.background.kind=random")
    assert cells[1].job.config().stages[0].background.kind == "random"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--systems", "demo,demo"], "expected different names"),
        (["--systems", "dmeo"], "No preset or file 'dmeo'.*demo"),
        (["--seeds", "0-3"], "expected numbers"),
        (["--limit", "0"], "expected 1 to 32"),
        (["--set", "magic3d:steps=3"], "no system 'magic3d'"),
        (["--set", "stesp=3"], "stesp: unknown key"),
        (["--evaluations", "many"], "expected N or SYSTEM:N"),
        (["--evaluations", "0"], "expected N or SYSTEM:N"),
        (["--evaluations", "magic3d:30"], "no system 'magic3d' - have demo"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(arguments, message):
    with pytest.raises(ConfigError, match=message):
        run_suite.cells_of(options(*arguments))


def test_budgets_are_for_all_systems_or_for_one_and_come_after_overrides():
    cells = run_suite.cells_of(
        options("--systems", "demo,pocket-dreamflow,pocket-magic3d-coarse", "--limit", "1",
                "--set", "demo:steps=50", "--evaluations", "pocket-magic3d-coarse:2080", "3200")
    )  # fmt: skip
    scenes = [cell.job.config() for cell in cells]
    assert [scene_rows(scene) for scene in scenes] == [3200, 3200, 2080]
    assert [stage.steps for stage in scenes[0].stages] == [400]
    assert [cell.system for cell in cells][2] == "pocket-magic3d-coarse"


def tetrahedron() -> bytes:
    """A small GLB."""
    position = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    normal = np.tile(np.array([[0, 1, 0]], dtype=np.float32), (4, 1))
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    mesh = FlatMesh(position, normal, faces, rgb=np.full((4, 3), 0.5))
    frame = {"scale": 1.0, "base": [0.0, 0.0, 0.0]}
    return glb_bytes(mesh, texture_png=None, name="t", extras={"scene_frame": frame})


def finished(scene: Path, out: Path, prompt: str, status: str = "done") -> None:
    """A run as the suite would have made it."""
    config = load_scene(scene, [f"prompt={prompt}", "seed=0"]).config
    run = create_run(out, prompt=prompt, method=scene.stem, seed=0, info={})
    write_atomic(run.resolved_path, dump_yaml(config))
    run.update_info({"status": status, "seconds": {"optimise": 90.0}, "peak_memory_bytes": 2**30})
    if status == "done":
        (run.asset_dir / "asset.glb").write_bytes(tetrahedron())
        run.update_info({"evaluation": FIGURES, "weights": {"prior": {"fingerprint": "abc"}}})


def call(monkeypatch, *arguments: str) -> None:
    """`python -m benchmarks.text_to_3d.run_suite` in this process."""
    monkeypatch.setattr(sys, "argv", ["run_suite", *arguments])
    run_suite.main()


def test_what_is_finished_is_compared_and_not_made_again(tiny_scene, tmp_path, monkeypatch, capsys):
    other = tiny_scene.with_name("other.yaml")
    other.write_text(tiny_scene.read_text(encoding="utf-8") + "negative_prompt: fog\n")
    prompts = [item.prompt for item in chosen(2)]
    runs = tmp_path / "runs"
    for prompt in prompts:
        finished(tiny_scene, runs / "tiny", prompt)
    finished(other, runs / "other", prompts[0])
    finished(other, runs / "other", prompts[1], status="diverged")
    before = sorted(runs.rglob("run.json"))
    call(
        monkeypatch,
        *("--name", "x", "--systems", f"{tiny_scene},{other}", "--limit", "2"),
        *("--runs", str(runs), "--results", str(tmp_path / "results")),
    )
    out = capsys.readouterr().out
    assert sorted(runs.rglob("run.json")) == before
    document = json.loads((tmp_path / "results/text_to_3d--x.json").read_text())
    assert [row["status"] for row in document["assets"]] == ["done", "done", "done", "diverged"]
    assert [row["system"] for row in document["assets"]] == ["tiny", "tiny", "other", "other"]
    assert not any(str(tmp_path) in str(row["run"]) for row in document["assets"])
    assert document["summary"]["other"]["all"]["kind_accuracy"]["value"] == 0.375
    assert document["scenes"]["other"]["negative_prompt"] == "fog"
    assert document["priors"]["tiny"] == ["abc"]
    assert document["budgets"] == {"tiny": 40, "other": 40}
    assert document["pairs"] == []
    assert "Denoiser evaluations of a run: tiny 40, other 40." in out
    assert "Budgets differ" not in out
    assert "| **other** | all | 2 (1 failed) | 0.38" in out
    assert "Difference to tiny" in (tmp_path / "results/text_to_3d--x.md").read_text()
    picture = Image.open(tmp_path / "results/text_to_3d--x.png")
    assert picture.width > 2 * 4 * 72
    assert np.asarray(picture).std() > 1


def test_assets_without_a_turn_are_left_out(tiny_scene, tmp_path, monkeypatch, capsys):
    prompts = [item.prompt for item in chosen(2)]
    finished(tiny_scene, tmp_path / "runs" / "tiny", prompts[1])
    with pytest.raises(SystemExit) as stop:
        call(
            monkeypatch,
            *("--name", "x", "--systems", str(tiny_scene), "--limit", "2", "--minutes", "1e-9"),
            *("--runs", str(tmp_path / "runs"), "--results", str(tmp_path)),
        )
    assert stop.value.code == 130
    document = json.loads((tmp_path / "text_to_3d--x.json").read_text())
    assert [row["prompt"] for row in document["assets"]] == [prompts[1]]
    assert "1 of 2 assets are left" in capsys.readouterr().err


def test_the_first_system_is_the_base_although_another_is_ahead(tiny_scene, tmp_path, monkeypatch):
    other = tiny_scene.with_name("other.yaml")
    other.write_text(tiny_scene.read_text(encoding="utf-8") + "negative_prompt: fog\n")
    prompts = [item.prompt for item in chosen(2)]
    finished(tiny_scene, tmp_path / "runs" / "tiny", prompts[1])
    finished(other, tmp_path / "runs" / "other", prompts[0])
    with pytest.raises(SystemExit):
        call(
            monkeypatch,
            *("--name", "x", "--systems", f"{tiny_scene},{other}", "--limit", "2"),
            *("--runs", str(tmp_path / "runs"), "--results", str(tmp_path), "--minutes", "1e-9"),
        )
    assert "Difference to tiny" in (tmp_path / "text_to_3d--x.md").read_text()


def without_runs(tiny_scene, tmp_path, monkeypatch, *arguments: str) -> dict:
    """What the result file says after a second call that makes nothing."""
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    with pytest.raises(SystemExit):
        call(
            monkeypatch,
            *("--name", "x", "--systems", f"{tiny_scene},demo", "--limit", "3", *arguments),
            *("--runs", str(tmp_path / "runs"), "--results", str(tmp_path), "--minutes", "1e-9"),
        )
    return json.loads((tmp_path / "text_to_3d--x.json").read_text())


def test_figures_and_pictures_are_kept_where_the_runs_are_gone(tiny_scene, tmp_path, monkeypatch):
    prompts = [item.prompt for item in chosen(3)]
    finished(tiny_scene, tmp_path / "runs" / "tiny", prompts[0])
    finished(tiny_scene, tmp_path / "runs" / "tiny", prompts[2], status="failed")
    systems = ("--systems", f"{tiny_scene},demo", "--limit", "3", "--minutes", "1e-9")
    with pytest.raises(SystemExit):
        call(
            monkeypatch,
            *("--name", "x", *systems),
            *("--runs", str(tmp_path / "runs"), "--results", str(tmp_path)),
        )
    path = tmp_path / "text_to_3d--x.json"
    before = json.loads(path.read_text())
    assert all(row["processor"] == before["machine"]["processor"] for row in before["assets"])
    for row in before["assets"]:
        row["processor"] = "an abacus"
    path.write_text(json.dumps(before))
    after = without_runs(tiny_scene, tmp_path, monkeypatch)
    assert after["assets"] == [{**row, "run": None} for row in before["assets"]]
    assert [row["status"] for row in after["assets"]] == ["done", "failed"]
    assert "an abacus" in path.with_suffix(".md").read_text()
    assert "--minutes" not in after["command"]


def test_a_system_with_other_settings_is_not_kept_nor_what_failed_if_it_is_tried_again(
    tiny_scene, tmp_path, monkeypatch
):
    prompts = [item.prompt for item in chosen(2)]
    finished(tiny_scene, tmp_path / "runs" / "tiny", prompts[0])
    finished(tiny_scene, tmp_path / "runs" / "tiny", prompts[1], status="failed")
    with pytest.raises(SystemExit):
        call(
            monkeypatch,
            *("--name", "x", "--systems", str(tiny_scene), "--limit", "3", "--minutes", "1e-9"),
            *("--runs", str(tmp_path / "runs"), "--results", str(tmp_path)),
        )
    again = without_runs(tiny_scene, tmp_path, monkeypatch, "--retry")
    assert [row["status"] for row in again["assets"]] == ["done"]
    tiny_scene.write_text(tiny_scene.read_text(encoding="utf-8") + "negative_prompt: fog\n")
    scene = load_scene(tiny_scene, [f"prompt={prompts[0]}", "seed=0"]).config
    assert not read_kept(tmp_path, "x", {"tiny": scene})


def test_options_that_are_new_since_have_their_defaults(tiny_scene, tmp_path):
    scene = load_scene(tiny_scene, [f"prompt={chosen(1)[0].prompt}", "seed=0"]).config
    settings = json.loads(json.dumps(scene_settings(scene)))
    del settings["negative_prompt"]
    row = {"system": "tiny", "prompt": scene.prompt, "seed": 0, "status": "done"}
    document = {"schema": SCHEMA, "scenes": {"tiny": settings}, "assets": [row]}
    document["machine"] = {"processor": "an abacus"}
    path = tmp_path / "text_to_3d--x.json"
    path.write_text(json.dumps(document))
    (kept,) = read_kept(tmp_path, "x", {"tiny": replace(scene, seed=5)}).values()
    assert (kept.processor, kept.commit, kept.strip) == ("an abacus", None, None)
    for told in (document, row):  # the row's own goes before the file's
        told["commit"] = f"{len(told)}"
        path.write_text(json.dumps(document))
        (kept,) = read_kept(tmp_path, "x", {"tiny": scene}).values()
        assert kept.commit == told["commit"]
    assert not read_kept(tmp_path, "x", {"tiny": replace(scene, negative_prompt="fog")})
    document["scenes"]["tiny"]["unheard_of"] = 1
    path.write_text(json.dumps(document))
    assert not read_kept(tmp_path, "x", {"tiny": scene})


def test_a_damaged_result_file_is_told_and_left_alone(tiny_scene, tmp_path):
    path = tmp_path / "text_to_3d--x.json"
    path.write_text('{"schema": "text_to_3d/3", "scenes"')
    with pytest.raises(ConfigError, match=r"x\.json: .* expected a result file .* Move it away"):
        read_kept(tmp_path, "x", {"tiny": load_scene(tiny_scene).config})
    assert path.read_text().endswith('"scenes"')


def test_how_much_of_the_suite_there_is_and_where_it_was_made_is_told():
    rows = [
        {"system": system, "prompt": "a red duck", "seed": 0, "processor": name}
        for system, name in (("a", "slow"), ("b", "fast"))
    ]
    document = MADE | {"assets": [*rows, {**rows[0], "seed": 1}]}
    assert coverage_note(document) == "1 of the 32 prompts, 2 seed(s), 3 assets of 4."
    assert "fast and slow" in machine_note(document)
    assert "compare nothing" in machine_note(document)
    assert "compare nothing" not in machine_note(MADE | {"assets": rows[:1]})
    assert coverage_note(MADE | {"assets": rows}).endswith("2 assets.")


def test_assets_of_several_versions_of_the_code_are_told():
    row = {"system": "a", "prompt": "a red duck", "seed": 0}
    rows = [{**row, "commit": "1234567890"}] * 2 + [{**row, "commit": "abcdefabcdef"}]
    (note,) = code_note(MADE | {"assets": rows})
    assert "by commit: `12345678` (2), `abcdefab` (1)." in note
    assert code_note(MADE | {"assets": rows[:2]}) == []
    assert code_note(MADE | {"assets": [row]}) == []


def test_a_change_of_weights_is_told():
    """Within a system, and between systems that name the same prior; others may differ."""
    pocket, other = {"kind": "pocket"}, {"kind": "pocket_mv"}
    scenes = {"a": {"prior": pocket}, "b": {"prior": pocket}, "c": {"prior": other}}
    document = MADE | {
        "budgets": {"a": 1},
        "scenes": scenes,
        "priors": {"a": ["1"], "b": ["1"], "c": ["2"]},
    }
    results = [Result("a", "a red duck", 0, "done", FIGURES)]
    assert mixed_priors(document) == []
    assert "changed" not in page("n", document, results)
    document["priors"]["b"] = ["1", "3"]
    assert mixed_priors(document) == ["a", "b"]
    assert "prior of a, b changed" in page("n", document, results)


@pytest.mark.parametrize(("more", "told"), [(100, False), (105, False), (106, True), (300, True)])
def test_unequal_budgets_are_told(more, told):
    notes = budget_notes({"a": 100, "b": more})
    assert notes[0] == f"Denoiser evaluations of a run: a 100, b {more}."
    assert any(f"b has {more - 100} % more evaluations than a" in note for note in notes) is told


def test_questions_are_answered_by_pairs_that_are_there():
    """Each asks for a difference; without both systems it is left out."""
    document = MADE | {"budgets": {"a": 1}, "scenes": {}, "priors": {}}
    mesh = PAIRS[0]
    prompts = list(enumerate(item.prompt for item in chosen(6)))
    costs = {mesh.to: {"denoiser_evaluations": 2080}, mesh.system: {"denoiser_evaluations": 3200}}
    results = [
        Result(system, prompt, 0, "done", {**FIGURES, "silhouette_iou": iou}, costs[system])
        for k, prompt in prompts
        for system, iou in ((mesh.to, 0.5), (mesh.system, 0.72 + 0.012 * k))
    ]
    text = page("n", document, results).split("## Questions")[1].split("## Prompts")[0]
    (line,) = [line for line in text.splitlines() if mesh.question in line]
    assert f"| **{mesh.system}** minus {mesh.to} | 3,200 / 2,080 |" in line
    assert "| **+0.25 [+0.23, +0.27]** |" in line
    assert "Questions" not in page("n", document, results[::2])


def test_the_coarse_variant_is_the_first_stage_of_magic3d():
    """The name of the stage included: the same seed must make the same volume."""
    whole = load_scene("pocket-magic3d").config
    coarse = load_scene(run_suite.scene_of("pocket-magic3d-coarse")).config
    assert coarse == replace(whole, stages=whole.stages[:1])


def test_dreamfusion_as_mvdream_has_all_of_mvdream_but_its_guidance():
    theirs = load_scene("pocket-mvdream").config
    plain = load_scene("pocket-dreamfusion").config
    found = load_scene(run_suite.scene_of("pocket-dreamfusion-as-mvdream")).config
    stage = replace(theirs.stages[0], guidance=plain.stages[0].guidance)
    own = {"prior": plain.prior, "view_prompts": plain.view_prompts}
    assert found == replace(theirs, stages=(stage,), **own)


def test_dreamfusion_at_7_5_differs_in_nothing_else():
    plain = load_scene("pocket-dreamfusion").config
    guidance = replace(plain.stages[0].guidance, guidance_scale=7.5)
    found = load_scene(run_suite.scene_of("pocket-dreamfusion-at-7.5")).config
    assert found == replace(plain, stages=(replace(plain.stages[0], guidance=guidance),))
    for name in ("pocket-prolificdreamer", "pocket-dreamflow"):
        stages = load_scene(name).config.stages
        assert {stage.guidance.guidance_scale for stage in stages} == {7.5}


def test_the_cheap_dreamflow_is_dreamflow_at_a_third_of_prolificdreamer_s_evaluations():
    cheap = load_scene(run_suite.scene_of("pocket-dreamflow-third")).config
    full = load_scene("pocket-dreamflow").config
    share = scene_rows(cheap) / scene_rows(load_scene("pocket-prolificdreamer").config)
    assert 0.32 < share <= 1 / 3
    for ours, theirs in zip(cheap.stages, full.stages, strict=True):
        assert ours.steps == 2 * ours.guidance.timesteps
        assert ours.steps / theirs.steps == pytest.approx(160 / 340, rel=0.1)
        rule = replace(ours.guidance, timesteps=theirs.guidance.timesteps)
        assert replace(ours, steps=theirs.steps, guidance=rule) == theirs

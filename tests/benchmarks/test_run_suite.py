"""The comparison of systems on the suite: which assets, in which order, and the files it writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.text_to_3d import run_suite
from studio.config import dump_yaml, load_scene
from studio.errors import ConfigError
from studio.evaluation.comparison import Result
from studio.evaluation.suite import chosen
from studio.export.gltf import glb_bytes
from studio.export.shading import FlatMesh
from studio.run_folder import create_run, write_atomic

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
    ],
)
def test_mistakes_are_told_before_anything_is_made(arguments, message):
    with pytest.raises(ConfigError, match=message):
        run_suite.cells_of(options(*arguments))


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
    assert document["assets"][1]["system"] == "other"
    assert not any(str(tmp_path) in str(row["run"]) for row in document["assets"])
    assert document["summary"]["other"]["all"]["kind_accuracy"]["value"] == 0.375
    assert document["scenes"]["other"]["negative_prompt"] == "fog"
    assert document["priors"]["tiny"] == ["abc"]
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


def test_a_change_of_weights_is_told():
    """Within a system, and between systems that name the same prior; others may differ."""
    from benchmarks.text_to_3d.results import mixed_priors, page

    pocket, other = {"kind": "pocket"}, {"kind": "pocket_mv"}
    scenes = {"a": {"prior": pocket}, "b": {"prior": pocket}, "c": {"prior": other}}
    document = {"command": "x", "date": "y", "machine": {"processor": "z"}, "workers": 1}
    document |= {"scenes": scenes, "priors": {"a": ["1"], "b": ["1"], "c": ["2"]}}
    results = [Result("a", "a red duck", 0, "done", FIGURES)]
    assert mixed_priors(document) == []
    assert "changed" not in page("n", document, results)
    document["priors"]["b"] = ["1", "3"]
    assert mixed_priors(document) == ["a", "b"]
    assert "prior of a, b changed" in page("n", document, results)

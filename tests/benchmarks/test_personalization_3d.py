"""The 3D bench of personalization: which runs, and how an asset compares with the true object."""

from __future__ import annotations

import pytest

from benchmarks.personalization import run_3d
from benchmarks.personalization.features import SubjectFeatures
from benchmarks.personalization.results_3d import page, write_results
from benchmarks.personalization.run_3d import SIX
from benchmarks.personalization.subjects import case_of, write_photos
from benchmarks.personalization.truth_3d import SubjectTruth
from scenes.objects.subjects import true_mesh
from studio.batch import BatchConfig
from studio.config import dump_yaml
from studio.errors import ConfigError
from studio.evaluation.comparison import Result
from studio.evaluation.judge import load_judge
from studio.evaluation.metrics import janus
from studio.run_folder import create_run, write_atomic
from tests.benchmarks.test_run_suite import tetrahedron


@pytest.fixture(scope="module")
def truth() -> SubjectTruth:
    """A subject whose front is easy to tell."""
    cases = [case_of("teddy-bear"), case_of("rabbit")]
    return SubjectTruth(cases[0], SubjectFeatures(load_judge(), cases))


def options(*arguments: str, runs):
    """The parsed command line."""
    found = run_3d.parser().parse_args(arguments)
    found.runs = runs
    return found


def test_systems_are_the_paper_s_and_differ_only_in_what_guides(tmp_path):
    assets = run_3d.assets_of(options("--subjects", "rabbit", runs=tmp_path))
    plain, full, ours, dco = (asset.job.config() for asset in assets)
    assert (plain.prompt, full.prompt, ours.prompt) == ("a rabbit", "a sks rabbit", "a sks rabbit")
    assert plain.subject is None
    assert [stage.subject.weights for stage in full.stages] == ["full", "full"]
    assert ours.stages[0].subject is None
    assert ours.stages[1].subject.weights == "multiview"
    assert [stage.losses.reconstruction for stage in full.stages] == [0.0, 0.0]
    assert [s.steps for s in plain.stages] == [s.steps for s in full.stages] == [400, 300]
    assert full.subject == ours.subject
    assert (dco.prompt, dco.stages) == (ours.prompt, ours.stages)
    assert dco.subject.training.kind == "dco"


def test_everything_is_scaled_but_nothing_below_one_step(tmp_path):
    chosen = options("--subjects", "rabbit", "--steps-scale", "0.004", runs=tmp_path)
    ours = run_3d.assets_of(chosen)[2].job.config()
    subject = ours.subject
    steps = [subject.training.loop.steps, subject.partial_steps, subject.second_training.loop.steps]
    assert [stage.steps for stage in ours.stages] == [2, 1]
    assert steps == [2, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps-scale", "0"], "expected more than 0"),
        (["--systems", "dreambooth3d,dreambooth3d"], "expected different names"),
        (["--systems", "dreambooth4d"], "dreambooth3d"),
        (["--subjects", "unicorn"], "No subject 'unicorn'"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(arguments, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run_3d.assets_of(options(*arguments, runs=tmp_path))


def test_the_six_are_subjects():
    assert len({case_of(name) for name in SIX.split(",")}) == 6


def test_the_true_shape_has_no_distance_to_itself(truth):
    found = truth.metrics(true_mesh("teddy-bear"))
    assert found["silhouette_iou"] > 0.95
    assert found["chamfer"] < 0.03
    assert found["chamfer"] < truth.metrics(true_mesh("rabbit"))["chamfer"]
    assert truth.metrics(true_mesh("rabbit"))["silhouette_iou"] < found["silhouette_iou"]


def test_true_views_have_one_front_and_a_front_on_every_side_is_told(truth):
    front = truth.features.front(truth.rgb, "teddy-bear")
    assert int(front.argmax()) == 0
    assert front[0] > 0.6
    assert front[4] < 0.3
    assert janus(front, front).score == 0.0
    everywhere = truth.features.front(truth.rgb[:1].expand(8, -1, -1, -1), "teddy-bear")
    assert janus(everywhere, front).score > 0.6


def finished(asset, status: str) -> None:
    """A run as the bench would have made it, of a shape that is no rabbit."""
    config = asset.job.config()
    run = create_run(asset.job.out, prompt=config.prompt, method=asset.system, seed=0, info={})
    write_atomic(run.resolved_path, dump_yaml(config))
    run.update_info({"status": status, "seconds": {"prepare": 30.0, "optimise": 60.0}})
    if status == "done":
        (run.asset_dir / "asset.glb").write_bytes(tetrahedron())


def test_finished_runs_are_measured_once_and_not_made_again(tmp_path, truth, monkeypatch):
    monkeypatch.setattr(run_3d, "CASES", (case_of("teddy-bear"), case_of("rabbit")))
    chosen = options("--name", "x", "--subjects", "rabbit", runs=tmp_path / "runs")
    chosen.results = tmp_path
    write_photos(case_of("rabbit"), chosen.runs / "photos" / "rabbit", image_size=16)
    assets = run_3d.assets_of(chosen)
    for asset, status in zip(assets, ("done", "done", "diverged", "done"), strict=True):
        finished(asset, status)
    outcomes = run_3d.make(assets, BatchConfig(evaluate=False), None)
    assert [outcome.status for outcome in outcomes] == ["done", "done", "diverged", "done"]
    assert not any(outcome.fresh for outcome in outcomes)
    rows = run_3d.measured(assets, outcomes, again=False)
    plain, full, ours, dco = (result for _, result in rows)
    assert plain.metrics == full.metrics == dco.metrics
    assert plain.value("silhouette_iou") < 0.6
    assert plain.costs["seconds"] == 90.0
    assert not ours.measured
    monkeypatch.setattr(run_3d, "CASES", ())  # features of nothing: all is measured
    assert run_3d.measured(assets, outcomes, again=False) == rows
    paths, text = write_results(chosen, rows)
    assert [path.suffix for path in paths] == [".json", ".md", ".png"]
    assert all(path.is_file() for path in paths)
    assert "1 of 4 assets failed" in text


def test_the_page_tells_budget_and_failures():
    rows = [
        Result(
            "plain-prompt", "rabbit", 0, "done", {"fidelity": 0.25}, {"seconds": 60.0}, "r", "p"
        ),
        Result("dreambooth3d", "rabbit", 0, "diverged"),
    ]
    document = {"command": "x", "date": "y", "machine": {"processor": "z"}}
    text = page("n", {**document, "priors": ["p"], "steps_scale": 0.5}, rows)
    assert "Steps scaled by 0.5" in text
    assert "1 of 2 assets failed" in text
    assert "| **plain-prompt** | 1 | 0.25 |" in text

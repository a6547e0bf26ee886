"""Which prior guides which stage, how many stand in memory, and what they were asked."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from image_tools.errors import WeightsMissing
from studio.checkpoints import list_checkpoints
from studio.runner import Runner
from tests.studio.conftest import start
from tests.studio.test_runner import assert_equal_bits, run_to_the_end
from tests.tiny_models import write_pipeline

LATER = """  - name: detail
    steps: 2
    field: {{kind: previous}}
    prior: {{kind: diffusers, model: {model}}}
    renderer: {{samples_per_ray: 24, occupancy: {{resolution: 12, update_every: 2}}}}
    background: {{kind: random}}
    cameras: {{batch_size: 1, height: 12, width: 12, distance_range: [2.6, 3.2]}}
export:"""


@pytest.fixture(scope="module")
def two_priors(tiny_scene, tmp_path_factory) -> Path:
    """A scene whose second stage has a prior of its own."""
    folder = tmp_path_factory.mktemp("two")
    model = write_pipeline(folder / "sd1", "sd1")
    path = folder / "two.yaml"
    text = tiny_scene.read_text(encoding="utf-8").replace("steps: 6", "steps: 2")
    path.write_text(text.replace("export:", LATER.format(model=model)), encoding="utf-8")
    return path


def test_a_stage_has_its_own_prior_and_the_one_before_is_dropped(two_priors, tmp_path):
    scene, run = start(two_priors, tmp_path)
    runner = Runner(scene, run)
    first, fingerprint = weakref.ref(runner.prior), runner.prior.fingerprint
    seen = []
    while runner.has_next():
        runner.step()
        gc.collect()
        seen.append((runner.prior.fingerprint, first() is not None))
    second = runner.prior.fingerprint
    assert second != fingerprint
    assert seen == [(fingerprint, True)] * 2 + [(second, False)] * 2


def test_fingerprints_of_all_priors_are_recorded_and_compared_on_resume(
    two_priors, tmp_path, capsys
):
    scene, run = start(two_priors, tmp_path)
    expected = run_to_the_end(scene, run)
    weights = run.read_info()["weights"]
    assert set(weights) == {"prior", "stages.detail.prior"}
    assert weights["prior"]["kind"] == "pocket"
    assert weights["stages.detail.prior"]["kind"] == "diffusers"
    assert len({entry["fingerprint"] for entry in weights.values()}) == 2
    weights["stages.detail.prior"]["fingerprint"] = "another"
    run.update_info({"weights": weights})
    Runner(scene, run)
    assert "weights have changed" in capsys.readouterr().err

    _, parts = start(two_priors, tmp_path / "parts")
    runner = Runner(scene, parts)
    for _ in range(3):
        assert runner.has_next()
        runner.step()
    runner.save()
    assert_equal_bits(expected, run_to_the_end(scene, parts))


def test_weights_of_a_later_stage_are_missed_at_the_start(two_priors, tmp_path):
    scene, run = start(two_priors, tmp_path, "stages.1.prior.model=models/none")
    with pytest.raises(WeightsMissing, match="models/none"):
        Runner(scene, run)


def test_denoiser_evaluations_are_those_of_the_steps_alone(tiny_scene, tmp_path):
    """Two views, each with and without the prompt: 4 rows a step."""
    scene, quiet = start(tiny_scene, tmp_path / "quiet")
    run_to_the_end(scene, quiet)
    assert quiet.read_info()["denoiser_evaluations"] == 24
    busy_scene, busy = start(tiny_scene, tmp_path / "busy", "saving.preview_every=1")
    first = Runner(busy_scene, busy)
    for _ in range(3):
        first.step()
    first.save()
    first.step()  # lost: it comes after the checkpoint
    run_to_the_end(busy_scene, busy)
    assert busy.read_info()["denoiser_evaluations"] == 24
    assert len(list_checkpoints(busy.checkpoints_dir)) == 2

"""Finding the run of a scene again, by what it makes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from studio.config import load_scene
from studio.configs import SceneConfig
from studio.resuming import changed_keys, find_run, is_resumable, scene_of, work_of
from studio.run_folder import RunFolder
from tests.studio.conftest import start


@pytest.fixture
def scene(tiny_scene) -> SceneConfig:
    """The scene that is looked for."""
    return load_scene(tiny_scene).config


def a_run(
    scene_file: Path, out: Path, status: str, *overrides: str, age_s: float = 0.0
) -> RunFolder:
    """A run folder of some status, with a checkpoint unless it has just started."""
    _, run = start(scene_file, out, *overrides)
    run.update_info({"status": status})
    if status != "started":
        (run.checkpoints_dir / "step-000002").mkdir()
    then = run.info_path.stat().st_mtime - age_s
    os.utime(run.info_path, (then, then))
    return run


def test_settings_that_shape_nothing_may_differ(tiny_scene, scene):
    other = load_scene(tiny_scene, ["export.max_faces=500", "saving.keep_checkpoints=5"]).config
    assert changed_keys(scene, other) == []
    other = load_scene(tiny_scene, ["seed=4", "stages.0.losses.sparsity=0.1"]).config
    assert changed_keys(scene, other) == ["stages.0.losses.sparsity", "seed"]


def test_scenes_are_the_same_work_when_one_run_is_made_of_them(tiny_scene, scene):
    free = ["export.max_faces=500", "saving.keep_checkpoints=5", "device=auto"]
    assert work_of(load_scene(tiny_scene, free).config) == work_of(scene)
    for other in ("seed=4", "prompt=a red fish", "stages.0.losses.sparsity=0.1"):
        assert work_of(load_scene(tiny_scene, [other]).config) != work_of(scene)


def test_the_scene_of_a_run_is_read_back(tiny_scene, scene, tmp_path):
    assert scene_of(a_run(tiny_scene, tmp_path, "done")) == scene


@pytest.mark.parametrize(
    ("status", "resumable"),
    [("interrupted", True), ("running", True), ("optimised", True), ("started", False),
     ("done", False), ("failed", False), ("diverged", False)],
)  # fmt: skip
def test_a_run_that_stopped_on_its_way_can_go_on(tiny_scene, tmp_path, status, resumable):
    assert is_resumable(a_run(tiny_scene, tmp_path, status)) is resumable


def test_the_finished_run_is_found_before_newer_unfinished_ones(tiny_scene, scene, tmp_path):
    done = a_run(tiny_scene, tmp_path, "done", age_s=50)
    a_run(tiny_scene, tmp_path, "running", age_s=10)
    a_run(tiny_scene, tmp_path, "failed")
    assert find_run(tmp_path, scene).path == done.path


def test_an_unfinished_run_is_found_before_failed_ones_and_the_newest_first(
    tiny_scene, scene, tmp_path
):
    a_run(tiny_scene, tmp_path, "failed")
    a_run(tiny_scene, tmp_path, "interrupted", age_s=90)
    newer = a_run(tiny_scene, tmp_path, "interrupted", age_s=30)
    assert find_run(tmp_path, scene).path == newer.path


def test_other_scenes_and_empty_runs_are_passed_over(tiny_scene, scene, tmp_path):
    a_run(tiny_scene, tmp_path, "done", "seed=1")
    a_run(tiny_scene, tmp_path, "done", "stages.0.steps=7")
    a_run(tiny_scene, tmp_path, "started")
    damaged = a_run(tiny_scene, tmp_path, "done")
    damaged.resolved_path.write_text("prompt: [", encoding="utf-8")
    assert find_run(tmp_path, scene) is None
    assert find_run(tmp_path / "nowhere", scene) is None

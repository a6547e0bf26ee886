"""Multi-view guidance through the whole loop, and what its presets hold."""

from __future__ import annotations

import shutil

import pytest

from image_tools.errors import WeightsMissing
from studio.config import load_scene
from studio.errors import ConfigError
from studio.runner import Runner
from tests.image_tools.tiny_unets import tiny_multiview_unet
from tests.studio.conftest import start
from tests.studio.test_runner import assert_equal_bits, run_to_the_end

CAMERAS = "stages.0.cameras={kind: multiview, batch_size: 4, height: 12, width: 12}"

OBJECTS = (
    "prompt=a red duck left of a mushroom",
    "layout=[{prompt: a red duck, center: [0.0, -0.4, 0.0], size: [0.6, 0.6, 0.7]}, "
    "{prompt: a mushroom, center: [0.0, 0.4, 0.0], size: [0.6, 0.6, 0.7]}]",
    "stages.0.guidance={kind: layout_multiview, whole: 0.2, multiview: {guidance_scale: 5.0}}",
    "stages.0.field.blob.kind=blob_boxes",
)


@pytest.fixture(scope="module")
def overrides(tmp_path_factory, tiny_prior) -> list[str]:
    """What turns the tiny scene into a multi-view one."""
    folder = tmp_path_factory.mktemp("pocket-mv")
    tiny_multiview_unet().save_pretrained(folder / "unet")
    shutil.copytree(tiny_prior / "scheduler", folder / "scheduler")
    return [
        f"prior={{kind: pocket_mv, path: {folder}, base: {tiny_prior}}}",
        "stages.0.guidance={kind: multiview, guidance_scale: 5.0}",
        "stages.0.background={kind: random, share: batch}",
        CAMERAS,
    ]


def test_a_multiview_run_resumes_bit_for_bit(tiny_scene, tmp_path, overrides):
    scene, whole = start(tiny_scene, tmp_path / "whole", *overrides)
    expected = run_to_the_end(scene, whole)
    _, parts = start(tiny_scene, tmp_path / "parts", *overrides)
    first = Runner(scene, parts)
    for _ in range(3):
        first.step()
    first.save()
    assert_equal_bits(expected, run_to_the_end(scene, parts))
    info = whole.read_info()
    assert info["denoiser_evaluations"] == 6 * 2 * 4


def test_a_run_of_objects_in_boxes_resumes_bit_for_bit(tiny_scene, tmp_path, overrides):
    scene, whole = start(tiny_scene, tmp_path / "whole", *overrides, *OBJECTS)
    expected = run_to_the_end(scene, whole)
    _, parts = start(tiny_scene, tmp_path / "parts", *overrides, *OBJECTS)
    first = Runner(scene, parts)
    for _ in range(3):  # the next one is the second object's
        first.step()
    first.save()
    assert_equal_bits(expected, run_to_the_end(scene, parts))


def test_objects_in_boxes_need_a_volume_and_sets_of_views(tiny_scene, tmp_path, overrides):
    mesh = "stages.0.renderer={kind: mesh}"
    with pytest.raises(ConfigError, match="renders objects alone, which a mesh cannot"):
        start(tiny_scene, tmp_path / "mesh", *overrides, *OBJECTS, mesh)
    with pytest.raises(ConfigError, match="layout_multiview guidance needs sets of views"):
        start(tiny_scene, tmp_path / "cameras", *overrides[:-1], *OBJECTS)


def test_scenes_that_do_not_fit_say_what_is_missing(tiny_scene, tiny_prior, tmp_path, overrides):
    prior, guidance, ground, _ = overrides
    with pytest.raises(ConfigError, match="multiview guidance needs sets of views"):
        start(tiny_scene, tmp_path / "cameras", prior, guidance)
    missing = f"prior={{kind: mvdream, weights: nowhere, base: {tiny_prior}}}"
    scene, run = start(tiny_scene, tmp_path / "file", missing, guidance, ground, CAMERAS)
    with pytest.raises(WeightsMissing, match="nowhere"):
        Runner(scene, run)


def test_the_published_preset_holds_the_published_values():
    scene = load_scene("mvdream").config
    stage = scene.stages[0]
    assert stage.steps == 10_000
    assert scene.view_prompts.kind == "plain"
    assert scene.negative_prompt.startswith("ugly, bad anatomy, blurry, pixelated obscure")
    assert scene.negative_prompt.endswith("dehydrated, bad proportions")
    assert stage.guidance.guidance_scale == 50.0
    assert stage.guidance.loss.rescale == 0.5
    assert stage.guidance.timesteps.share == "batch"
    assert stage.background.share == "batch"
    assert stage.cameras.relative_distance_range == (0.8, 1.0)
    assert [m.batch_size for m in stage.cameras.milestones] == [4]
    assert (stage.losses.sparsity, stage.losses.opaque, stage.losses.orient) == (0.0, 0.0, 0.0)
    assert (stage.optimizer.kind, stage.optimizer.grid, stage.optimizer.network) == (
        "adamw",
        0.01,
        0.001,
    )


def test_the_pocket_preset_asks_for_the_same_method():
    published, ours = (load_scene(name).config for name in ("mvdream", "pocket-mvdream"))
    assert ours.prior.kind == "pocket_mv"
    for scene in (published, ours):
        guidance = scene.stages[0].guidance
        assert guidance.loss == published.stages[0].guidance.loss
        assert guidance.timesteps == published.stages[0].guidance.timesteps

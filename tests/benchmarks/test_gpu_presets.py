"""The measurement of the presets for large weights: what it runs, and what it makes of it."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from benchmarks.gpu import random_weights, run_presets
from benchmarks.gpu.run_presets import StageCost, markdown, measurements
from studio.config import load_scene

ROW = StageCost(
    preset="magic3d",
    stage="coarse",
    height=64,
    batch_size=1,
    preset_steps=10_000,
    counted_steps=30,
    compiling_steps=0,
    step_s=0.12,
    median_s=0.12,
    minutes=20.0,
    steps_gb=7.0,
    steps_reserved_gb=8.0,
    stage_gb=9.04,
    stage_reserved_gb=10.0,
    opacity=0.3,
    work={"samples": 1e5},
)


def scene(preset: str):
    """A preset as it is."""
    return load_scene(preset, ["prompt=a duck"]).config


@pytest.mark.parametrize("preset", run_presets.PRESETS)
def test_every_step_of_a_preset_is_stood_for_by_one_row(preset):
    config = scene(preset)
    found = measurements(config, 40)
    counted = {stage.name: 0 for stage in config.stages}
    for measurement in found:
        for name, steps in measurement.steps.items():
            counted[name] += steps
    assert counted == {stage.name: stage.steps for stage in config.stages}
    assert all(stage.steps == 40 for m in found for stage in m.scene.stages)


def test_a_later_image_size_is_a_run_of_its_own_that_ends_with_its_stage():
    first, later = measurements(scene("prolificdreamer"), 40)
    assert [stage.cameras.height for stage in first.scene.stages] == [64, 512, 512]
    assert first.steps == {"volume": 5000, "geometry": 15000, "texture": 30000}
    (volume,) = later.scene.stages
    assert (volume.cameras.height, volume.cameras.milestones) == (512, ())
    assert later.steps == {"volume": 20000}


def test_all_weights_that_the_presets_name_can_be_written():
    for preset in run_presets.PRESETS:
        text = json.dumps(dataclasses.asdict(scene(preset)), default=str)
        assert any(model in text for model in run_presets.MODELS)
    assert set(run_presets.MODELS.values()) == set(random_weights.MODELS)


@pytest.mark.parametrize(
    ("name", "billions"), [("sd21_base", 0.866), ("sd21", 0.866), ("sdxl_refiner", 2.260)]
)
def test_denoisers_have_their_full_size(name, billions):
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**random_weights.MODELS[name].unet)
    assert sum(p.numel() for p in unet.parameters()) / 1e9 == pytest.approx(billions, abs=1e-3)


def test_the_table_has_the_largest_memory_and_all_minutes_of_a_preset():
    mesh = dataclasses.replace(ROW, stage="mesh", stage_gb=None, steps_gb=12.0, minutes=15.4)
    lines = markdown([ROW, mesh], "H100").splitlines()
    assert lines[0] == "| `magic3d` | H100 | 12.0 | 35 |"
    assert lines[-1] == "| `magic3d` | mesh | 64 | 1 | 120 | 12.0 | 0.0 | 15 |"


def test_rows_of_other_presets_are_kept(tmp_path):
    path = tmp_path / "presets.json"
    path.write_text(json.dumps({"stages": [dataclasses.asdict(ROW)]}))
    assert run_presets.read_rows(path) == [ROW]
    assert run_presets.read_rows(tmp_path / "none.json") == []


@pytest.mark.slow
def test_the_smoke_run_measures_a_preset(tmp_path):
    path = tmp_path / "found.json"
    arguments = ["--work", str(tmp_path), "--out", str(path), "--smoke", "--steps", "4"]
    assert run_presets.main([*arguments, "--presets", "dreamfusion"]) == 0
    found = json.loads(path.read_text())
    (row,) = found["stages"]
    assert (row["preset"], row["stage"], row["preset_steps"]) == ("dreamfusion", "shape", 10_000)
    assert row["step_s"] > 0
    assert row["opacity"] > 0
    assert found["failures"] == []

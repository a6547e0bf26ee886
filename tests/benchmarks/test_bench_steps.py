"""The benchmark of whole steps: what it times, and that it runs."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.text_to_3d import bench_steps
from studio.config import load_scene
from studio.runner import Runner
from tests.studio.conftest import start, tiny_prior, tiny_scene  # noqa: F401 - fixtures


def test_a_part_within_another_one_is_counted_once(monkeypatch):
    times = iter([1.0, 3.0, 8.0, 9.0, 20.0, 20.5])
    monkeypatch.setattr(bench_steps, "clock", lambda: next(times))
    watch = bench_steps.Stopwatch()
    watch.begin("render")
    watch.begin("backward")
    watch.end()
    watch.end()
    watch.begin("encode")
    watch.end()
    found = {"render": 2.0 + 1.0, "backward": 5.0, "encode": 0.5}
    assert watch.seconds == dict.fromkeys(bench_steps.PARTS, 0.0) | found


def test_parts_add_up_to_the_step():
    parts = [dict.fromkeys(bench_steps.PARTS, 0.01), dict.fromkeys(bench_steps.PARTS, 0.03)]
    found = bench_steps.mean_parts([0.15, 0.17], parts)
    assert found == dict.fromkeys(bench_steps.PARTS, 20.0) | {"rest": 60.0}
    assert sum(found.values()) == pytest.approx(160.0)


def test_a_measured_run_is_the_run_it_measures_and_leaves_nothing_behind(tmp_path, tiny_scene):  # noqa: F811
    """With a critic, which has a backward pass and an optimiser of its own."""
    before, ends = (torch.autograd.backward, torch.autograd.grad), []
    for measured in (True, False):
        scene, run = start(tiny_scene, tmp_path / str(measured), "stages.0.guidance={kind: vsd}")
        runner = Runner(scene, run)
        if measured:
            speed = bench_steps.stage_speed(runner, "tiny")
        while runner.has_next():
            runner.step()
        ends.append(runner)
    watched, plain = (one.stage.parameters for one in ends)
    assert all(torch.equal(watched[name], value) for name, value in plain.items())
    assert set(speed.parts_ms) == {*bench_steps.PARTS, "rest"}
    assert all(ms > 0.0 for ms in speed.parts_ms.values())
    assert speed.denoiser_rows == 2 * (2 + 1 + 1)
    assert before == (torch.autograd.backward, torch.autograd.grad)
    renderer, prior = ends[0].stage.renderer, ends[0].prior
    assert not {"render", "update_occupancy"} & vars(renderer).keys()
    assert "encode_images" not in vars(prior)
    assert not prior.unet._forward_hooks
    assert not prior.unet._forward_pre_hooks


def test_every_measured_system_is_a_preset():
    for system in bench_steps.SYSTEMS:
        assert load_scene(system, ["prompt=a duck"]).config.stages


@pytest.mark.slow
def test_the_smoke_run_writes_speeds_and_ratios(tmp_path):
    path = tmp_path / "steps.json"
    assert bench_steps.main(["--smoke", "--device", "cpu", "--out", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["machine"].endswith("cores, cpu")
    assert [row["stage"] for row in found["speeds"]] == ["shape"]
    assert found["speeds"][0]["denoiser_rows"] == 8
    assert 0 < found["speeds"][0]["denoiser_ms"] <= found["speeds"][0]["step_ms"]
    assert set(found["speeds"][0]["parts_ms"]) == {*bench_steps.PARTS, "rest"}
    assert found["ratios"][0]["ratio"] > 0

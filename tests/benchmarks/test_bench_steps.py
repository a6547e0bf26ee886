"""The benchmark of whole steps: what it times, and that it runs."""

from __future__ import annotations

import json
import time

import pytest
import torch
from torch import nn

from benchmarks.text_to_3d import bench_steps
from studio.config import load_scene


class Sleeper(nn.Module):
    """A network that takes its time."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Wait a little."""
        time.sleep(0.01)
        return values


def test_the_stopwatch_counts_only_calls_inside():
    watch, network = bench_steps.Stopwatch(), Sleeper()
    network(torch.zeros(1))
    assert watch.seconds == 0.0
    with watch.on(network):
        network(torch.zeros(1))
        network(torch.zeros(1))
    counted = watch.seconds
    network(torch.zeros(1))
    assert counted == watch.seconds
    assert counted >= 0.02


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
    assert found["ratios"][0]["ratio"] > 0

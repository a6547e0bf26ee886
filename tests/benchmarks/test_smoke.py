"""Every benchmark runs, at sizes that mean nothing, and writes the same kind of file."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from benchmarks.common import arguments, interleaved_ratio, write_results

ROOT = Path(__file__).resolve().parents[2] / "benchmarks"
MODULES = sorted(
    ".".join(("benchmarks", *path.relative_to(ROOT).with_suffix("").parts))
    for path in ROOT.glob("*/bench_*.py")
)
ELSEWHERE = {"benchmarks.text_to_3d.bench_steps"}  # slower: in test_bench_steps.py
NAMES = {"ratios", "suite", "command", "machine", "commit", "packages", "threads"}


def test_all_benchmarks_are_known():
    """Those that `make bench` runs."""
    assert [name.rpartition(".")[2] for name in MODULES] == [
        *("bench_mesh", "bench_volume", "bench_steps"),
    ]


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ELSEWHERE])
def test_the_smoke_run_of_a_benchmark_writes_its_file(module, tmp_path):
    path = tmp_path / "found" / "result.json"
    arguments = ["--smoke", "--device", "cpu", "--out", str(path)]
    assert importlib.import_module(module).main(arguments) == 0
    found = json.loads(path.read_text())
    assert set(found) >= NAMES
    assert module.endswith(found["suite"])
    assert found["machine"].endswith("cores, cpu")
    assert found["ratios"]
    assert all(ratio["passed"] and ratio["ratio"] > 0 for ratio in found["ratios"])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_file_is_named_after_what_was_measured_whatever_else_there_is(
    device, tmp_path, monkeypatch
):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    monkeypatch.setattr("benchmarks.common.RESULTS", tmp_path / "results")
    path = write_results("mine", ratios=[], device=device)
    assert path == tmp_path / "results" / f"mine--{device}.json"
    assert write_results("mine", ratios=[], device=device, path=tmp_path / "a.b.json").exists()
    other = write_results("mine", ratios=[], device=device, path=tmp_path / "other")
    assert other == tmp_path / "other" / path.name
    assert json.loads(path.read_text())["machine"].endswith(device)


def test_all_benchmarks_have_the_same_options(tmp_path):
    """So that ARGS of `make bench` fit all of them."""
    found = arguments(["--smoke", "--out", str(tmp_path / "x"), "--device", "cpu"], about="A.\nB.")
    assert (found.smoke, found.out, found.device) == (True, tmp_path / "x", "cpu")
    found = arguments([], about=None)
    assert (found.smoke, found.out, found.device) == (False, None, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        arguments(["--device", "cuda"], about=None)
    assert "finds no GPU here - expected cpu" in capsys.readouterr().err


def test_two_variants_take_turns_and_a_missed_bar_is_told(capsys):
    calls = []
    found = interleaved_ratio(
        "x",
        baseline=lambda: calls.append("baseline"),
        ours=lambda: calls.append("ours"),
        bar=1e9,
        rounds=5,
        warmup=1,
    )
    assert calls == ["baseline", "ours"] * 6
    assert (found.rounds, found.passed) == (5, False)
    assert "MISSED" in capsys.readouterr().out

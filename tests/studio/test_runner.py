"""The optimisation loop with a tiny real prior: same bits whatever interrupts it, clear ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from studio.checkpoints import list_checkpoints, load_checkpoint, load_latest, save_checkpoint
from studio.errors import CheckpointError, Diverged
from studio.metrics_log import read_metrics
from studio.run_folder import RunFolder
from studio.runner import Runner
from studio.stages import load_stage
from tests.studio.conftest import start

ROOT = Path(__file__).parents[2]
VARIANTS = {
    "plain": [],
    "neural background, lit, oriented": [
        "stages.0.background.kind=neural",
        "stages.0.material.kind=diffuse",
        "stages.0.material.ambient_only_until=0.2",
        "stages.0.losses.orient=[[0,0],[1,10]]",
        "stages.0.losses.z_variance=1",
    ],
    "distance field, bands, perp-neg": [
        "stages.0.field.kind=hash_sdf",
        "stages.0.field.grid={n_levels: 3, log2_hashmap_size: 8, finest_resolution: 16}",
        "stages.0.field.bands={start_levels: 1, start_fraction: 0.1, end_fraction: 0.9}",
        "stages.0.losses.eikonal=0.1",
        "view_prompts.kind=perp_neg",
    ],
    "flow": [
        "stages.0.guidance={kind: dreamflow, timesteps: 3, critic: {rank: 2}}",
    ],
    "critic, particles": [
        "stages.0.guidance={kind: vsd, guidance_scale: 7.5, critic: {rank: 2, steps: 2}}",
        "stages.0.particles=2",
    ],
}


def run_to_the_end(scene, run: RunFolder) -> Path:
    """Optimise; returns the final checkpoint."""
    Runner(scene, run).optimise()
    return list_checkpoints(run.checkpoints_dir)[-1]


def assert_equal_bits(first: Path, second: Path) -> None:
    """The tensors of two checkpoints are the same files."""
    assert first.name == second.name
    for name in ("scene.safetensors", "optim.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize(
    "variant",
    [name if name == "plain" else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS],
    ids=lambda name: name.split(",")[0],
)
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(variant, tiny_scene, tmp_path):
    scene, whole = start(tiny_scene, tmp_path / "whole", *VARIANTS[variant])
    expected = run_to_the_end(scene, whole)
    _, parts = start(tiny_scene, tmp_path / "parts", *VARIANTS[variant])
    first = Runner(scene, parts)
    for _ in range(3):
        first.step()
    first.save()  # in the middle of everything: step 3 is no checkpoint of its own
    assert_equal_bits(expected, run_to_the_end(scene, parts))
    assert len(load_checkpoint(expected).scene) > 4


def test_second_stage_goes_on_with_the_first_and_resumes_across_it(tiny_scene, tmp_path):
    scene_file = tmp_path / "two.yaml"
    detail = """  - name: detail
    steps: 3
    field: {kind: previous}
    renderer: {samples_per_ray: 24, occupancy: {resolution: 16, update_every: 2}}
    background: {kind: random}
    cameras: {batch_size: 1, height: 16, width: 16, distance_range: [2.6, 3.2]}
export:"""
    text = tiny_scene.read_text(encoding="utf-8")
    scene_file.write_text(text.replace("export:", detail), encoding="utf-8")
    scene, whole = start(scene_file, tmp_path / "whole")
    expected = run_to_the_end(scene, whole)
    assert expected.name == "step-000009"
    assert load_checkpoint(expected).state["stage_name"] == "detail"
    _, parts = start(scene_file, tmp_path / "parts")
    for steps in (6, 2):  # stop exactly between the stages, then inside the second
        runner = Runner(scene, parts)
        for _ in range(steps):
            assert runner.has_next()
            runner.step()
        runner.save()
    assert_equal_bits(expected, run_to_the_end(scene, parts))


def test_previews_and_saving_do_not_change_the_result(tiny_scene, tmp_path):
    scene, quiet = start(tiny_scene, tmp_path / "quiet", "saving.checkpoint_every=100")
    busy_scene, busy = start(
        tiny_scene, tmp_path / "busy", "saving.preview_every=1", "saving.checkpoint_every=1"
    )
    assert_equal_bits(run_to_the_end(scene, quiet), run_to_the_end(busy_scene, busy))
    sheets = sorted(busy.previews_dir.glob("*.png"))
    assert len(sheets) == 6
    with Image.open(sheets[-1]) as image:
        assert image.size == (5 * 12 + 4 * 2, 4 * 12 + 3 * 2)
        assert json.loads(image.text["studio"])["prompt"] == "a red duck"
        assert image.text["parameters"].startswith("a red duck\n")


def test_other_seed_gives_another_result_and_metrics_are_complete(tiny_scene, tmp_path):
    scene, run = start(tiny_scene, tmp_path / "0")
    other_scene, other = start(tiny_scene, tmp_path / "1", "seed=1")
    first = load_checkpoint(run_to_the_end(scene, run)).scene
    second = load_checkpoint(run_to_the_end(other_scene, other)).scene
    assert not torch.equal(first["field.grid.table"], second["field.grid.table"])
    rows = read_metrics(run.metrics_path)
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(float(row["grad_norm"]) > 0 for row in rows)
    assert all(0.0 <= float(row["opacity"]) <= 1.0 for row in rows)
    info = run.read_info()
    assert info["steps_done"] == 6
    assert info["status"] == "optimised"
    assert info["seconds"]["optimise"] > 0
    assert "shape 6/6" in run.log_path.read_text()


def test_loaded_stage_renders_like_the_trained_one(tiny_scene, tmp_path):
    scene, run = start(tiny_scene, tmp_path)
    runner = Runner(scene, run)
    runner.optimise()
    loaded = load_stage(run)
    assert loaded.step == 6
    assert loaded.config == scene
    with torch.no_grad():
        expected = runner.stage.renderer.render(runner.preview_views)
        images = loaded.renderer.render(runner.preview_views)
    assert torch.equal(images.comp_rgb, expected.comp_rgb)
    assert torch.equal(images.depth, expected.depth)


def test_peak_memory_is_the_highest_of_all_processes(tiny_scene, tmp_path):
    """A run that was resumed for its last steps, or none, needed what the others needed."""
    scene, run = start(tiny_scene, tmp_path, "stages.0.steps=2")
    run_to_the_end(scene, run)
    assert 50e6 < run.read_info()["peak_memory_bytes"] < 1e12
    run.update_info({"peak_memory_bytes": 10**13})
    run_to_the_end(scene, run)
    assert run.read_info()["peak_memory_bytes"] == 10**13


def test_run_without_checkpoint_has_no_stage_to_load(tiny_scene, tmp_path):
    _, run = start(tiny_scene, tmp_path)
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        load_stage(run)


def test_checkpoint_of_another_scene_is_refused(tiny_scene, tmp_path):
    scene, run = start(tiny_scene, tmp_path / "a")
    run_to_the_end(scene, run)
    other, _ = start(tiny_scene, tmp_path / "b", "stages.0.field.hidden_width=16")
    with pytest.raises(CheckpointError, match="does not fit the scene"):
        Runner(other, run)


def test_damaged_checkpoint_is_skipped_and_the_run_still_ends_the_same(
    tiny_scene, tmp_path, capsys
):
    scene, run = start(tiny_scene, tmp_path)
    expected = (run_to_the_end(scene, run) / "scene.safetensors").read_bytes()
    damaged = list_checkpoints(run.checkpoints_dir)[-1] / "scene.safetensors"
    damaged.write_bytes(expected[:-8] + b"damaged!")
    again = run_to_the_end(scene, run)
    assert "Going back to step 4" in capsys.readouterr().err
    assert (again / "scene.safetensors").read_bytes() == expected


def test_injected_nan_is_named(tiny_scene, tmp_path):
    scene, run = start(tiny_scene, tmp_path)
    runner = Runner(scene, run)
    runner.step()
    runner.save()
    checkpoint = load_latest(run.checkpoints_dir, warn=pytest.fail)
    checkpoint.scene["field.grid.table"][3] = torch.nan
    save_checkpoint(run.checkpoints_dir, checkpoint)
    with pytest.raises(Diverged, match=r"of the tensor 'field\.grid\.table' are NaN"):
        Runner(scene, run).optimise()
    assert run.read_info()["status"] == "diverged"


def test_prior_that_always_overflows_is_named(tiny_prior, tiny_scene, tmp_path):
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", str(tiny_prior), str(broken)], check=True)
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_out.bias"] = torch.full_like(tensors["conv_out.bias"], torch.nan)
    save_file(tensors, weights)
    scene, run = start(tiny_scene, tmp_path, f"prior.path={broken}", "steps=30")
    with pytest.raises(Diverged, match="gradient of 'guidance' has"):
        Runner(scene, run).optimise()


def test_empty_scene_is_told(tiny_scene, tmp_path):
    overrides = ["stages.0.field.blob={kind: none, bias: -40}", "steps=100"]
    scene, run = start(tiny_scene, tmp_path, *overrides)
    with pytest.raises(Diverged, match="empty"):
        Runner(scene, run).optimise()


def test_runaway_learning_rate_is_told(tiny_scene, tmp_path):
    scene, run = start(tiny_scene, tmp_path, "stages.0.optimizer.grid=1e9", "steps=100")
    with pytest.raises(Diverged, match="Step"):
        Runner(scene, run).optimise()


def studio(*arguments: str) -> subprocess.Popen:
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "studio", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_step(out: Path, step: int) -> RunFolder:
    """Wait until a run below ``out`` has a checkpoint at ``step`` or later."""
    for _ in range(1200):
        found = [
            path for folder in out.glob("*/*/checkpoints") for path in list_checkpoints(folder)
        ]
        if any(int(path.name.split("-")[1]) >= step for path in found):
            return RunFolder(found[0].parent.parent)
        time.sleep(0.05)
    raise AssertionError(f"no checkpoint at step {step}")


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tiny_scene, tmp_path):
    process = studio("run", str(tiny_scene), "steps=4000", "--out", str(tmp_path))
    run = wait_for_step(tmp_path, 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.endswith(f"Continue with: studio run --resume {run.path}")
    info = run.read_info()
    assert info["status"] == "interrupted"
    done = load_latest(run.checkpoints_dir, warn=pytest.fail).step
    assert f"Stopped after step {done} of 4000" in last


@pytest.mark.slow
def test_killed_five_times_ends_with_the_same_bits(tiny_scene, tmp_path):
    steps = ["steps=40", "saving.checkpoint_every=3"]
    scene, whole = start(tiny_scene, tmp_path / "whole", *steps)
    expected = run_to_the_end(scene, whole)
    out = tmp_path / "killed"
    process = studio("run", str(tiny_scene), *steps, "--out", str(out))
    run = wait_for_step(out, 3)
    for trial in range(5):
        time.sleep(0.07 * trial)
        process.kill()
        process.communicate()
        reached = load_latest(run.checkpoints_dir, warn=pytest.fail).step
        if reached >= 36:
            break
        process = studio("run", "--resume", str(run.path))
        wait_for_step(out, reached + 3)
    else:
        process.kill()
        process.communicate()
    assert_equal_bits(expected, run_to_the_end(scene, run))


@pytest.mark.slow
def test_full_disk_keeps_the_last_checkpoint_and_the_run_resumes(tiny_scene, tmp_path):
    scene, run = start(tiny_scene, tmp_path)
    runner = Runner(scene, run)
    for _ in range(2):
        runner.step()
    runner.save()
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000));"
        "from studio.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "run", "--resume", str(run.path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "Cannot save a checkpoint in" in done.stderr
    assert "The run goes on." in done.stderr
    assert load_latest(run.checkpoints_dir, warn=pytest.fail).step == 2
    assert load_checkpoint(run_to_the_end(scene, run)).step == 6

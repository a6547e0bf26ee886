"""A tiny real prior and a tiny scene, for tests that run the whole loop."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.config import load_scene
from studio.configs import SceneConfig
from studio.run_folder import RunFolder, create_run, write_atomic
from tests.tiny_models import write_pipeline

TINY = """
prompt: a red duck
device: cpu
stages:
  - name: shape
    steps: 6
    field:
      kind: hash_volume
      grid: {n_levels: 3, log2_hashmap_size: 8, base_resolution: 4, finest_resolution: 16}
      hidden_width: 8
      heads: joint
    renderer:
      samples_per_ray: 24
      eval_samples_per_ray: 24
      occupancy: {resolution: 12, update_every: 2, warmup_steps: 3}
    background: {kind: random}
    cameras: {batch_size: 2, height: 12, width: 12, distance_range: [2.6, 3.2]}
    guidance: {guidance_scale: 7.0, timesteps: {max_t: [[0, 0.98], [1, 0.5]]}}
    losses: {sparsity: 0.5, opaque: [[0, 0], [1, 3]]}
export: {resolution: 16, search_resolution: 12, max_faces: 400, texture_size: 64, film_frames: 3,
  film_size: 32}
saving: {checkpoint_every: 2, preview_every: 0, preview_size: 12}
"""


@pytest.fixture(scope="session")
def tiny_prior(tmp_path_factory) -> Path:
    """Folder of a stock pipeline with random weights, fixed by a seed."""
    return write_pipeline(tmp_path_factory.mktemp("prior") / "pocket", "pocket")


@pytest.fixture(scope="session")
def tiny_scene(tmp_path_factory, tiny_prior) -> Path:
    """A scene file that uses it."""
    path = tmp_path_factory.mktemp("scenes") / "tiny.yaml"
    path.write_text(TINY + f"prior: {{kind: pocket, path: {tiny_prior}}}\n", encoding="utf-8")
    return path


def start(scene_file: Path, out: Path, *overrides: str) -> tuple[SceneConfig, RunFolder]:
    """A new run folder for the scene."""
    from studio.config import dump_yaml

    scene = load_scene(scene_file, overrides).config
    run = create_run(out, prompt=scene.prompt, method="tiny", seed=scene.seed, info={})
    write_atomic(run.resolved_path, dump_yaml(scene))
    return scene, run


@contextlib.contextmanager
def disk_full_at(size: int) -> Iterator[None]:
    """Writes beyond so many bytes of a file fail, as on a full disk; the system's own limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)

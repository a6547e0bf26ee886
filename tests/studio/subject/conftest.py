"""A tiny subject: noisy photos, a tiny real prior, and a scene with every preparation in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

STAGE = """
    renderer:
      samples_per_ray: 24
      eval_samples_per_ray: 24
      occupancy: {resolution: 12, update_every: 2, warmup_steps: 3}
    background: {kind: random}
    cameras: {batch_size: 2, height: 12, width: 12, distance_range: [2.6, 3.2]}
    guidance: {guidance_scale: 7.0}"""
SCENE = f"""
task: dreambooth3d
prompt: a {{}}
device: cpu
subject:
  word: duck
  template: a {{}}
  partial_steps: 2
  training:
    kind: dreambooth
    batch: {{size: 2}}
    class_images: {{count: 2, sampler: {{steps: 2}}}}
    loop: {{steps: 3, learning_rate: 1e-3, save_every: 1}}
  views: {{count: 5, elevations_deg: [0.0, 30.0], sampler: {{steps: 4, guidance_scale: 3.0}}}}
  second_training: {{loop: {{steps: 3, learning_rate: 1e-3, save_every: 1}}}}
  reconstruction: {{size: 16, scales: 2}}
  samples: {{steps: 2}}
stages:
  - name: shape
    steps: 3
    subject: {{weights: partial}}
    field:
      kind: hash_volume
      grid: {{n_levels: 3, log2_hashmap_size: 8, base_resolution: 4, finest_resolution: 16}}
      hidden_width: 8
      heads: joint{STAGE}
  - name: refine
    steps: 2
    subject: {{weights: multiview}}
    field: {{kind: previous}}
    losses: {{reconstruction: 10.0}}{STAGE}
saving: {{checkpoint_every: 2, preview_every: 0, preview_size: 12}}
"""
LORA = (
    "subject.training={kind: dreambooth_lora, batch: {size: 2}, lora: {rank: 2}, "
    "loop: {steps: 3, learning_rate: 1e-2}}"
)
DCO = (
    "subject.training={kind: dco, batch: {size: 2}, lora: {rank: 2}, "
    "loop: {steps: 3, learning_rate: 1e-2}}"
)


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A folder of three photos of unequal sizes."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for index, size in enumerate([(40, 50, 3), (36, 36, 3), (64, 48, 3)]):
        pixels = rng.integers(0, 255, size, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def subject_scene(tmp_path_factory, tiny_prior, photos) -> Path:
    """A scene file with all of DreamBooth-to-3D at its smallest."""
    path = tmp_path_factory.mktemp("subjects") / "tiny.yaml"
    text = SCENE.replace("  word: duck", f"  word: duck\n  images: {photos}")
    path.write_text(text + f"prior: {{kind: pocket, path: {tiny_prior}}}\n", encoding="utf-8")
    return path

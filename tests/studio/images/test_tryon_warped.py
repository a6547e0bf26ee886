"""Try-on scenes with LaDI-VTON and StableVITON: runs with tiny models, and what they need."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from image_tools.diffusion.loading import load_folder
from tests.image_tools.tryon.people import person_keypoints
from tests.image_tools.tryon.tiny_idm import SIZE as TINY
from tests.image_tools.tryon.tiny_ladi import tiny_ladi, write_ladi
from tests.image_tools.tryon.tiny_viton import tiny_viton, write_viton
from tests.studio.images.conftest import read
from tests.studio.images.test_try_on import GARMENT, run, same_outside, save, save_mask
from tests.tiny_models import write_pipeline


@pytest.fixture(scope="module")
def sd1(tmp_path_factory) -> Path:
    """A tiny Stable Diffusion."""
    return write_pipeline(tmp_path_factory.mktemp("pipelines") / "sd1", "sd1")


@pytest.fixture
def tiny_scene(tmp_path, sd1) -> dict:
    """Settings of a scene with a tiny prior and all that is known of a person."""
    height, width = TINY
    points = person_keypoints() * np.array([width, height, 0.9])
    numbers = {"people": [{"pose_keypoints_2d": points.ravel().tolist()}]}
    (tmp_path / "keypoints.json").write_text(json.dumps(numbers))
    body = {
        "keypoints": str(tmp_path / "keypoints.json"),
        "densepose": save(tmp_path / "densepose.png", TINY, seed=2),
    }
    return {
        "task": "try_on",
        "prompt": "a person in a red shirt",
        "prior": {"kind": "diffusers", "model": str(sd1)},
        "sampler": {"steps": 2, "guidance_scale": 2.0},
        "size": [height, width],
        "count": 1,
        "person": save(tmp_path / "person.png", TINY),
        "mask": save_mask(tmp_path / "mask.png", TINY),
        "garments": [{**GARMENT, "image": save(tmp_path / "shirt.png", TINY, seed=1)}],
        "body": body,
    }


def test_ladi_vton_dresses_inside_of_the_mask_alone(studio, tmp_path, tiny_scene, sd1):
    prior = load_folder(sd1, torch.device("cpu"))
    method = asdict(write_ladi(tiny_ladi(prior), tmp_path))
    done = run(studio, tmp_path, tiny_scene | {"method": method})
    assert same_outside(read(done, "person-s0"), read(done, "dressed-s0"))


def test_stable_viton_dresses_inside_of_the_mask_alone(studio, tmp_path, tiny_scene, sd1):
    prior = load_folder(sd1, torch.device("cpu"))
    method = asdict(write_viton(tiny_viton(prior), tmp_path / "model"))
    done = run(studio, tmp_path, tiny_scene | {"method": method})
    assert same_outside(read(done, "person-s0"), read(done, "dressed-s0"))
    leaking = {**method, "start": "person"}
    other = run(studio, tmp_path, tiny_scene | {"method": leaking})
    assert not np.array_equal(read(done, "dressed-s0"), read(other, "dressed-s0"))

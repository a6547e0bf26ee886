"""Conditions that networks find in photographs, and poses from files: read, drawn, and refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from image_tools.control.pose_images import openpose_points, pose_image
from image_tools.errors import WeightsMissing
from image_tools.vision.poses import MoveNetPoses
from scenes.wardrobe.samples import PairConfig, draw_pairs
from studio.config import load_task
from studio.errors import ConfigError
from studio.images.adapters import named_adapters
from studio.images.method_configs import (
    PoseConditionConfig,
    PoseFileConditionConfig,
    SoftEdgeConditionConfig,
)
from studio.images.reading import picture_paths, read_condition
from tests.image_tools.control.tiny_controls import tiny_controlnet
from tests.image_tools.vision.test_hed import tiny_hed
from tests.studio.images.conftest import SIZE, write_picture

KEY = "method.nets.0.condition"


def write_pose(path: Path, points: list[tuple[float, float]], people: int = 1) -> str:
    """OpenPose's JSON of people whose first points are these, and whose others are not seen."""
    row = [*(v for x, y in points for v in (x, y, 0.9)), *[0.0] * 3 * (18 - len(points))]
    path.write_text(json.dumps({"people": [{"pose_keypoints_2d": row}] * people}))
    return str(path)


@pytest.fixture(scope="module")
def person(tmp_path_factory) -> str:
    """A picture of a person, from head to foot, on a square."""
    pairs = draw_pairs(PairConfig(height=192, other=False), split="test", first=5, count=1)
    pixels = (pairs.worn.rgb[0].numpy() * 255).astype(np.uint8)
    canvas = Image.new("RGB", (192, 192))
    canvas.paste(Image.fromarray(pixels), (24, 0))
    path = tmp_path_factory.mktemp("people") / "person.png"
    canvas.save(path)
    return str(path)


def test_a_pose_is_that_of_the_photograph_at_the_priors_size(person):
    drawn = read_condition(PoseConditionConfig(person), KEY, size=64)
    assert drawn.shape == (1, 64, 64, 3)
    photo = torch.from_numpy(np.asarray(Image.open(person)).copy()).float() / 255.0
    people = openpose_points(MoveNetPoses().pose(photo)[None], min_score=0.3)
    assert int(people[0, :, 2].sum()) == 18
    assert float((drawn[0] - pose_image(people, (64, 64))).abs().mean()) < 0.01


def test_a_photograph_without_a_person_is_refused(tmp_path):
    path = write_picture(tmp_path / "photo.png")
    with pytest.raises(ConfigError, match=rf"{KEY}\.path: nobody is seen in .*min_score, 0\.9"):
        read_condition(PoseConditionConfig(path, min_score=0.9), KEY, size=64)


def test_points_of_a_file_are_cut_or_padded_as_photographs_are(tmp_path):
    """Of 200 x 100 pixels the middle hundred columns remain, or a hundred rows are added."""
    path = write_pose(tmp_path / "pose.json", [(99.5, 49.5), (124.5, 24.5)])
    red, orange = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 85 / 255, 0.0])
    for fit, second in {"crop": (384, 128), "pad": (320, 192)}.items():
        drawn = read_condition(PoseFileConditionConfig(path, 200, 100, fit=fit), KEY, size=512)[0]
        for (column, row), color in (((256, 256), red), (second, orange)):
            torch.testing.assert_close(drawn[row, column], color, atol=1e-3, rtol=0)
        assert int((drawn.amax(dim=-1) > 0.9).sum()) < 150, "nothing else in full colour"


def test_everybody_in_a_file_is_drawn(tmp_path):
    path = tmp_path / "pose.json"
    rows = [[x, 50.0, 1.0, *[0.0] * 51] for x in (20.0, 80.0)]
    path.write_text(json.dumps({"people": [{"pose_keypoints_2d": row} for row in rows]}))
    drawn = read_condition(PoseFileConditionConfig(str(path), 100, 100), KEY, size=100)[0]
    assert drawn[50, 20, 0] == drawn[50, 80, 0] == 1.0
    assert drawn[50, 50].sum() == 0.0


def test_soft_edges_are_the_networks_at_the_priors_size(tmp_path):
    photo, weights = write_picture(tmp_path / "photo.png"), tmp_path / "hed.safetensors"
    config = SoftEdgeConditionConfig(photo, str(weights))
    with pytest.raises(WeightsMissing, match="edge network are missing"):
        read_condition(config, KEY, size=48)
    save_file(tiny_hed().state_dict(), weights)
    drawn = read_condition(config, KEY, size=48)
    assert drawn.shape == (1, 48, 48, 3)
    assert 0.0 <= float(drawn.min()) < float(drawn.max()) <= 1.0


def control(condition: dict) -> dict:
    net = {"weights": "net", "condition": condition}
    return {"task": "control_image", "method": {"kind": "controlnet", "nets": [net]}}


def test_a_pose_file_steers_a_run(studio, scene, prior, tmp_path):
    tiny_controlnet(prior).save_pretrained(tmp_path / "net")
    pose = write_pose(tmp_path / "pose.json", [(20.0, 20.0), (40.0, 44.0), (60.0, 20.0)])
    condition = {"kind": "pose_file", "path": pose, "width": 80, "height": 80}
    done = studio("run", scene(**control(condition)), "--out", "runs")
    assert done.code == 0
    (sheet,) = Path("runs").glob("*/*/images/condition1.png")
    assert np.asarray(Image.open(sheet)).max() > 50
    rows = json.loads((sheet.parents[1] / "results.json").read_text())["pictures"]
    assert "pose of pose.json" in [row["caption"] for row in rows]
    assert rows[-1]["difference"] > 0.0


def test_absent_files_are_told_before_a_run(studio, scene, tmp_path):
    photo = write_picture(tmp_path / "photo.png", size=(SIZE, SIZE))
    cases = {
        f"{KEY}.path: Keypoints in 'pose.json' cannot be read": (
            {"kind": "pose_file", "path": "pose.json", "width": 8, "height": 8},
            2,
        ),
        f"{KEY}.path: The image 'nobody.png'": ({"kind": "pose", "path": "nobody.png"}, 2),
        f"Weights for the {KEY}.weights are missing: 'hed.safetensors'": (
            {"kind": "soft_edge", "path": photo, "weights": "hed.safetensors"},
            3,
        ),
    }
    for words, (condition, code) in cases.items():
        done = studio("run", scene(**control(condition)))
        assert words in done.error
        assert done.code == code
    assert not Path("runs").exists()


def test_a_pose_file_is_no_picture_and_an_edge_network_an_adapter(scene):
    pose = {"kind": "pose_file", "path": "pose.json", "width": 8, "height": 8}
    config = load_task(scene(**control(pose)), []).config
    assert list(picture_paths(config)) == []
    edges = {"kind": "soft_edge", "path": "photo.png", "weights": "hed.safetensors"}
    config = load_task(scene(**control(edges)), []).config
    assert (f"{KEY}.weights", "hed.safetensors") in list(named_adapters(config))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (lambda: PoseConditionConfig("x", min_score=2.0), r"min_score is 2\.0 - expected 0 to 1"),
        (lambda: PoseFileConditionConfig("x", 0, 8), "width 0, height 8 - expected 1 or more"),
    ],
)
def test_settings_without_meaning_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        settings()

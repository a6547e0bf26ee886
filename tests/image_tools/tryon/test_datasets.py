"""Try-on data sets as they are published, a person of each drawn by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from image_tools.tryon.datasets import read_dress_code, read_viton_hd
from image_tools.tryon.masks import BodyMaps
from image_tools.tryon.masks_configs import MaskConfig
from image_tools.tryon.pose_maps import part_colors
from renderers.errors import StudioError
from tests.image_tools.tryon.people import SIZE, person_keypoints, person_maps

ATR_TO_LIP = {0: 0, 2: 2, 4: 5, 6: 9, 9: 18, 10: 19, 11: 13, 14: 14, 15: 15}
NECK = (slice(28, 34), slice(44, 52))  # rows and columns
NECK_LIP, DRESS_LIP = 10, 6
PEOPLE_WIDTH = 45.0


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def body() -> BodyMaps:
    return person_maps()


@pytest.fixture
def dress_code(body, tmp_path) -> Path:
    """One person in a top: a blue square on grey, DensePose as numbers."""
    folder = tmp_path / "upper_body"
    product, inside = np.full((*SIZE, 3), 200), np.zeros(SIZE)
    product[40:80, 30:60], inside[40:80, 30:60] = (20, 40, 250), 255
    save(folder / "images/000001_0.jpg", np.full((*SIZE, 3), 90))
    save(folder / "images/000001_1.jpg", product)
    save(folder / "masks/000001_1.png", inside)
    save(folder / "label_maps/000001_4.png", body.parse)
    save(folder / "dense/000001_5.png", body.parts)
    rows = [[x * 384.0, y * 512.0, 1.0, k] for k, (x, y, _) in enumerate(person_keypoints())]
    rows[4][:2] = [0.0, 0.0]
    (folder / "keypoints").mkdir()
    (folder / "keypoints/000001_2.json").write_text(
        json.dumps({"keypoints": np.array(rows).tolist()})
    )
    (folder / "train_pairs.txt").write_text("000001_0.jpg\t000001_1.jpg\n")
    return tmp_path


@pytest.fixture
def viton_hd(body, tmp_path) -> Path:
    """One person in what the labels call a dress, with a bare neck, and without a mask."""
    folder = tmp_path / "test"
    lip = np.vectorize(ATR_TO_LIP.get)(body.parse)
    lip[lip == 5] = DRESS_LIP
    lip[NECK] = NECK_LIP
    for name in ("image", "cloth", "cloth-mask"):
        save(folder / name / "a.jpg", np.full((*SIZE, 3), 90))
    save(folder / "image-parse-v3/a.png", lip)
    colors = (255 * part_colors(torch.from_numpy(body.parts)[None])[0]).round().numpy()
    save(folder / "image-densepose/a.jpg", colors)
    points = np.insert(person_keypoints() * (SIZE[1], SIZE[0], 0.9), 8, 0.0, axis=0)
    numbers = np.concatenate([points, np.zeros((6, 3))]).ravel().tolist()
    (folder / "openpose_json").mkdir()
    told = {"people": [{"pose_keypoints_2d": numbers}]}
    (folder / "openpose_json/a_keypoints.json").write_text(json.dumps(told))
    (tmp_path / "test_pairs.txt").write_text("a.jpg a.jpg\n")
    return tmp_path


def read_upper(root: Path, masks: MaskConfig | None = None):
    return read_dress_code(root, "train", categories=["upper_body"], size=SIZE, masks=masks)


def test_dress_codes_part_numbers_are_painted(dress_code, body) -> None:
    sample = read_upper(dress_code).sample([0])
    assert torch.equal(sample.densepose, part_colors(torch.from_numpy(body.parts)[None]))
    made = read_upper(dress_code, MaskConfig("cat_vton", "tight")).sample([0])
    assert bool((made.mask[made.worn_mask > 0] > 0).all())


def test_dress_codes_products_are_on_white(dress_code) -> None:
    garment = read_upper(dress_code).sample([0]).garments[0]
    outside = (garment.masks == 0.0).expand_as(garment.images)
    assert bool((garment.images[outside] == 1.0).all())
    middle = garment.images[0, 60, 45] * 255.0
    assert (middle - torch.tensor([20.0, 40.0, 250.0])).abs().max() < 12.0  # JPEG


def test_dress_codes_keypoints_are_in_a_frame_of_their_own(dress_code) -> None:
    found = read_upper(dress_code).sample([0]).keypoints[0]
    wanted = torch.from_numpy(person_keypoints())
    known = torch.arange(18) != 4
    assert torch.allclose(found[known], wanted[known], atol=1e-6)
    assert found[4].tolist() == [0.0, 0.0, 0.0]
    path = dress_code / "upper_body/keypoints/000001_2.json"
    for content in ("{}", json.dumps({"keypoints": [[1.0, 2.0]]}), "not json"):
        path.write_text(content)
        with pytest.raises(StudioError, match=r"000001_2\.json' cannot be read .* 18 rows of x"):
            read_upper(dress_code).sample([0])


def test_dress_codes_neck_is_painted_anew_though_its_labels_call_it_face(dress_code, body) -> None:
    parse = body.parse.copy()
    parse[34:44, 44:52] = 11
    save(dress_code / "upper_body/label_maps/000001_4.png", parse)
    masks = MaskConfig("viton_hd", "tight", PEOPLE_WIDTH)
    mask = read_upper(dress_code, masks).sample([0]).mask[0, ..., 0] > 0
    assert bool(mask[34:44, 44:52].all())
    assert not bool(mask[:31][torch.from_numpy(parse[:31] == 11)].any())


def test_viton_hds_neck_is_painted_anew_and_its_face_is_not(viton_hd, body) -> None:
    """In its labels the neck has a number of its own, which the classes of ATR do not have."""
    masks = MaskConfig("viton_hd", "tight", PEOPLE_WIDTH)
    sample = read_viton_hd(viton_hd, "test", size=SIZE, masks=masks).sample([0])
    mask = sample.mask[0, ..., 0] > 0
    assert bool(mask[NECK][-2:].all())
    above = torch.from_numpy(body.labelled("face"))
    above[NECK] = False
    assert not bool(mask[above].any())
    worn = torch.from_numpy(body.labelled("upper"))
    worn[NECK] = False
    assert torch.equal(sample.worn_mask[0, ..., 0] > 0, worn)


def test_colours_in_the_place_of_labels_are_told(viton_hd) -> None:
    save(viton_hd / "test/image-parse-v3/a.png", np.zeros((*SIZE, 3)))
    with pytest.raises(StudioError, match=r"a\.png' has colours - expected a number"):
        read_viton_hd(viton_hd, "test", size=SIZE).sample([0])


@pytest.mark.parametrize("content", [b"a.jpg a.jpg\n\na.jpg\n", b"\xff\xfe\x00"])
def test_a_damaged_list_of_pairs_is_told_by_name(viton_hd, content) -> None:
    (viton_hd / "test_pairs.txt").write_bytes(content)
    said = r"test_pairs\.txt' (is 'a\.jpg' - expected two files|cannot be read)"
    with pytest.raises(StudioError, match=said):
        read_viton_hd(viton_hd, "test", size=SIZE)


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        '{"data": [{"file_name": "a.jpg"}]}',
        '{"data": [{"file_name": "a.jpg", "tag_info": [{"tag_name": "item"}]}]}',
        '{"data": [{"file_name": "a.jpg", "tag_info": 3}]}',
    ],
)
def test_damaged_words_of_products_are_told_by_name(viton_hd, content) -> None:
    (viton_hd / "test/vitonhd_test_tagged.json").write_text(content)
    with pytest.raises(
        StudioError, match=r"tagged\.json' cannot be read .* all products are called 'shirts'"
    ):
        read_viton_hd(viton_hd, "test", size=SIZE)


@pytest.mark.parametrize("tagged", [None, "another.jpg", "a.jpg"])
def test_tops_without_words_are_shirts(viton_hd, tagged) -> None:
    """As in IDM-VTON's training; a product that is not in its file has no words."""
    tags = [{"tag_name": "item", "tag_category": "blouse"}]
    if tagged is not None:
        told = {"data": [{"file_name": tagged, "tag_info": tags}]}
        (viton_hd / "test/vitonhd_test_tagged.json").write_text(json.dumps(told))
    sample = read_viton_hd(viton_hd, "test", size=SIZE).sample([0])
    wanted = "blouse" if tagged == "a.jpg" else "shirts"
    assert sample.garments[0].captions == sample.captions == (wanted,)

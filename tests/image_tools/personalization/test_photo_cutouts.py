"""Photos on white: by their own transparency, or by what they share."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from image_tools.personalization.photo_cutouts import on_plain
from image_tools.personalization.photos import load_photos
from image_tools.personalization.photos_configs import PhotosConfig
from image_tools.vision.cutout_configs import CutoutConfig

SIZE = 32
CUT = PhotosConfig(cutout=CutoutConfig(size=64))
FRAMED = PhotosConfig(cutout=CutoutConfig(size=64, fill=0.75))


def write_photo(path: Path, ground: str, box: tuple[int, int, int, int]) -> None:
    image = Image.new("RGB", (128, 128), ground)
    ImageDraw.Draw(image).ellipse(box, fill="red")
    image.save(path)


def write_three(folder: Path) -> None:
    for k, ground in enumerate(("navy", "khaki", "teal")):
        write_photo(folder / f"{k}.png", ground, (40 + 4 * k, 40, 80 + 4 * k, 80))


def test_surroundings_become_white_and_the_mask_tells_where(tmp_path):
    write_three(tmp_path)
    photos = load_photos(tmp_path, size=SIZE, config=CUT)
    assert photos.images.shape == (3, SIZE, SIZE, 3)
    corners = photos.images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert torch.allclose(corners, torch.ones_like(corners))
    middle = photos.images[0, 15, 15]
    assert torch.allclose(middle, torch.tensor([1.0, 0.0, 0.0]), atol=0.03)
    assert abs(float(photos.masks[0].mean()) - np.pi * 20**2 / 128**2) < 0.01


def test_a_subject_is_framed_in_the_middle(tmp_path):
    write_three(tmp_path)
    masks = load_photos(tmp_path, size=SIZE, config=FRAMED).masks > 0.5
    for mask in masks:
        rows, columns = mask.nonzero(as_tuple=True)
        for places in (rows, columns):
            assert abs(int(places.max() - places.min()) + 1 - 0.75 * SIZE) <= 2
            assert abs(float(places.float().mean()) - (SIZE - 1) / 2) < 1


def test_each_photo_gets_a_ground_that_the_subject_does_not_have(tmp_path):
    write_three(tmp_path)
    cutout = CutoutConfig(size=64, fill=0.75, ground="colors")
    photos = load_photos(tmp_path, size=SIZE, config=PhotosConfig(cutout=cutout))
    grounds = photos.images[:, 0, 0]
    assert torch.allclose(photos.images[:, -1, -1], grounds, atol=1e-3)
    red = torch.tensor([1.0, 0.0, 0.0])
    assert float((grounds - red).norm(dim=1).min()) > 0.4
    assert float(torch.pdist(grounds).min()) > 0.02
    again = load_photos(tmp_path, size=SIZE, config=PhotosConfig(cutout=cutout))
    assert torch.equal(again.images, photos.images)


def test_transparency_of_a_photo_is_taken_as_it_is(tmp_path):
    """The square is what its maker cut out, whatever its colours say."""
    image = np.zeros((64, 64, 4), np.uint8)
    image[16:48, 16:48, 3] = 255
    image[16:48, 16:32, :3] = 255
    Image.fromarray(image).save(tmp_path / "cut.png")
    write_three(tmp_path)
    photos = load_photos(tmp_path, size=SIZE, config=CUT)
    mask = photos.masks[[path.name for path in photos.paths].index("cut.png")]
    inside = torch.zeros(SIZE, SIZE)
    inside[8:24, 8:24] = 1.0
    assert torch.allclose(mask, inside, atol=0.2)  # the bicubic filter swings at an edge


def test_a_photo_of_nothing_is_left_out_where_others_remain(tmp_path, caplog):
    write_three(tmp_path)
    Image.new("RGB", (64, 64), "gray").save(tmp_path / "grey.png")
    with caplog.at_level(logging.WARNING):
        photos = load_photos(tmp_path, size=SIZE, config=CUT)
    assert "grey.png' could not be told from its surroundings, and the photo is left out" in (
        caplog.text
    )
    assert [path.name for path in photos.paths] == ["0.png", "1.png", "2.png"]
    assert len(photos.images) == len(photos.masks) == 3
    assert [item.path.name for item in photos.skipped] == ["grey.png"]


def test_a_photo_of_nothing_stays_as_it_is_with_a_warning(tmp_path, caplog):
    Image.new("RGB", (64, 64), "gray").save(tmp_path / "grey.png")
    with caplog.at_level(logging.WARNING):
        photos = load_photos(tmp_path, size=SIZE, config=CUT)
    assert "stays as it is, like all others" in caplog.text
    grey = torch.full_like(photos.images, 128 / 255)
    assert torch.allclose(photos.images, grey, atol=1e-3)


def test_without_a_cutout_nothing_changes(tmp_path):
    write_three(tmp_path)
    photos = load_photos(tmp_path, size=SIZE)
    assert photos.masks is None
    assert float(photos.images[0, 0, 0, 2]) > 0.4


@pytest.mark.parametrize("ground", ["white", "colors"])
def test_grounds_are_those_around_the_subject(ground):
    steps = torch.linspace(-1, 1, 64)
    disc = (steps[:, None] ** 2 + steps[None] ** 2 < 0.3)[None, ..., None]
    around = torch.tensor([[0.2, 0.3, 0.9], [0.1, 0.8, 0.2]])[:, None, None]
    images = torch.where(disc, torch.tensor([0.9, 0.1, 0.1]), around)
    images = torch.cat([images, torch.full((1, 64, 64, 3), 0.4)])  # in the last one is nothing
    plain = on_plain(images, torch.ones(3, 64, 64), CutoutConfig(size=64, ground=ground), size=64)
    assert plain.is_found.tolist() == [True, True, False]
    torch.testing.assert_close(plain.images[:, 0, 0], plain.grounds, atol=0.01, rtol=0)
    torch.testing.assert_close(plain.grounds[2], torch.full((3,), 0.4))
    if ground == "white":
        assert torch.equal(plain.grounds[:2], torch.ones(2, 3))

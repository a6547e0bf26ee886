"""Random views, view sets and subject photos of the shipped pack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from renderers.cameras import orbit_cameras
from scenes.objects.errors import UnknownObject
from scenes.objects.pack import default_pack
from scenes.objects.samples import ObjectSampleConfig, ObjectSampler
from scenes.objects.subjects import (
    SUBJECTS,
    subject_photos,
    true_mesh,
    true_views,
    write_subject_set,
)
from scenes.toybox.captions import view_word

SMALL = ObjectSampleConfig(image_size=24, supersample=2)


def test_samples_depend_on_the_generator_alone() -> None:
    one, other = (ObjectSampler(SMALL).sample(np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(one.rgb, other.rgb)
    assert one.caption == other.caption


def test_samples_are_captioned_images_with_their_truth() -> None:
    sampler, rng = ObjectSampler(SMALL), np.random.default_rng(0)
    for _ in range(15):
        sample = sampler.sample(rng)
        info = default_pack().info(sample.name)
        assert sample.rgb.shape == (24, 24, 3)
        assert 0.0 <= sample.rgb.min() <= sample.rgb.max() <= 1.0
        assert sample.mask.max() > 0.2
        assert info.noun in sample.caption
        assert info.split == "train"
        assert sample.view == view_word(sample.azimuth_deg, sample.elevation_deg)
        if sample.color is not None:
            assert info.recolor


@pytest.mark.parametrize("split", ["train", "held_out", "subject"])
def test_every_split_draws_its_own_objects_only(split: str) -> None:
    sampler = ObjectSampler(ObjectSampleConfig(image_size=8, supersample=1, split=split))
    rng = np.random.default_rng(1)
    names = {sampler.sample(rng).name for _ in range(12)}
    assert names <= set(default_pack().names(split))
    assert len(names) > 6


def test_painted_objects_say_their_colour() -> None:
    config = ObjectSampleConfig(image_size=16, supersample=2, recolor=1.0, caption_view=0.0)
    sampler, rng = ObjectSampler(config), np.random.default_rng(3)
    told = [(s.color, s.caption) for s in (sampler.sample(rng) for _ in range(25)) if s.color]
    assert len(told) >= 5
    assert np.mean([color in text for color, text in told]) > 0.5


def test_a_view_set_is_one_object_from_around() -> None:
    views = ObjectSampler(SMALL).view_set(np.random.default_rng(5), 4)
    assert views.rgb.shape == (4, 24, 24, 3)
    assert default_pack().info(views.name).noun in views.caption
    assert "view" not in views.caption
    assert np.allclose(np.diff(np.unwrap(np.deg2rad(views.cameras.azimuth_deg.numpy()))), np.pi / 2)
    assert np.ptp(views.cameras.elevation_deg.numpy()) == 0


@pytest.mark.parametrize("name", SUBJECTS)
def test_photos_show_the_subject_from_different_sides(name: str) -> None:
    photos = subject_photos(name, image_size=32)
    assert len(photos) == 5
    azimuth = [float(photo.camera.azimuth_deg[0]) for photo in photos]
    assert np.all(np.diff(azimuth) > 0)
    for photo in photos:
        assert 0.06 < photo.mask.mean() < 0.7
        border = np.concatenate(
            [photo.mask[0], photo.mask[-1], photo.mask[:, 0], photo.mask[:, -1]]
        )
        assert border.mean() < 0.1  # nearly all of the subject is in the picture
    corners = np.array([photo.rgb[0, 0] for photo in photos])
    assert np.ptp(corners, axis=0).max() > 0.15  # other rooms


def test_photos_repeat_and_seeds_differ() -> None:
    one, again, other = (subject_photos("dog", count=1, image_size=24, seed=s) for s in (0, 0, 1))
    assert np.array_equal(one[0].rgb, again[0].rgb)
    assert not np.array_equal(one[0].rgb, other[0].rgb)


def test_a_subject_set_is_a_folder_of_pictures(tmp_path: Path) -> None:
    paths = write_subject_set("cat", tmp_path / "photos", count=2, image_size=24)
    assert [p.name for p in paths] == ["cat-0.png", "cat-1.png"]
    photo = subject_photos("cat", count=2, image_size=24)[1].rgb
    assert np.abs(np.asarray(Image.open(paths[1])) / 255 - photo).max() <= 0.5 / 255 + 1e-6


def test_the_truth_is_kept_for_scoring() -> None:
    assert true_mesh("dog").n_faces > 500
    cameras = orbit_cameras(2, elevation_deg=10, distance=3, fovy_deg=36, height=24, width=24)
    rgb, mask = true_views("dog", cameras)
    assert rgb.shape == (2, 24, 24, 3)
    assert np.allclose(rgb[mask == 0], 1.0)


def test_what_is_no_subject_is_refused() -> None:
    with pytest.raises(UnknownObject, match=r"'armchair' is no subject, expected one of dog, cat"):
        subject_photos("armchair")

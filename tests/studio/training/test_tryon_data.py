"""Pairs of the wardrobe kept for trainers, and as folders that the data sets' readers open."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from image_tools.tryon.datasets import read_dress_code, read_viton_hd
from image_tools.tryon.masks_configs import MaskConfig
from image_tools.tryon.pose_maps import part_colors
from renderers.errors import StudioError
from scenes.wardrobe.garments import DRESS, LOWER, UPPER
from scenes.wardrobe.samples import PairConfig, Pairs, draw_pairs
from studio.errors import ConfigError
from studio.training.tryon_data import StoreConfig, draw_store, samples_of
from studio.training.tryon_folders import write_dress_code, write_viton_hd

SIZE = (64, 48)
CONFIG = PairConfig(height=SIZE[0], supersample=1)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    drawn = draw_pairs(CONFIG, split="train", first=8, count=6)
    assert set(drawn.wardrobe.target.tolist()) == {UPPER, LOWER, DRESS}
    return drawn


@pytest.fixture(scope="module")
def viton(pairs, tmp_path_factory):
    root = tmp_path_factory.mktemp("viton-hd")
    write_viton_hd(root, {"test": pairs})
    return root


@pytest.fixture(scope="module")
def dress_code(pairs, tmp_path_factory):
    root = tmp_path_factory.mktemp("dress-code")
    write_dress_code(root, {"train": pairs, "test": pairs})
    return root


def test_kept_pairs_are_the_drawn_ones(pairs) -> None:
    store = samples_of(pairs)
    sample = store.sample([2, 0])
    assert sample.person.shape == (2, *SIZE, 3)
    assert (sample.person - pairs.worn.rgb[[2, 0]]).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(sample.mask[..., 0] > 0, pairs.mask[[2, 0]])
    assert torch.equal(sample.worn_mask[..., 0] > 0, pairs.worn_mask[[2, 0]])
    assert torch.equal(sample.parse, pairs.worn.atr[[2, 0]])
    assert torch.equal(sample.densepose, part_colors(pairs.worn.densepose[[2, 0]]))
    assert sample.captions == (pairs.captions[2], pairs.captions[0])
    points = sample.keypoints[0, 0] * torch.tensor([SIZE[1], SIZE[0], 1.0])
    assert torch.allclose(points, pairs.worn.keypoints[2, 0], atol=1e-4)


def test_unpaired_samples_come_with_their_truth(pairs) -> None:
    sample, truth = samples_of(pairs).unpaired([1, 3])
    assert sample.worn_mask is None
    assert (truth - pairs.worn_other.rgb[[1, 3]]).abs().max() <= 0.5 / 255 + 1e-6
    assert (sample.garments[0].images - pairs.product_other[[1, 3]]).abs().max() < 0.5 / 255 + 1e-6


def test_a_store_is_drawn_once_and_read_as_it_was(tmp_path) -> None:
    path, config = tmp_path / "pairs.safetensors", StoreConfig(pairs=3, height=32, category=UPPER)
    first = draw_store(path, config)
    written = path.read_bytes()
    again = draw_store(path, config)
    assert path.read_bytes() == written
    assert again.captions == first.captions
    assert all(torch.equal(again.tensors[n], t) for n, t in first.tensors.items())
    drawn = samples_of(
        draw_pairs(PairConfig(32, category=UPPER, other=False), split="train", first=1, count=1)
    )
    assert torch.equal(first.tensors["product"][1], drawn.tensors["product"][0])
    assert (first.tensors["person"][1].int() - drawn.tensors["person"][0].int()).abs().max() <= 1
    with pytest.raises(ConfigError, match="holds other pairs"):
        draw_store(path, replace(config, pairs=2))


def test_batches_depend_on_the_generator_alone(pairs) -> None:
    batches = samples_of(pairs).batches(4)
    one, two = (batches(k, torch.Generator().manual_seed(9)) for k in (0, 5))
    assert torch.equal(one.person, two.person)
    other = batches(0, torch.Generator().manual_seed(10))
    assert not torch.equal(one.person, other.person)


def test_viton_hd_is_read_as_it_was_drawn(pairs, viton) -> None:
    rows = (pairs.wardrobe.target == UPPER).nonzero()[:, 0]
    data = read_viton_hd(viton, "test", size=SIZE)
    sample = data.sample(range(len(data)))
    assert len(data) == len(rows)
    assert torch.equal(sample.mask[..., 0] > 0, pairs.mask[rows])
    assert (sample.person - pairs.worn.rgb[rows]).abs().mean() < 0.01  # JPEG
    assert (sample.garments[0].images - pairs.product[rows]).abs().mean() < 0.01
    assert torch.equal(sample.garments[0].masks[..., 0] > 0, pairs.product_mask[rows] > 0.5)
    # ATR has no neck of its own and no hands apart from arms.
    assert torch.equal(sample.parse, pairs.worn.atr[rows])
    assert torch.equal(sample.worn_mask[..., 0] > 0, torch.isin(sample.parse, torch.tensor([4])))
    known = samples_of(pairs).sample(rows).keypoints
    # OpenPose's readers take points in the first pixel for unknown.
    both = (sample.keypoints[..., 2] > 0) & (known[..., 2] > 0)
    assert int(both.sum()) >= 0.9 * float(known[..., 2].sum())
    assert torch.allclose(sample.keypoints[both], known[both], atol=1e-3)
    assert all(item.endswith("top") for item in sample.captions)


def test_unpaired_tests_take_the_lists_second_column(pairs, viton) -> None:
    rows = (pairs.wardrobe.target == UPPER).nonzero()[:, 0]
    sample = read_viton_hd(viton, "test", size=SIZE, paired=False).sample([0])
    assert (sample.garments[0].images[0] - pairs.product_other[rows[0]]).abs().mean() < 0.01
    assert sample.worn_mask is None
    assert (viton / "test/truth/00000_00.jpg").is_file()


def test_dress_code_is_read_as_it_was_drawn(pairs, dress_code) -> None:
    data = read_dress_code(dress_code, "train", size=SIZE)
    order = [k for c in (UPPER, LOWER, DRESS) for k in (pairs.wardrobe.target == c).nonzero()[:, 0]]
    sample = data.sample(range(len(data)))
    rows = torch.stack(order)
    assert torch.equal(sample.parse, pairs.worn.atr[rows])
    assert torch.equal(sample.densepose, part_colors(pairs.worn.densepose[rows]))
    assert sample.captions == tuple(pairs.captions[k] for k in rows.tolist())
    assert sample.garments[0].categories == tuple(
        ("upper", "lower", "dress")[int(pairs.wardrobe.target[k])] for k in rows
    )
    known = samples_of(pairs).sample(rows).keypoints
    assert torch.allclose(sample.keypoints, known, atol=1e-3)
    with np.load(dress_code / "upper_body/dense/000000_5_uv.npz") as file:
        assert file["uv"].shape == (2, *SIZE)


def test_masks_are_made_where_a_data_set_has_none(dress_code) -> None:
    made = read_dress_code(
        dress_code, "test", categories=["upper_body"], size=SIZE, masks=MaskConfig("viton_hd")
    ).sample([0])
    covered = made.mask * made.worn_mask
    assert float(covered.sum() / made.worn_mask.sum()) > 0.9
    assert float(made.mask.mean()) < 0.8


def test_pictures_are_brought_to_the_size_asked_for(viton) -> None:
    sample = read_viton_hd(viton, "test", size=(32, 24)).sample([0])
    assert sample.size == (32, 24)
    assert set(sample.mask.unique().tolist()) <= {0.0, 1.0}


def test_an_absent_list_or_picture_is_named(viton, tmp_path) -> None:
    with pytest.raises(StudioError, match=r"test_pairs\.txt' is missing"):
        read_viton_hd(tmp_path, "test")
    (viton / "test/image-parse-v3/00000_00.png").rename(tmp_path / "away.png")
    try:
        with pytest.raises(StudioError, match="cannot be read as a picture"):
            read_viton_hd(viton, "test", size=SIZE).sample([0])
    finally:
        (tmp_path / "away.png").rename(viton / "test/image-parse-v3/00000_00.png")

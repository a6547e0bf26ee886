"""Pairs of one's own: all seeds of all edits, copied once and trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from image_tools.diffusion.loading import load_folder
from image_tools.editing.edit_pair_folders import (
    EditCaptions,
    PairImages,
    write_edit_pairs,
    write_seed_list,
)
from image_tools.pocket.paths import POCKET_FOLDER
from studio.errors import ConfigError
from studio.training.adapters_edit import EditRecipe, make_pairs
from studio.training.pairs_own import copy_pairs


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Two edits, one of them with two seeds; images of one colour each."""
    root = tmp_path / "own"
    for number, (said, seeds) in enumerate((("make it dark", (1, 2)), ("brighten it", (5,)))):
        pairs = [
            PairImages(seed, torch.stack([torch.full((40, 48, 3), x) for x in (0.6, 0.1 * seed)]))
            for seed in seeds
        ]
        write_edit_pairs(root, number, EditCaptions("", said, ""), pairs)
    write_seed_list(root)
    return root


def test_every_seed_is_a_pair_and_is_copied_once(own, tmp_path):
    logs: list[str] = []
    for _ in range(2):
        pairs = copy_pairs(tmp_path / "copies", own, size=16, log=logs.append)
        assert pairs.captions == ["make it dark"] * 4 + ["brighten it"] * 2
        found = np.array(pairs.images).mean((1, 2, 3)) / 255.0
        assert found == pytest.approx([0.6, 0.1, 0.6, 0.2, 0.6, 0.5], abs=0.01)
    assert logs == ["pairs 3/3"]
    write_edit_pairs(own, 2, EditCaptions("", "x", ""), [PairImages(1, torch.zeros(2, 8, 8, 3))])
    write_seed_list(own)
    with pytest.raises(ConfigError, match="holds pairs of other settings"):
        copy_pairs(tmp_path / "copies", own, size=16, log=logs.append)


def test_an_edit_model_is_taught_by_them_alone(own, tmp_path):
    prior, work = load_folder(POCKET_FOLDER, torch.device("cpu")), tmp_path / "work"
    data = make_pairs(EditRecipe(), work, prior, POCKET_FOLDER, log=lambda _: None, own=own)
    assert len(data) == 3
    before, after, text = data.batch(np.array([0, 2]), np.array([False, True]))
    assert before.shape == after.shape == (2, 4, 16, 16)
    assert (before[0] - after[0]).abs().max() > 0.1
    assert not torch.equal(text.tokens[0], text.tokens[1])
    assert not (work / "pairs").exists()

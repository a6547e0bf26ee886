"""Preview pictures: whole in the eyes of whoever reads them."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from studio.errors import StorageError
from studio.previews import save_png
from tests.studio.conftest import disk_full_at


def test_a_picture_that_cannot_be_written_leaves_the_old_one_whole(tmp_path):
    """A live page reads a preview at any moment, so there must never be half of one."""
    path = tmp_path / "step-000002.png"
    save_png(path, torch.zeros(8, 8, 3), {"Step": 1})
    noise = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    with disk_full_at(1000), pytest.raises(StorageError, match=r"Cannot write .*step-000002\.png"):
        save_png(path, noise, {"Step": 2})
    assert list(tmp_path.iterdir()) == [path]
    with Image.open(path) as image:
        image.load()
        assert '"Step": 1' in image.text["studio"]


def test_a_new_picture_appears_whole_or_not_at_all(tmp_path):
    noise = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    with disk_full_at(1000), pytest.raises(StorageError):
        save_png(tmp_path / "previews" / "step-000002.png", noise)
    assert list((tmp_path / "previews").iterdir()) == []

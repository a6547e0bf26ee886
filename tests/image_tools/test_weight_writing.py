"""Written weights: readable like any file of the user's, and the system's own errors."""

from __future__ import annotations

import os
import stat

import pytest
import torch
from safetensors.torch import load_file

from image_tools.diffusion.weight_writing import save_tensors, write_safetensors


@pytest.fixture(params=[0o022, 0o027], ids=oct)
def mask(request):
    """The user's umask, which says for whom new files are."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize("write", [save_tensors, write_safetensors])
def test_files_are_open_to_whom_the_umask_says(write, mask, tmp_path):
    write(tmp_path / "a.safetensors", {"x": torch.ones(3, 2).T}, {"note": "1"})
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert torch.equal(load_file(path)["x"], torch.ones(2, 3))


def test_what_cannot_be_written_is_the_systems_error_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.safetensors"
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_safetensors(path, {"x": torch.zeros(1)})
    assert [one.name for one in tmp_path.iterdir()] == ["a.safetensors"]

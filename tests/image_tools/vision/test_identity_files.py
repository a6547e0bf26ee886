"""Face embeddings from files, and what is said where insightface or its models are not there."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from image_tools.errors import UnsafeWeights, UnsupportedModel, WeightsMissing
from image_tools.vision.identity_files import (
    check_identity,
    read_identity,
    read_raw_identity,
)
from image_tools.vision.insight_faces import InsightFaceAnalyzer, bgr_bytes, find_pack
from renderers.errors import BackendMissing

ROWS = np.stack([np.arange(8.0), np.arange(8.0) + 2.0]).astype(np.float32)


def test_embeddings_of_several_photos_are_averaged(tmp_path):
    np.save(tmp_path / "one.npy", ROWS[0])
    np.save(tmp_path / "two.npy", ROWS)
    save_file(
        {"embedding": torch.tensor(ROWS), "bbox": torch.zeros(4)}, tmp_path / "two.safetensors"
    )
    save_file({"anything": torch.tensor(ROWS[1])}, tmp_path / "one.safetensors")
    assert read_identity(tmp_path / "one.npy", width=8).tolist() == ROWS[0].tolist()
    for name in ("two.npy", "two.safetensors"):
        assert read_identity(tmp_path / name, width=8).tolist() == (ROWS[0] + 1.0).tolist()
    assert read_identity(tmp_path / "one.safetensors", width=8).tolist() == ROWS[1].tolist()


def test_embeddings_of_another_network_are_refused(tmp_path):
    np.save(tmp_path / "one.npy", ROWS[0])
    with pytest.raises(
        UnsupportedModel, match=r"one.npy' has 8 numbers - expected 512.*insightface"
    ):
        read_identity(tmp_path / "one.npy", width=512)
    with pytest.raises(
        UnsupportedModel, match=r"has 8 numbers - expected 64. Use the face analyser"
    ):
        read_identity(tmp_path / "one.npy", width=64)
    with pytest.raises(UnsupportedModel, match="of the photo has values that are no numbers"):
        check_identity(torch.tensor([1.0, float("nan")]), width=2, source="the photo")


def test_files_that_hold_no_embedding_are_refused(tmp_path):
    with pytest.raises(WeightsMissing, match=r"me.npy' is not there"):
        read_identity(tmp_path / "me.npy", width=8)
    (tmp_path / "me.npy").write_bytes(b"\x93NUMPY cut off")
    with pytest.raises(WeightsMissing, match=r"me.npy' cannot be read"):
        read_identity(tmp_path / "me.npy", width=8)
    np.save(tmp_path / "unsafe.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UnsafeWeights, match=r"unsafe.npy' is pickled"):
        read_identity(tmp_path / "unsafe.npy", width=8)
    (tmp_path / "me.txt").write_text("0 1 2")
    with pytest.raises(WeightsMissing, match=r"is in 'me.txt'. Expected a .npy or .safetensors"):
        read_identity(tmp_path / "me.txt", width=8)
    save_file({"a": torch.zeros(8), "b": torch.zeros(8)}, tmp_path / "me.safetensors")
    with pytest.raises(WeightsMissing, match=r"2 tensors \(a, b\) and none is called embedding"):
        read_identity(tmp_path / "me.safetensors", width=8)


def test_tools_of_raw_embeddings_tell_of_a_normed_one(tmp_path, caplog):
    raw = np.linspace(-2.0, 3.0, 8, dtype=np.float32)
    normed = raw / np.linalg.norm(raw)
    np.save(tmp_path / "raw.npy", raw)
    np.save(tmp_path / "normed.npy", np.stack([normed, normed]))
    with caplog.at_level("WARNING"):
        assert torch.equal(read_raw_identity(tmp_path / "raw.npy", width=8), torch.tensor(raw))
        assert not caplog.records
        read = read_raw_identity(tmp_path / "normed.npy", width=8)
    torch.testing.assert_close(read, torch.tensor(normed))
    assert "normed.npy' has length 1.00, so it was normed" in caplog.text


def test_insightface_gets_bytes_with_blue_first():
    image = torch.tensor([[[1.0, 0.5, 0.0], [-1.0, 0.0, 2.0]]])
    assert bgr_bytes(image).tolist() == [[[0, 128, 255], [255, 0, 0]]]


@pytest.mark.skipif(
    importlib.util.find_spec("insightface") is not None, reason="insightface is installed"
)
def test_without_insightface_it_says_how_to_get_it():
    with pytest.raises(
        BackendMissing,
        match=r"its models buffalo_l in '~/.insightface/models/buffalo_l': pip install insightface",
    ):
        InsightFaceAnalyzer(pack="buffalo_l")


def test_packs_that_are_absent_or_one_folder_too_deep_are_refused(tmp_path):
    with pytest.raises(WeightsMissing, match=r"no .onnx file in '.*antelopev2'"):
        find_pack(str(tmp_path), "antelopev2")
    folder = tmp_path / "models" / "antelopev2"
    (folder / "antelopev2").mkdir(parents=True)
    (folder / "antelopev2" / "glintr100.onnx").touch()
    with pytest.raises(WeightsMissing, match="one folder higher"):
        find_pack(str(tmp_path), "antelopev2")
    (folder / "glintr100.onnx").touch()
    assert find_pack(str(tmp_path), "antelopev2") == folder

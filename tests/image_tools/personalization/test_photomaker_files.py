"""PhotoMaker's files: both kinds and versions there and back, old LoRA names, refusals."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from image_tools.diffusion.lora_deltas import LoraDelta, LoraFile
from image_tools.errors import UnsafeWeights, UnsupportedModel, WeightsMissing
from image_tools.personalization.photomaker_encoder import FaceShape, IdEncoderShape, new_id_encoder
from image_tools.personalization.photomaker_files import (
    PhotoMakerFile,
    encoder_shape,
    read_photomaker,
    write_photomaker,
)
from tests.image_tools.personalization.tiny_photomakers import (
    faces_of,
    portraits,
    tiny_encoder,
)
from tests.image_tools.random_loras import same_changes

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


def lora(alpha=3.0):
    generator = torch.Generator().manual_seed(4)
    deltas = {
        f"{LAYER}.{name}": LoraDelta(
            torch.randn(2, 16, generator=generator), torch.randn(16, 2, generator=generator), alpha
        )
        for name in ("to_q", "to_k", "to_v", "to_out.0")
    }
    return LoraFile({"unet": deltas}, layers_per_block=1)


@pytest.fixture(params=["v1", "v2"])
def maker(request):
    return PhotoMakerFile(tiny_encoder(request.param), lora())


@pytest.mark.parametrize("name", ["maker.safetensors", "maker.bin"])
def test_files_come_back_as_they_were(maker, tmp_path, name):
    write_photomaker(tmp_path / name, maker)
    again = read_photomaker(tmp_path / name)
    assert again.encoder.version == maker.encoder.version
    mine, theirs = maker.encoder.state_dict(), again.encoder.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert same_changes(maker.lora, again.lora)
    assert all(delta.alpha == delta.rank for _, _, delta in again.lora.deltas())
    assert again.encoder.shape == maker.encoder.shape
    images, faces = portraits(), faces_of()
    with torch.no_grad():
        rows = [each.encoder.identify(images, faces) for each in (maker, again)]
    assert torch.equal(*rows)
    assert not any(parameter.requires_grad for parameter in again.encoder.parameters())


def test_the_layout_is_the_public_one(maker, tmp_path):
    write_photomaker(tmp_path / "maker.bin", maker)
    content = torch.load(tmp_path / "maker.bin", weights_only=True)
    assert list(content) == ["id_encoder", "lora_weights"]
    has_reader = any(key.startswith("qformer_perceiver.") for key in content["id_encoder"])
    assert has_reader == (maker.encoder.version == "v2")
    assert f"unet.{LAYER}.to_q.lora.down.weight" in content["lora_weights"]
    write_photomaker(tmp_path / "maker.safetensors", maker)
    flat = load_file(tmp_path / "maker.safetensors")
    assert {key.partition(".")[0] for key in flat} == set(content)
    for part, tensors in content.items():
        assert all(torch.equal(flat[f"{part}.{key}"], tensor) for key, tensor in tensors.items())


def test_old_names_of_loras_and_a_buffer_of_old_clips_are_understood(maker, tmp_path):
    """As the public files have them: LoRA in attention processors, numbers of patches stored."""
    write_photomaker(tmp_path / "new.bin", maker)
    content = torch.load(tmp_path / "new.bin", weights_only=True)
    old = {
        re.sub(r"\.to_(q|k|v|out)(\.0)?\.lora\.", r".processor.to_\1_lora.", key): tensor
        for key, tensor in content["lora_weights"].items()
    }
    assert f"unet.{LAYER}.processor.to_out_lora.up.weight" in old
    places = torch.arange(5)[None]
    encoder = {**content["id_encoder"], "vision_model.embeddings.position_ids": places}
    halves = {key: t.half() if t.is_floating_point() else t for key, t in encoder.items()}
    torch.save({"lora_weights": old, "id_encoder": halves}, tmp_path / "old.bin")
    again = read_photomaker(tmp_path / "old.bin")
    assert same_changes(maker.lora, again.lora)
    assert all(t.dtype == torch.float32 for t in again.encoder.state_dict().values())


@pytest.mark.parametrize("face", [None, FaceShape()])
def test_sizes_of_the_public_files_are_read_off_their_tensors(face):
    with torch.device("meta"):
        tensors = new_id_encoder(IdEncoderShape(face=face)).state_dict()
    assert encoder_shape(tensors) == IdEncoderShape(face=face)


def test_other_files_are_refused(maker, tmp_path):
    with pytest.raises(WeightsMissing, match="no file"):
        read_photomaker(tmp_path / "absent.bin")
    save_file({"image_proj.latents": torch.zeros(1)}, tmp_path / "ip.safetensors")
    with pytest.raises(UnsupportedModel, match=r"has no id_encoder\.\*"):
        read_photomaker(tmp_path / "ip.safetensors")
    torch.save({"id_encoder": {}, "lora_weights": {}}, tmp_path / "empty.bin")
    with pytest.raises(UnsupportedModel, match=r"has no id_encoder\.\*"):
        read_photomaker(tmp_path / "empty.bin")
    (tmp_path / "broken.bin").write_bytes(b"no archive")
    with pytest.raises(WeightsMissing):
        read_photomaker(tmp_path / "broken.bin")


def test_pickles_with_more_than_tensors_are_not_opened(tmp_path):
    torch.save({"id_encoder": re.compile("x"), "lora_weights": {}}, tmp_path / "evil.bin")
    with pytest.raises(UnsafeWeights, match="could run code"):
        read_photomaker(tmp_path / "evil.bin")


def test_incomplete_encoders_are_named(maker, tmp_path):
    write_photomaker(tmp_path / "maker.safetensors", maker)
    tensors = load_file(tmp_path / "maker.safetensors")
    del tensors["id_encoder.fuse_module.mlp1.fc1.bias"]
    save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(UnsupportedModel, match=r"fuse_module.mlp1.fc1.bias \(absent"):
        read_photomaker(tmp_path / "part.safetensors")
    del tensors["id_encoder.visual_projection_2.weight"]
    save_file(tensors, tmp_path / "less.safetensors")
    with pytest.raises(WeightsMissing, match="visual_projection_2"):
        read_photomaker(tmp_path / "less.safetensors")

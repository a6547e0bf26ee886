"""Uni-ControlNet's files by the authors' names: at full size without storage, and tiny."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file

from image_tools.control.uni_adapters import GlobalAdapter, LocalAdapter
from image_tools.control.uni_configs import GlobalAdapterSettings, LocalAdapterSettings
from image_tools.control.uni_weights import (
    local_from_original,
    local_to_original,
    read_uni,
    write_uni,
)
from image_tools.errors import UnsafeWeights, UnsupportedModel, WeightsMissing
from tests.image_tools.control.tiny_controls import tiny_global_adapter, tiny_local_adapter
from tests.image_tools.personalization.subjects import load_tiny

SD15 = {"attention_head_dim": 8, "cross_attention_dim": 768}
FDN_BLOCKS = {1: (320, 320, 192), 4: (320, 640, 256), 7: (640, 1280, 384), 10: (1280, 1280, 512)}


@cache
def full_size() -> tuple[LocalAdapter, GlobalAdapter]:
    """Adapters of the published size, without storage."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15)
        return (
            LocalAdapter(unet.config, LocalAdapterSettings()),
            GlobalAdapter(GlobalAdapterSettings()),
        )


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_tiny(tiny_pipelines, "sd1")


@pytest.fixture
def file(prior, tmp_path):
    """A file with tiny adapters."""
    write_uni(tmp_path / "uni.safetensors", tiny_local_adapter(prior), tiny_global_adapter(prior))
    return tmp_path / "uni.safetensors"


def test_the_adapters_have_the_published_sizes():
    local, content = (model.state_dict() for model in full_size())
    assert (len(local), len(content)) == (366, 12)
    assert sum(t.numel() for t in local.values()) == pytest.approx(411.9e6, rel=2e-4)
    assert sum(t.numel() for t in content.values()) == pytest.approx(47.2e6, rel=2e-3)


def test_full_size_names_come_back_whole():
    local = full_size()[0]
    exported = local_to_original(local.state_dict(), local.unet_config)
    assert len(exported) == 366
    returned = local_from_original(exported, local.unet_config)
    expected = {n: t.shape for n, t in local.state_dict().items()}
    assert {n: t.shape for n, t in returned.items()} == expected


def test_full_size_names_and_shapes_are_the_published_ones():
    local, content = full_size()
    exported = local_to_original(local.state_dict(), local.unet_config)
    shapes = {k.removeprefix("local_adapter."): tuple(t.shape) for k, t in exported.items()}
    for block, (inner, outer, features) in FDN_BLOCKS.items():
        name = f"input_blocks.{block}.0"
        assert shapes[f"{name}.norm_in.conv_gamma.weight"] == (inner, features, 3, 3)
        assert shapes[f"{name}.norm_out.conv_beta.weight"] == (outer, features, 3, 3)
        assert shapes[f"{name}.in_layers.2.weight"] == (outer, inner, 3, 3)
        assert shapes[f"{name}.out_layers.3.bias"] == (outer,)
        assert f"{name}.in_layers.0.weight" not in shapes
    assert shapes["feature_extractor.pre_extractor.0.weight"] == (32, 21, 3, 3)
    assert shapes["feature_extractor.pre_extractor.8.weight"] == (128, 128, 3, 3)
    assert shapes["feature_extractor.extractors.3.0.weight"] == (512, 384, 3, 3)
    assert shapes["feature_extractor.zero_convs.0.weight"] == (192, 192, 3, 3)
    assert shapes["zero_convs.11.0.weight"] == (1280, 1280, 1, 1)
    assert shapes["input_blocks.2.0.in_layers.0.weight"] == (320,)
    assert "middle_block.1.transformer_blocks.0.attn2.to_k.weight" in shapes
    assert not any(re.search(r"down_blocks|controlnet", name) for name in shapes)
    wide = {n: tuple(t.shape) for n, t in content.state_dict().items()}
    assert wide["ff1.net.0.proj.weight"] == (6144, 768)
    assert wide["ff2.net.2.weight"] == (3072, 6144)


def test_unaltered_blocks_have_the_stock_converters_names():
    """Without its own normalisations and the maps' convolutions it is a ControlNet's encoder."""
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    local = full_size()[0]
    exported = local_to_original(local.state_dict(), local.unet_config)
    bare = {k.removeprefix("local_adapter."): t for k, t in exported.items()}
    changed = re.compile(r"feature_extractor|.*\.norm_(in|out)\.")
    kept = {k: t for k, t in bare.items() if not changed.match(k)}
    converted = convert_controlnet_checkpoint(kept, {"layers_per_block": 2})
    ours = {n: t.shape for n, t in local.state_dict().items()}
    known = {n: t.shape for n, t in converted.items() if t is not None}
    assert {n: ours.get(n) for n in known} == known
    assert len(known) == len(kept)


def test_files_come_back_with_their_settings(prior, file):
    local, content = read_uni(file, prior.unet)
    assert local.settings == tiny_local_adapter(prior).settings
    assert content.settings.tokens == 4
    for read, written in (
        (local, tiny_local_adapter(prior)),
        (content, tiny_global_adapter(prior)),
    ):
        assert not read.training
        state = read.state_dict()
        assert all(torch.equal(t, state[name]) for name, t in written.state_dict().items())
    write_uni(file, None, content)
    assert read_uni(file, prior.unet)[0] is None


def test_a_whole_checkpoint_gives_its_adapters(prior, tmp_path):
    """A file of the authors' has no settings: theirs are assumed."""
    content = GlobalAdapter(GlobalAdapterSettings())
    tensors = {f"global_adapter.{k}": t for k, t in content.state_dict().items()}
    tensors["model.diffusion_model.out.2.bias"] = torch.ones(4)
    save_file(tensors, tmp_path / "uni.safetensors")
    torch.save({"state_dict": tensors}, tmp_path / "uni.ckpt")
    for name in ("uni.safetensors", "uni.ckpt"):
        local, read = read_uni(tmp_path / name, prior.unet, torch.bfloat16)
        assert local is None
        weight = read.ff1.net[2].weight
        assert torch.equal(weight, content.ff1.net[2].weight.bfloat16())


def test_wrong_files_are_refused(tiny_pipelines, prior, file, tmp_path):
    torch.save({"a": re.compile}, tmp_path / "uni.ckpt")
    with pytest.raises(UnsafeWeights, match="holds more than tensors"):
        read_uni(tmp_path / "uni.ckpt", prior.unet)
    with pytest.raises(WeightsMissing, match="no file"):
        read_uni(tmp_path / "nowhere.safetensors", prior.unet)
    save_file({"other": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsMissing, match=r"neither local_adapter.\* nor"):
        read_uni(tmp_path / "other.safetensors", prior.unet)
    tensors = load_file(file)
    bad = {**tensors, "local_adapter.output_blocks.0": torch.ones(1)}
    with pytest.raises(UnsupportedModel, match=r"1 tensors belong nowhere .* output_blocks.0"):
        local_from_original(bad, prior.unet.config)
    save_file(tensors, tmp_path / "no_settings.safetensors")
    with pytest.raises(UnsupportedModel, match=r"2 levels, .* level_widths"):
        read_uni(tmp_path / "no_settings.safetensors", prior.unet)
    del tensors["local_adapter.middle_block_out.0.bias"]
    settings = tiny_local_adapter(prior)
    write_uni(tmp_path / "part.safetensors", settings, None)
    part = load_file(tmp_path / "part.safetensors")
    del part["local_adapter.middle_block_out.0.bias"]
    metadata = {"local_adapter": _settings_of(file)}
    save_file(part, tmp_path / "part.safetensors", metadata=metadata)
    with pytest.raises(UnsupportedModel, match=r"in 1 tensors: controlnet_mid_block.bias \(absent"):
        read_uni(tmp_path / "part.safetensors", prior.unet)


def _settings_of(file) -> str:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return opened.metadata()["local_adapter"]


def test_a_slim_global_adapter_comes_back_as_slim(prior, tmp_path):
    """Its width inside is a setting of the file; the authors' factor is 4."""
    settings = GlobalAdapterSettings(width=24, tokens=2, expansion=0.25)
    content = GlobalAdapter(settings).eval()
    assert content.ff1.net[2].weight.shape == (48, 6)
    assert content.ff2.net[2].weight.shape == (48, 12)
    write_uni(tmp_path / "slim.safetensors", None, content)
    _, read = read_uni(tmp_path / "slim.safetensors", prior.unet)
    looks = torch.rand(2, 24)
    assert read.settings == settings
    assert torch.equal(read(looks), content(looks))
    with pytest.raises(ValueError, match=r"expansion 0.01 of width 24 - expected at least one"):
        GlobalAdapterSettings(width=24, expansion=0.01)

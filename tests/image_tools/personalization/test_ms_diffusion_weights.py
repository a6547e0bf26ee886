"""MS-Diffusion's files: at full size without storage, tiny round trips, and what is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from image_tools.errors import UnsafeWeights, UnsupportedModel, WeightsMissing
from image_tools.personalization.ms_diffusion import MSAdapter
from image_tools.personalization.ms_diffusion_configs import MSShape
from image_tools.personalization.ms_diffusion_weights import (
    read_ms_adapter,
    shape_of,
    write_ms_adapter,
)
from tests.image_tools.personalization.subjects import load_tiny
from tests.image_tools.personalization.tiny_subjects import tiny_adapter
from tests.image_tools.published_unets import SETTINGS

RESAMPLER = {
    "grounding_latents": (1, 16, 1280),
    "latent_proj.0.weight": (1664, 832),
    "latent_proj.0.bias": (1664,),
    "latent_proj.2.weight": (20480, 1664),
    "latent_proj.2.bias": (20480,),
    "latent_norm.weight": (1280,),
    "latent_norm.bias": (1280,),
    "proj_in.weight": (1280, 1664),
    "proj_in.bias": (1280,),
    "attention_norm.weight": (1280,),
    "attention_norm.bias": (1280,),
    "proj_out.weight": (2048, 1280),
    "proj_out.bias": (2048,),
    "norm_out.weight": (2048,),
    "norm_out.bias": (2048,),
}
LAYER = {
    "0.norm1.weight": (1280,),
    "0.norm1.bias": (1280,),
    "0.norm2.weight": (1280,),
    "0.norm2.bias": (1280,),
    "0.to_q.weight": (1280, 1280),
    "0.to_kv.weight": (2560, 1280),
    "0.to_out.weight": (1280, 1280),
    "1.0.weight": (1280,),
    "1.0.bias": (1280,),
    "1.1.weight": (5120, 1280),
    "1.3.weight": (1280, 5120),
}


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_tiny(tiny_pipelines, "sd1")


@pytest.fixture(scope="module")
def adapter(prior):
    return tiny_adapter(prior)[1]


def test_names_and_shapes_at_full_size_are_those_of_the_published_file():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SETTINGS["SDXL"])
        adapter = MSAdapter(unet, MSShape())
    found = {name: tuple(t.shape) for name, t in adapter.state_dict().items()}
    expected = {f"image_proj.{name}": shape for name, shape in RESAMPLER.items()}
    for layer in range(4):
        prefix = f"image_proj.layers.{layer}"
        expected |= {f"{prefix}.{name}": shape for name, shape in LAYER.items()}
    expected["dummy_image_tokens"] = (1, 4, 2048)
    # Every second processor of the denoiser sees the text; 70 of them, in its own order.
    names = list(unet.attn_processors)
    assert len(names) == 140
    for index, name in enumerate(names):
        if index % 2 == 0:
            assert name.endswith("attn1.processor")
            continue
        inner = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
        expected |= {f"ms_adapter.{index}.to_{x}_ip.weight": (inner, 2048) for x in "kv"}
    assert found == expected
    assert shape_of(adapter.state_dict()) == MSShape()


@pytest.mark.parametrize("name", ["ms_adapter.bin", "ms_adapter.safetensors"])
def test_what_is_written_is_read_identically(prior, adapter, tmp_path, name):
    write_ms_adapter(tmp_path / name, adapter)
    read = read_ms_adapter(tmp_path / name, prior.unet)
    assert read.shape == adapter.shape
    state = read.state_dict()
    assert list(state) == list(adapter.state_dict())
    assert all(torch.equal(t, state[key]) for key, t in adapter.state_dict().items())
    assert not any(p.requires_grad for p in read.parameters())
    half = read_ms_adapter(tmp_path / name, prior.unet, torch.bfloat16)
    assert half.dummy_image_tokens.dtype == torch.bfloat16


def test_the_bin_file_has_the_published_layout(adapter, tmp_path):
    write_ms_adapter(tmp_path / "ms_adapter.bin", adapter)
    content = torch.load(tmp_path / "ms_adapter.bin", weights_only=True)
    assert set(content) == {"image_proj", "ms_adapter", "dummy_image_tokens"}
    assert "1.to_k_ip.weight" in content["ms_adapter"]
    assert "layers.0.1.3.weight" in content["image_proj"]
    assert isinstance(content["dummy_image_tokens"], torch.Tensor)


def test_wrong_files_are_refused(prior, adapter, tmp_path):
    with pytest.raises(WeightsMissing, match=r"MS-Diffusion are missing: no file"):
        read_ms_adapter(tmp_path, prior.unet)
    torch.save({"image_proj": object()}, tmp_path / "code.bin")
    with pytest.raises(UnsafeWeights, match="holds more than tensors"):
        read_ms_adapter(tmp_path / "code.bin", prior.unet)
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    with pytest.raises(WeightsMissing, match=r"cut.safetensors"):
        read_ms_adapter(tmp_path / "cut.safetensors", prior.unet)
    (tmp_path / "cut.bin").write_bytes(b"123")
    with pytest.raises(WeightsMissing, match=r"cut.bin"):
        read_ms_adapter(tmp_path / "cut.bin", prior.unet)
    save_file({"other": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UnsupportedModel, match=r"No 'image_proj.grounding_latents' among 1 tens"):
        read_ms_adapter(tmp_path / "other.safetensors", prior.unet)
    write_ms_adapter(tmp_path / "part.safetensors", adapter)
    tensors = load_file(tmp_path / "part.safetensors")
    tensors["ms_adapter.99.to_k_ip.weight"] = tensors.pop("ms_adapter.1.to_k_ip.weight")
    save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(UnsupportedModel, match=r"in 2 tensors: ms_adapter.1.to_k_ip.weight \(abs"):
        read_ms_adapter(tmp_path / "part.safetensors", prior.unet)

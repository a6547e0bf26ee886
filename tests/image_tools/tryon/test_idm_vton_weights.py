"""IDM-VTON's public layout: names and shapes at full size, round trips, and what is refused."""

from __future__ import annotations

import shutil

import pytest
import torch

from image_tools.diffusion.loading import load_folder
from image_tools.errors import UnsafeWeights, UnsupportedModel, WeightsMissing
from image_tools.personalization.ip_adapter import IPAdapter, PlusProjector, layer_widths
from image_tools.personalization.perceiver import PerceiverSettings
from image_tools.tryon.idm_vton_weights import (
    join_tryon_net,
    read_idm_vton,
    split_tryon_net,
)
from image_tools.tryon.refbank import check_bank_fits
from image_tools.tryon.tryon_weights import STEM, read_component, read_unet
from tests.image_tools.published_unets import SETTINGS
from tests.image_tools.tryon.tiny_idm import tiny_idm, write_idm

CPU = torch.device("cpu")
RESAMPLER = PerceiverSettings(image_width=1280, width=1280, text_width=2048, heads=20)


@pytest.fixture(scope="module")
def tool(tiny_pipelines):
    return tiny_idm(load_folder(tiny_pipelines["sdxl"], CPU))


@pytest.fixture(scope="module")
def folder(tool, tmp_path_factory):
    return write_idm(tool, tmp_path_factory.mktemp("idm") / "IDM-VTON")


def test_names_and_shapes_are_those_of_the_public_denoiser():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SETTINGS["SDXL"], in_channels=13)
        adapter = IPAdapter(PlusProjector(RESAMPLER), layer_widths(unet))
    tensors = join_tryon_net(unet, adapter)
    own, projector, keys = split_tryon_net(tensors)
    assert (len(own), len(projector), len(keys)) == (1680, 51, 70)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    layer = "up_blocks.0.attentions.1.transformer_blocks.9.attn2"
    expected = {
        "conv_in.weight": (320, 13, 3, 3),
        "add_embedding.linear_1.weight": (1280, 2816),
        f"{layer}.processor.to_k_ip.weight": (1280, 2048),
        f"{layer}.processor.to_v_ip.weight": (1280, 2048),
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_k_ip.weight": (
            640,
            2048,
        ),
        "encoder_hid_proj.latents": (1, 16, 1280),
        "encoder_hid_proj.proj_in.weight": (1280, 1280),
        "encoder_hid_proj.proj_out.weight": (2048, 1280),
        "encoder_hid_proj.norm_out.bias": (2048,),
        "encoder_hid_proj.layers.3.0.norm1.weight": (1280,),
        "encoder_hid_proj.layers.3.0.norm2.bias": (1280,),
        "encoder_hid_proj.layers.3.0.to_q.weight": (1280, 1280),
        "encoder_hid_proj.layers.3.0.to_kv.weight": (2560, 1280),
        "encoder_hid_proj.layers.3.0.to_out.weight": (1280, 1280),
        "encoder_hid_proj.layers.3.1.0.weight": (1280,),
        "encoder_hid_proj.layers.3.1.1.weight": (5120, 1280),
        "encoder_hid_proj.layers.3.1.3.weight": (1280, 5120),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    attention = [name for name in own if name.endswith(".attn1.to_k.weight")]
    assert len(attention) == 70
    check_bank_fits(unet, unet)


def test_a_folder_comes_back_as_it_was_written(tool, folder):
    weights = read_idm_vton(folder)
    pairs = (
        (weights.unet, tool.denoiser.unet),
        (weights.garment_net, tool.garment_net),
        (weights.adapter, tool.prompted.adapter),
    )
    for read, written in pairs:
        state = read.state_dict()
        assert set(state) == set(written.state_dict())
        assert all(torch.equal(state[name], t) for name, t in written.state_dict().items())
    assert weights.scheduler_config["rescale_betas_zero_snr"] is True
    assert weights.scheduler_config["set_alpha_to_one"] is True  # the file says false, for DDIM
    assert weights.garment_net.config.addition_embed_type is None


def test_what_sdxl_is_told_beside_the_text_is_left_out_of_garment_net(
    tool, folder, tmp_path, tiny_pipelines
):
    whole = load_folder(tiny_pipelines["sdxl"], CPU).unet
    other = write_idm(tool, tmp_path / "IDM-VTON", garment_net=whole)
    read = read_idm_vton(other).garment_net
    assert not any(name.startswith("add_embedding.") for name in read.state_dict())
    assert torch.equal(read.conv_in.weight, whole.conv_in.weight)


def test_pickled_denoisers_give_their_tensors_alone(tool, folder, tmp_path):
    other = tmp_path / "IDM-VTON"
    shutil.copytree(folder, other)
    (other / f"unet/{STEM}.safetensors").unlink()
    pickled = other / f"unet/{STEM}.bin"
    torch.save(join_tryon_net(tool.denoiser.unet, tool.prompted.adapter), pickled)
    read = read_idm_vton(other)
    assert torch.equal(read.unet.conv_in.weight, tool.denoiser.unet.conv_in.weight)
    torch.save({"model": torch.nn.Linear(1, 1)}, pickled)
    with pytest.raises(UnsafeWeights, match="holds more than tensors"):
        read_idm_vton(other)


def test_a_single_variant_serves_and_two_do_not(tool, folder, tmp_path):
    other = tmp_path / "unet"
    shutil.copytree(folder / "unet_encoder", other)
    whole = other / f"{STEM}.safetensors"
    half = whole.rename(other / f"{STEM}.fp16.safetensors")
    read = read_component(other, role="denoiser")
    assert torch.equal(read["conv_in.weight"], tool.garment_net.conv_in.weight)
    shutil.copy(half, other / f"{STEM}.bf16.safetensors")
    with pytest.raises(WeightsMissing, match=r"no diffusion_pytorch_model\.safetensors"):
        read_component(other, role="denoiser")


def test_folders_of_other_models_are_refused(folder, tiny_pipelines, tmp_path):
    shutil.copytree(tiny_pipelines["sdxl"] / "unet", tmp_path / "unet")
    with pytest.raises(UnsupportedModel, match="image prompts in 0 layers, first down_blocks"):
        read_idm_vton(tmp_path)
    with pytest.raises(WeightsMissing, match=r"no config\.json"):
        read_idm_vton(tmp_path / "nothing")
    with pytest.raises(UnsupportedModel, match="does not fit in"):
        read_unet(folder / "unet", role="garment encoder")

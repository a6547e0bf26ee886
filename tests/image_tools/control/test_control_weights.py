"""ControlNet files of every layout, at full size without storage, and tiny."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from safetensors.torch import save_file

from image_tools.control.control_configs import ControlConfig
from image_tools.control.control_weights import (
    detect_layout,
    from_stock,
    read_controlnet,
    to_stock,
    transfer_controlnet,
)
from image_tools.errors import UnsafeWeights, UnsupportedModel, WeightsMissing
from tests.image_tools.control.tiny_controls import tiny_controlnet
from tests.image_tools.personalization.subjects import load_tiny
from tests.image_tools.published_unets import SETTINGS

LAYOUTS = ("ldm", "ldm_bare", "stock")
FAMILIES = {"SD15": "SD1.5", "SD21": "SD2.1-768", "SDXL": "SDXL"}
DENOISER_ALONE = ("sample_size", "up_block_types")


@cache
def full_size(family: str):
    """A full-size ControlNet without storage."""
    from diffusers import ControlNetModel

    settings = SETTINGS[FAMILIES[family]].items()
    with torch.device("meta"):
        return ControlNetModel(**{k: v for k, v in settings if k not in DENOISER_ALONE})


@pytest.fixture(scope="module")
def controlnet(tiny_pipelines):
    """With all levels of Stable Diffusion's, which the stock reader takes for granted."""
    return tiny_controlnet(load_tiny(tiny_pipelines, "sd1"), levels=4)


@pytest.fixture
def settings_folder(controlnet, tmp_path):
    """A folder with the tiny ControlNet's config.json alone."""
    folder = tmp_path / "settings"
    controlnet.save_config(folder)
    return folder


def _save(tensors, path):
    save_file({name: t.contiguous() for name, t in tensors.items()}, path)
    return path


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_comes_back_whole(family, layout):
    model = full_size(family)
    tensors = model.state_dict()
    exported = from_stock(tensors, model.config, layout)
    assert detect_layout(list(exported)) == layout
    assert len(exported) == len(tensors)
    returned = to_stock(exported, model.config)
    assert {n: t.shape for n, t in returned.items()} == {n: t.shape for n, t in tensors.items()}


@pytest.mark.parametrize("family", ["SD15", "SD21"])
def test_original_names_are_those_of_the_stock_converter(family):
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    model = full_size(family)
    tensors = model.state_dict()
    converted = convert_controlnet_checkpoint(
        from_stock(tensors, model.config, "ldm"), dict(model.config)
    )
    assert {n: t.shape for n, t in converted.items()} == {n: t.shape for n, t in tensors.items()}


def test_original_names_at_full_size_are_the_published_ones():
    names = from_stock(full_size("SD15").state_dict(), full_size("SD15").config, "ldm")
    shapes = {name.removeprefix("control_model."): tuple(t.shape) for name, t in names.items()}
    assert shapes["input_hint_block.0.weight"] == (16, 3, 3, 3)
    assert shapes["input_hint_block.14.weight"] == (320, 256, 3, 3)
    assert shapes["zero_convs.11.0.weight"] == (1280, 1280, 1, 1)
    assert shapes["input_blocks.4.0.skip_connection.weight"] == (640, 320, 1, 1)
    assert shapes["input_blocks.3.0.op.weight"] == (320, 320, 3, 3)
    assert shapes["middle_block_out.0.bias"] == (1280,)
    assert sum(t.numel() for t in names.values()) == 361_279_120


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_every_layout_read_the_same(controlnet, settings_folder, tmp_path, layout):
    tensors = from_stock(controlnet.state_dict(), controlnet.config, layout)
    path = _save(tensors, tmp_path / "control.safetensors")
    read = read_controlnet(ControlConfig(weights=str(path), settings=str(settings_folder)))
    assert not any(p.requires_grad for p in read.parameters())
    assert not read.training
    for name, tensor in controlnet.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name


def test_the_stock_reader_opens_what_is_exported(controlnet, settings_folder, tmp_path):
    from diffusers import ControlNetModel

    tensors = from_stock(controlnet.state_dict(), controlnet.config, "ldm")
    path = _save(tensors, tmp_path / "control.safetensors")
    stock = ControlNetModel.from_single_file(
        str(path), config=str(settings_folder), local_files_only=True
    )
    for name, tensor in controlnet.state_dict().items():
        assert torch.equal(stock.state_dict()[name], tensor), name


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_condition_images_of_finer_latents_come_back_whole(tiny_pipelines, levels):
    model = tiny_controlnet(load_tiny(tiny_pipelines, "sd1"), levels=levels)
    exported = from_stock(model.state_dict(), model.config, "ldm_bare")
    assert f"input_hint_block.{4 * levels - 2}.weight" in exported
    assert set(to_stock(exported, model.config)) == set(model.state_dict())


def test_a_stock_folder_and_settings_beside_the_file_are_read(controlnet, tmp_path):
    controlnet.save_pretrained(tmp_path / "folder")
    folder = read_controlnet(ControlConfig(weights=str(tmp_path / "folder")), torch.float16)
    assert folder.dtype == torch.float16
    file = tmp_path / "folder/diffusion_pytorch_model.safetensors"
    beside = read_controlnet(ControlConfig(weights=str(file)))
    assert torch.equal(beside.conv_in.weight, controlnet.conv_in.weight)


def test_a_whole_checkpoint_gives_its_controlnet(controlnet):
    tensors = from_stock(controlnet.state_dict(), controlnet.config, "ldm")
    others = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.ones(1),
        "first_stage_model.encoder.conv_in.weight": torch.ones(1),
        "betas": torch.ones(1),
    }
    assert set(to_stock({**others, **tensors}, controlnet.config)) == set(controlnet.state_dict())


def test_transfer_keeps_the_difference_to_the_base():
    base = {"conv_in.weight": torch.full((2, 2), 3.0), "other.weight": torch.ones(2)}
    target = {"conv_in.weight": torch.full((2, 2), 5.0)}
    control = {"conv_in.weight": torch.full((2, 2), 3.5), "zero.weight": torch.ones(1)}
    moved = transfer_controlnet(control, base, target)
    assert torch.equal(moved["conv_in.weight"], torch.full((2, 2), 5.5))
    assert torch.equal(moved["zero.weight"], control["zero.weight"])
    assert torch.equal(transfer_controlnet(control, base, base)["conv_in.weight"],
                       control["conv_in.weight"])  # fmt: skip


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_the_authors_own_files_are_read(controlnet, tmp_path, is_wrapped):
    """Pickles of tensors, as published; a training's checkpoint has them one level down."""
    tensors = from_stock(controlnet.state_dict(), controlnet.config, "ldm")
    path = tmp_path / "control_v11p_sd15_canny.pth"
    torch.save({"state_dict": tensors, "epoch": 3} if is_wrapped else tensors, path)
    controlnet.save_config(tmp_path)
    read = read_controlnet(ControlConfig(weights=str(path)))
    state = read.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in controlnet.state_dict().items())


def test_pickles_and_absent_files_are_refused(tmp_path):
    torch.save({"a": json.loads}, tmp_path / "control_sd15_canny.pth")
    with pytest.raises(UnsafeWeights, match="holds more than tensors"):
        read_controlnet(ControlConfig(weights=str(tmp_path / "control_sd15_canny.pth")))
    with pytest.raises(WeightsMissing, match=r"no file '.*nowhere.safetensors'"):
        read_controlnet(ControlConfig(weights=str(tmp_path / "nowhere.safetensors")))
    (tmp_path / "broken.safetensors").write_bytes(b"not a header")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsMissing, match="ControlNet cannot be read"):
        read_controlnet(ControlConfig(weights=str(tmp_path / "broken.safetensors")))


def test_a_file_without_settings_is_refused(controlnet, tmp_path):
    path = _save(controlnet.state_dict(), tmp_path / "control.safetensors")
    with pytest.raises(WeightsMissing, match=r"ControlNet's settings is missing: no config.json"):
        read_controlnet(ControlConfig(weights=str(path)))


@pytest.mark.parametrize(
    ("key", "design"),
    [
        ("task_embedding", "union ControlNet"),
        ("local_adapter.conv_in.weight", "Uni-ControlNet"),
        ("adapter.body.0.in_conv.weight", "T2I-Adapter"),
        ("lora_controlnet", "Control-LoRA"),
    ],
)
def test_other_designs_are_named(key, design):
    with pytest.raises(UnsupportedModel, match=f"The file holds an? {design}"):
        detect_layout([key, "controlnet_cond_embedding.conv_in.weight"])


def test_other_files_and_other_settings_are_refused(controlnet, settings_folder, tmp_path):
    with pytest.raises(UnsupportedModel, match="Nothing that reads a condition image among 1"):
        detect_layout(["model.diffusion_model.out.0.weight"])
    tensors = from_stock(controlnet.state_dict(), controlnet.config, "ldm")
    with pytest.raises(UnsupportedModel, match=r"1 tensors belong nowhere .* output_blocks"):
        to_stock({**tensors, "control_model.output_blocks.0": torch.ones(1)}, controlnet.config)
    config = json.loads((settings_folder / "config.json").read_text())
    (settings_folder / "config.json").write_text(json.dumps({**config, "cross_attention_dim": 24}))
    path = _save(tensors, tmp_path / "control.safetensors")
    with pytest.raises(UnsupportedModel, match=r"does not fit its settings .*expected \(.*24\)"):
        read_controlnet(ControlConfig(weights=str(path), settings=str(settings_folder)))
    (settings_folder / "config.json").write_text(json.dumps({"_class_name": "SD3ControlNetModel"}))
    with pytest.raises(UnsupportedModel, match="describes a SD3ControlNetModel"):
        read_controlnet(ControlConfig(weights=str(path), settings=str(settings_folder)))


def test_incomplete_weights_are_missing_weights(controlnet, settings_folder, tmp_path):
    tensors = dict(controlnet.state_dict())
    del tensors["controlnet_mid_block.bias"]
    path = _save(tensors, tmp_path / "control.safetensors")
    with pytest.raises(WeightsMissing, match=r"controlnet_mid_block.bias \(absent"):
        read_controlnet(ControlConfig(weights=str(path), settings=str(settings_folder)))


def test_the_one_variant_of_a_folder_is_read(controlnet, tmp_path):
    controlnet.save_pretrained(tmp_path, variant="fp16")
    read = read_controlnet(ControlConfig(str(tmp_path))).state_dict()
    assert all(torch.equal(tensor, read[name]) for name, tensor in controlnet.state_dict().items())

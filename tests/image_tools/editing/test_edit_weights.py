"""InstructPix2Pix files: stock folders, original files, averaged weights, refusals."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from image_tools.editing.edit_weights import averaged_weights, read_edit_unet
from image_tools.errors import UnsafeWeights, UnsupportedModel, WeightsMissing
from tests.image_tools.editing.tiny_editors import tiny_edit_unet
from tests.image_tools.personalization.subjects import load_tiny
from tests.tiny_models import write_single_file


@pytest.fixture(scope="module")
def unet(tiny_pipelines):
    return tiny_edit_unet(load_tiny(tiny_pipelines, "sd1"))


@pytest.fixture
def folder(unet, tmp_path):
    """A pipeline's folder with the edit model in it."""
    unet.save_pretrained(tmp_path / "ip2p/unet")
    return tmp_path / "ip2p"


@pytest.fixture
def original(tiny_pipelines, unet, tmp_path):
    """The tensors of an original checkpoint of the edit model."""
    path = write_single_file(tiny_pipelines["sd1"], tmp_path / "sd1.safetensors")
    tensors = load_file(path)
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = unet.conv_in.weight.detach().clone()
    return tensors


def test_stock_folders_are_read(unet, folder):
    for path in (folder, folder / "unet"):
        read = read_edit_unet(path)
        assert not read.training
        assert all(torch.equal(t, read.state_dict()[n]) for n, t in unet.state_dict().items())
    assert read_edit_unet(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_an_original_file_is_read(unet, folder, original, tmp_path):
    path = tmp_path / "ip2p.safetensors"
    save_file(original, path)
    read = read_edit_unet(path, folder / "unet").state_dict()
    assert set(read) == set(unet.state_dict())
    assert all(torch.equal(tensor, read[name]) for name, tensor in unet.state_dict().items())


def test_averaged_weights_are_preferred(folder, original, tmp_path):
    """As in instruct-pix2pix-00-22000: names without dots behind model_ema."""
    key = "model.diffusion_model.input_blocks.0.0.weight"
    averaged = {"model_ema.diffusion_modelinput_blocks00weight": original[key] + 1.0}
    assert torch.equal(averaged_weights({**original, **averaged})[key], original[key] + 1.0)
    save_file({**original, **averaged}, tmp_path / "ip2p.safetensors")
    read = read_edit_unet(tmp_path / "ip2p.safetensors", folder / "unet")
    assert torch.equal(read.conv_in.weight, original[key] + 1.0)


def test_pickles_absent_and_incomplete_files_are_refused(folder, original, tmp_path):
    torch.save({}, tmp_path / "instruct-pix2pix-00-22000.ckpt")
    with pytest.raises(UnsafeWeights, match="edit model are pickled"):
        read_edit_unet(tmp_path / "instruct-pix2pix-00-22000.ckpt")
    with pytest.raises(WeightsMissing, match="edit model are missing"):
        read_edit_unet(tmp_path / "nowhere.safetensors")
    save_file(original, tmp_path / "ip2p.safetensors")
    with pytest.raises(WeightsMissing, match=r"edit model's settings is missing: no config.json"):
        read_edit_unet(tmp_path / "ip2p.safetensors")
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_out.bias"]
    save_file(tensors, file)
    with pytest.raises(WeightsMissing, match=r"in 1 tensors: conv_out.bias \(absent"):
        read_edit_unet(folder)


def test_a_plain_model_under_an_edit_models_settings_is_refused(tiny_pipelines, folder, tmp_path):
    plain = load_file(tiny_pipelines["sd1"] / "unet/diffusion_pytorch_model.safetensors")
    save_file(plain, folder / "unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(UnsupportedModel, match=r"conv_in.weight \(\(16, 4, 3, 3\), expected"):
        read_edit_unet(folder)


def test_the_one_variant_of_a_folder_is_read(unet, folder):
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".fp16.safetensors"))
    assert torch.equal(read_edit_unet(folder).conv_in.weight, unet.conv_in.weight)
    save_file(unet.state_dict(), file.with_suffix(".non_ema.safetensors"))
    with pytest.raises(WeightsMissing, match=r"fp16.safetensors, .*non_ema.*a folder with one of"):
        read_edit_unet(folder)


def test_models_of_continuous_noise_levels_are_refused(folder, original, tmp_path):
    """CosXL's edit model: one file with the bounds of its levels, or a folder with a scheduler."""
    from diffusers import EDMEulerScheduler

    save_file({**original, "edm_vpred.sigma_max": torch.tensor(80.0)}, tmp_path / "x.safetensors")
    with pytest.raises(UnsupportedModel, match=r"edit model .*holds 'edm_vpred.sigma_max'"):
        read_edit_unet(tmp_path / "x.safetensors", folder / "unet")
    EDMEulerScheduler(prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    with pytest.raises(UnsupportedModel, match="'EDMEulerScheduler' has no beta schedule"):
        read_edit_unet(folder)

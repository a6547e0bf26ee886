"""Public MVDream layouts into a stock UNet and back, at full size without storage, and tiny."""

from __future__ import annotations

import json
import math
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from image_tools.configs import MVDreamPriorConfig
from image_tools.diffusion.camera_embedding import camera_vector
from image_tools.diffusion.loading import load_prior
from image_tools.diffusion.multiview import MultiViewPrior
from image_tools.diffusion.mvdream_weights import (
    camera_azimuth_deg,
    detect_layout,
    find_mvdream_files,
    from_stock,
    read_mvdream_unet,
    to_stock,
    unet_config,
)
from image_tools.errors import UnsafeWeights, UnsupportedModel, WeightsMissing
from renderers.cameras import orbit_cameras
from tests.image_tools.tiny_unets import call_unet, tiny_multiview_unet, tiny_unet

LAYOUTS = ("ldm", "ldm_bare", "camera_proj", "stock")
SD21 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
SD15 = {
    **SD21,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "use_linear_projection": False,
}


@cache
def full_size(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a full-size multi-view UNet, without storage."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**unet_config({"SD21": SD21, "SD15": SD15}[name])).state_dict()


@pytest.fixture(scope="module")
def tiny():
    """A tiny multi-view UNet and the settings of its base."""
    return tiny_multiview_unet(), dict(tiny_unet().config)


def test_mvdream_is_stable_diffusion_and_four_tensors():
    tensors = full_size("SD21")
    assert len(tensors) == 690
    assert sum(t.numel() for t in tensors.values()) == 867_572_164
    camera = [t for name, t in tensors.items() if name.startswith("class_embedding.")]
    assert sorted(tuple(t.shape) for t in camera) == [(1280,), (1280,), (1280, 16), (1280, 1280)]


@pytest.mark.parametrize("base", ["SD21", "SD15"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_comes_back_whole(base, layout):
    tensors, config = full_size(base), unet_config({"SD21": SD21, "SD15": SD15}[base])
    exported = from_stock(tensors, config, layout)
    assert detect_layout(list(exported)) == layout
    assert len(exported) == len(tensors)
    returned = to_stock(exported, config)
    assert returned.keys() == tensors.keys()
    assert all(returned[name] is tensor for name, tensor in tensors.items())


@pytest.mark.parametrize("base", ["SD21", "SD15"])
def test_original_names_are_those_of_the_stock_converter(base):
    """diffusers' own converter, which knows nothing of cameras, finds the same UNet."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    settings = {"SD21": SD21, "SD15": SD15}[base]
    tensors = full_size(base)
    exported = from_stock(tensors, unet_config(settings), "ldm")
    plain = {n: t for n, t in exported.items() if "camera_embed" not in n}
    assert len(exported) - len(plain) == 4
    config = {**settings, "class_embed_type": None, "addition_embed_type": None}
    converted = convert_ldm_unet_checkpoint(plain, config)
    expected = {n: t for n, t in tensors.items() if "class_embedding" not in n}
    assert converted.keys() == expected.keys()
    assert all(converted[name] is tensor for name, tensor in expected.items())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_files_of_every_layout_predict_the_same(tiny, tmp_path, layout, suffix):
    unet, base = tiny
    tensors = from_stock(unet.state_dict(), unet_config(base), layout)
    path = tmp_path / f"model.{suffix}"
    if suffix == "pt":
        torch.save(tensors, path)
    else:
        save_file({n: t.contiguous() for n, t in tensors.items()}, path)
    read = read_mvdream_unet([path], base, torch.float32).eval()
    cameras = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(call_unet(read, cameras=cameras), call_unet(unet, cameras=cameras))
    assert read.config.sample_size == 32


def test_a_camera_embedding_in_a_folder_of_its_own_is_read(tiny, tmp_path):
    """As lzq49's pipelines are saved: two components, the second with names of its own."""
    unet, base = tiny
    state = {n: t.contiguous() for n, t in unet.state_dict().items()}
    camera = {k.removeprefix("class_embedding."): t for k, t in state.items() if "class_emb" in k}
    for folder, tensors in (
        ("unet", {k: t for k, t in state.items() if "class_emb" not in k}),
        ("camera_proj", camera),
    ):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "diffusion_pytorch_model.safetensors")
    files = find_mvdream_files(tmp_path)
    assert [path.parent.name for path in files] == ["unet", "camera_proj"]
    read = read_mvdream_unet(files, base, torch.float32)
    assert all(torch.equal(t, state[name]) for name, t in read.state_dict().items())


def test_other_parts_of_a_whole_checkpoint_are_passed_over(tiny):
    unet, base = tiny
    config = unet_config(base)
    tensors = from_stock(unet.state_dict(), config, "ldm")
    others = ("first_stage_model.encoder.conv_in.weight", "cond_stage_model.model.ln.bias", "betas")
    whole = {**tensors, **{name: torch.ones(1) for name in others}, "sqrt_recip": torch.ones(1)}
    assert set(to_stock(whole, config)) == set(unet.state_dict())
    wrapped = {f"unet.{n}": t for n, t in from_stock(unet.state_dict(), config, "ldm_bare").items()}
    assert set(to_stock({**wrapped, "vae.x": torch.ones(1)}, config)) == set(unet.state_dict())


def test_tensors_that_belong_nowhere_are_named(tiny):
    unet, base = tiny
    config = unet_config(base)
    tensors = from_stock(unet.state_dict(), config, "ldm")
    tensors["model.diffusion_model.input_blocks.77.0.in_layers.0.weight"] = torch.ones(1)
    with pytest.raises(UnsupportedModel, match=r"1 tensors belong nowhere .*input_blocks\.77"):
        to_stock(tensors, config)


def test_what_is_not_mvdream_is_refused():
    with pytest.raises(UnsupportedModel, match=r"No camera embedding among 2 tensors \(a\.b, c"):
        detect_layout(["c", "a.b"])
    with pytest.raises(UnsupportedModel, match="ImageDream"):
        detect_layout(["camera_embed.0.weight", "image_embed.proj.weight"])


def test_a_file_of_another_base_is_refused_with_its_tensors(tiny, tmp_path):
    unet, base = tiny
    tensors = dict(unet.state_dict())
    del tensors["conv_in.bias"]
    tensors["conv_out.bias"] = torch.ones(9)
    save_file(tensors, tmp_path / "model.safetensors")
    said = r"2 tensors: conv_in.bias \(absent, .*conv_out.bias \(\(9,\), expected \(4,\)\)"
    with pytest.raises(UnsupportedModel, match=said):
        read_mvdream_unet([tmp_path / "model.safetensors"], base, torch.float32)


def test_pickled_objects_are_never_built(tiny, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"state_dict": {"camera_embed.0.weight": Trap()}}, tmp_path / "model.pt")
    with pytest.raises(UnsafeWeights, match="more than tensors"):
        read_mvdream_unet([tmp_path / "model.pt"], tiny[1], torch.float32)
    assert not (tmp_path / "sprung").exists()


def test_the_file_is_found_in_its_folder(tmp_path):
    with pytest.raises(WeightsMissing, match=r"sd-v2\.1-base-4view\.pt"):
        find_mvdream_files(tmp_path)
    (tmp_path / "one.pt").touch()
    assert find_mvdream_files(tmp_path) == [tmp_path / "one.pt"]
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "w.safetensors").touch()
    assert find_mvdream_files(tmp_path) == [tmp_path / "unet" / "w.safetensors"]
    assert find_mvdream_files(tmp_path / "one.pt") == [tmp_path / "one.pt"]


def test_a_prior_is_made_of_the_checkpoint_and_its_base(tiny_pipelines, tmp_path):
    from diffusers import UNet2DConditionModel

    base = tiny_pipelines["sd1"]
    settings = json.loads((base / "unet" / "config.json").read_text())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config(unet_config(settings))
    tensors = from_stock(unet.state_dict(), unet_config(settings), "ldm")
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "mv.safetensors")
    config = MVDreamPriorConfig(weights=str(tmp_path / "mv.safetensors"), base=str(base))
    prior = load_prior(config, torch.device("cpu"))
    assert isinstance(prior, MultiViewPrior)
    assert prior.latent_size == 32
    assert prior.encode_prompt(["a duck"]).tokens.shape[0] == 1


@pytest.mark.parametrize("azimuth_deg", [0.0, 30.0, 90.0, -60.0, 180.0])
def test_cameras_are_mvdreams_but_for_the_name_of_the_azimuth(azimuth_deg):
    """MVDream builds cameras y-up, then turns y and z: its azimuth 90 is our front."""
    ours = orbit_cameras(
        1,
        elevation_deg=15.0,
        distance=2.0,
        fovy_deg=40.0,
        height=8,
        width=8,
        azimuth_start_deg=azimuth_deg,
    )
    theirs = mvdream_camera(15.0, camera_azimuth_deg(azimuth_deg))
    np.testing.assert_allclose(camera_vector(ours.c2w)[0].numpy(), theirs.reshape(16), atol=1e-6)


def mvdream_camera(elevation_deg: float, azimuth_deg: float) -> np.ndarray:
    """The published rule: a y-up look-at pose on the unit sphere, then (x, y, z) -> (x, -z, y)."""
    e, a = math.radians(elevation_deg), math.radians(azimuth_deg)
    eye = np.array([math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)])
    right = np.cross(-eye, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(right, -eye), eye, eye], 1)
    turn = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    return turn @ pose

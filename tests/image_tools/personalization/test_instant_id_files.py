"""InstantID's files and configs: the public layout, what is missing, and a person from a photo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from image_tools.errors import UnsupportedModel, WeightsMissing
from image_tools.personalization.instant_id import InstantID
from image_tools.personalization.instant_id_configs import (
    HeadConfig,
    InstantIDConfig,
    InstantIDNetConfig,
)
from image_tools.personalization.instant_id_files import read_instant_id, write_instant_id
from image_tools.personalization.ip_adapter import IPAdapter, PlusProjector
from image_tools.personalization.ip_adapter_files import projector_of, write_ip_adapter
from image_tools.personalization.perceiver import PerceiverSettings
from image_tools.personalization.references import build_reference_tool
from image_tools.vision.face_configs import InsightFacesConfig
from image_tools.vision.faces import FaceNotFound
from image_tools.vision.mesh_faces import MeshFaceAnalyzer
from renderers.errors import BackendMissing
from tests.image_tools.personalization.subjects import load_tiny
from tests.image_tools.personalization.tiny_instant_ids import tiny_instant_id

PORTRAIT = str(Path(__file__).parents[1] / "vision" / "portrait.jpg")
# Of InstantX/InstantID's ip-adapter.bin.
PUBLIC = {
    "latents": (1, 16, 1280),
    "proj_in.weight": (1280, 512),
    "proj_out.weight": (2048, 1280),
    "norm_out.weight": (2048,),
    "layers.0.0.norm1.weight": (1280,),
    "layers.3.0.to_q.weight": (1280, 1280),
    "layers.3.0.to_kv.weight": (2560, 1280),
    "layers.3.0.to_out.weight": (1280, 1280),
    "layers.3.1.0.bias": (1280,),
    "layers.3.1.1.weight": (5120, 1280),
    "layers.3.1.3.weight": (1280, 5120),
}


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_tiny(tiny_pipelines, "sd1")


@pytest.fixture(scope="module")
def parts(prior):
    """For the identity of the networks that ship, by a ControlNet of the stock reader's levels."""
    return tiny_instant_id(prior, identity_width=MeshFaceAnalyzer.width)


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    path = tmp_path_factory.mktemp("instant-id")
    write_instant_id(path, parts)
    return path


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_what_is_written_is_read_by_either_ending(prior, parts, folder, tmp_path):
    read = read_instant_id(folder, prior.unet)
    assert same(read.adapter, parts.adapter)
    assert same(read.net, parts.net)
    assert read.identity_width == MeshFaceAnalyzer.width
    assert not any(p.requires_grad for p in [*read.adapter.parameters(), *read.net.parameters()])
    (tmp_path / "ControlNetModel").symlink_to(folder / "ControlNetModel")
    write_ip_adapter(tmp_path / "ip-adapter.bin", parts.adapter)
    assert same(read_instant_id(tmp_path, prior.unet).adapter, parts.adapter)


def test_the_public_projector_fits_by_names_and_shapes():
    settings = PerceiverSettings(image_width=512, width=1280, text_width=2048, heads=20)
    with torch.device("meta"):
        tensors = PlusProjector(settings).state_dict()
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    assert {name: shapes[name] for name in PUBLIC} == PUBLIC
    assert len(shapes) == 7 + 4 * 11
    with torch.device("meta"):
        read = projector_of(tensors)
        adapter = IPAdapter(read, {"1": (2048, 640), "139": (2048, 1280)})
    assert isinstance(read, PlusProjector)
    assert read.settings == settings
    assert InstantID(adapter, torch.nn.Module()).identity_width == 512
    assert tuple(adapter.state_dict()["ip_adapter.139.to_v_ip.weight"].shape) == (1280, 2048)


def test_incomplete_folders_are_refused(prior, folder, tmp_path):
    with pytest.raises(WeightsMissing, match=r"no ip-adapter.safetensors or .bin in"):
        read_instant_id(tmp_path, prior.unet)
    (tmp_path / "ip-adapter.safetensors").symlink_to(folder / "ip-adapter.safetensors")
    with pytest.raises(WeightsMissing, match=r"no ControlNetModel/ in .* InstantX/InstantID"):
        read_instant_id(tmp_path, prior.unet)


def test_a_person_of_a_photo_is_drawn_along_its_landmarks(prior, folder):
    tool = build_reference_tool(InstantIDConfig(str(folder), photos=(PORTRAIT,)), prior)
    drawn = tool.controlled.controls[0].images[0]
    assert drawn.shape == (16, 16, 3)
    assert 0.0 < float(drawn.max()) <= 1.0
    legacy = InstantIDConfig(str(folder), photos=(PORTRAIT,), drawing="legacy")
    assert float(build_reference_tool(legacy, prior).controlled.controls[0].images.mean()) > 0.1
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text, t = prior.encode_prompt(["a duck"]), torch.tensor([500])
    with torch.no_grad():
        changed = tool.predict_noise(latents, t, text) - prior.predict_noise(latents, t, text)
    assert changed.abs().max() > 1e-3


def test_an_identity_of_a_file_takes_the_pose_of_a_picture(prior, folder, parts, tmp_path):
    embedding = np.random.default_rng(0).normal(size=MeshFaceAnalyzer.width).astype(np.float32)
    np.save(tmp_path / "me.npy", embedding)
    config = InstantIDConfig(
        str(folder),
        identity=str(tmp_path / "me.npy"),
        pose=PORTRAIT,
        faces=InsightFacesConfig(root="nowhere"),
        mask=PORTRAIT,
        nets=(InstantIDNetConfig(weights=str(folder / "ControlNetModel"), image=PORTRAIT),),
        scale=0.5,
    )
    tool = build_reference_tool(config, prior)
    context, _ = tool.controlled.controls[0].context
    with torch.no_grad():
        tool.show_identity(torch.tensor(embedding)[None])
    assert torch.equal(tool.controlled.controls[0].context[0], context)
    assert len(tool.controlled.controls) == 2
    assert tool.controlled.controls[1].context is None
    assert tool.controlled.controls[0].mask.shape == (16, 16)
    assert tool.scale == 0.5
    assert [key for key, _ in config.pictures()] == ["pose", "mask", "nets.0.image"]
    assert [key for key, _ in config.models()] == ["weights", "identity", "nets.0.weights"]


def test_a_head_needs_no_pose(prior, folder, tmp_path):
    np.save(tmp_path / "me.npy", np.ones(MeshFaceAnalyzer.width, dtype=np.float32))
    identity = str(tmp_path / "me.npy")
    config = InstantIDConfig(str(folder), identity=identity, head=HeadConfig(height=0.7))
    tool = build_reference_tool(config, prior)
    assert tool.head == config.head
    assert float(tool.controlled.controls[0].images.max()) == 0.0
    assert config.scene_problems() == []
    (problem,) = replace(config, head=None, pose=PORTRAIT).scene_problems()
    assert problem.startswith("head: is empty, and in 3D the landmarks of a head are followed")
    with pytest.raises(ValueError, match="pose is empty, and an identity alone has no landmarks"):
        replace(config, head=None)


def test_photos_that_do_not_fit_are_refused(prior, folder, tmp_path):
    from PIL import Image

    blank = tmp_path / "blank.png"
    Image.new("RGB", (80, 60), (90, 120, 150)).save(blank)
    with pytest.raises(FaceNotFound, match=r"No face was found in '.*blank.png'"):
        build_reference_tool(InstantIDConfig(str(folder), photos=(str(blank),)), prior)
    write_instant_id(tmp_path / "other", tiny_instant_id(prior, identity_width=512))
    stranger = InstantIDConfig(str(tmp_path / "other"), photos=(PORTRAIT,))
    with pytest.raises(
        UnsupportedModel, match=r"faces 'mesh' has 1024 numbers - expected 512.*insightface"
    ):
        build_reference_tool(stranger, prior)
    absent = replace(stranger, faces=InsightFacesConfig(root=str(tmp_path)))
    with pytest.raises((BackendMissing, WeightsMissing), match="models/antelopev2'"):
        build_reference_tool(absent, prior)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "photos and identity are both given or both empty"),
        ({"photos": ("a.jpg",), "identity": "a.npy"}, "photos and identity are both given"),
        ({"photos": ("a.jpg",), "scale": -1.0}, r"scale is -1.0 - expected 0 or more"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        InstantIDConfig("weights", **settings)

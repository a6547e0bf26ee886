"""The camera embedding: a no-op at first, absent when off, and part of a stock UNet folder."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from image_tools.diffusion.camera_embedding import (
    CAMERA_WIDTH,
    add_camera_embedding,
    camera_embedding_off,
    camera_embedding_swapped,
    camera_vector,
    has_camera_embedding,
    make_camera_embedding,
    remove_camera_embedding,
)
from image_tools.diffusion.conditions import Condition
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.errors import UnsupportedModel
from renderers.cameras import orbit_cameras

T = torch.tensor([100, 700])


@pytest.fixture
def prior(tiny_pipelines) -> DiffusionPrior:
    """A fresh prior, since these tests change its UNet."""
    return load_folder(tiny_pipelines["pocket"], torch.device("cpu"))


def _orbit(n: int = 2):
    return orbit_cameras(n, elevation_deg=20.0, distance=3.0, fovy_deg=40.0, height=8, width=8)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def _predict(prior: DiffusionPrior, camera: Tensor | None = None) -> Tensor:
    latents = torch.randn(2, prior.latent_channels, 8, 8, generator=_seeded(1))
    text = prior.encode_prompt(["a red duck", "a blue cup"])
    return prior.predict_noise(latents, T, Condition(text, camera))


def _train(embedding: torch.nn.Module) -> None:
    """Stand in for training: numbers everywhere."""
    for parameter in embedding.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=_seeded(2))


def test_a_new_embedding_is_a_no_op_and_a_trained_one_is_not(prior):
    plain, camera = _predict(prior), camera_vector(_orbit().c2w)
    add_camera_embedding(prior.unet, _seeded())
    assert torch.equal(_predict(prior, camera), plain)
    _train(prior.unet.class_embedding)
    seen = _predict(prior, camera)
    assert (seen - plain).abs().max() > 1e-3
    assert (_predict(prior, camera.flip(0)) - seen).abs().max() > 1e-4


def test_without_class_labels_the_prior_is_the_plain_one(prior):
    plain = _predict(prior)
    add_camera_embedding(prior.unet, _seeded())
    _train(prior.unet.class_embedding)
    assert torch.equal(_predict(prior), plain)
    assert has_camera_embedding(prior.unet)
    zeros = _predict(prior, torch.zeros(2, CAMERA_WIDTH))
    assert not torch.equal(zeros, plain), "zeros are not the same as no camera"


def test_a_camera_for_a_plain_unet_is_refused(prior):
    with pytest.raises(UnsupportedModel, match="no class embedding"):
        _predict(prior, torch.zeros(2, CAMERA_WIDTH))


def test_removing_it_leaves_a_plain_unet(prior):
    plain, names = _predict(prior), set(prior.unet.state_dict())
    add_camera_embedding(prior.unet, _seeded())
    remove_camera_embedding(prior.unet)
    remove_camera_embedding(prior.unet)
    assert torch.equal(_predict(prior), plain)
    assert set(prior.unet.state_dict()) == names
    assert prior.unet.config.class_embed_type is None


def test_off_and_swapped_restore_after_an_error(prior):
    add_camera_embedding(prior.unet, _seeded())
    own, other = prior.unet.class_embedding, make_camera_embedding(prior.unet, _seeded(3))

    def fail_inside() -> None:
        with camera_embedding_off(prior.unet):
            assert prior.unet.class_embedding is None
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert prior.unet.class_embedding is own
    with camera_embedding_swapped(prior.unet, other):
        assert prior.unet.class_embedding is other
    assert prior.unet.class_embedding is own


def test_off_leaves_a_plain_unet_alone(prior):
    with camera_embedding_off(prior.unet):
        assert prior.unet.class_embedding is None
    assert prior.unet.class_embedding is None


def test_a_second_embedding_is_refused(prior):
    add_camera_embedding(prior.unet, _seeded())
    with pytest.raises(ValueError, match="has a class embedding already"):
        add_camera_embedding(prior.unet, _seeded())


def test_sdxl_has_no_room_for_it_in_its_configuration(tiny_pipelines):
    prior = load_folder(tiny_pipelines["sdxl"], torch.device("cpu"))
    with pytest.raises(ValueError, match="SDXL"):
        add_camera_embedding(prior.unet, _seeded())


def test_it_saves_and_loads_as_a_stock_unet(prior, tmp_path):
    from diffusers import UNet2DConditionModel

    add_camera_embedding(prior.unet, _seeded())
    _train(prior.unet.class_embedding)
    camera = camera_vector(_orbit().c2w)
    seen = _predict(prior, camera)
    prior.unet.save_pretrained(tmp_path)
    prior.unet = UNet2DConditionModel.from_pretrained(tmp_path, local_files_only=True).eval()
    assert torch.equal(_predict(prior, camera), seen)


def test_the_seed_decides_the_first_layer_and_the_global_generator_does_not(prior):
    weights = [make_camera_embedding(prior.unet, _seeded(s)).linear_1.weight for s in (5, 5, 6)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    bound = 1 / math.sqrt(CAMERA_WIDTH)
    assert 0.9 * bound < weights[0].abs().max() <= bound


def test_camera_vector_normalises_the_distance_and_leaves_the_camera_alone():
    c2w = _orbit(4).c2w
    before = c2w.clone()
    vector = camera_vector(c2w)
    assert torch.equal(c2w, before)
    matrix = vector.reshape(4, 4, 4)
    torch.testing.assert_close(matrix[:, :3, 3].norm(dim=1), torch.ones(4))
    assert torch.equal(matrix[:, :3, :3], before[:, :3, :3])
    assert torch.equal(matrix[:, 3], before[:, 3])
    far = before.clone()
    far[:, :3, 3] *= 7.0
    torch.testing.assert_close(camera_vector(far), vector)


def test_a_camera_at_the_origin_is_a_number_all_the_same():
    vector = camera_vector(torch.eye(4)[None])
    assert torch.equal(vector.reshape(4, 4), torch.eye(4))

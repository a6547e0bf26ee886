"""PhotoMaker from its configuration: photos, faces, and what is refused before a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from image_tools.errors import UnsupportedModel, WeightsMissing
from image_tools.personalization.photomaker import photomaker_prior
from image_tools.personalization.photomaker_configs import PhotoMakerConfig
from image_tools.personalization.photomaker_files import write_photomaker
from image_tools.personalization.photomaker_training_configs import PhotoMakerTrainingConfig
from image_tools.personalization.references import build_reference_tool
from image_tools.vision.face_configs import InsightFacesConfig
from renderers.errors import BackendMissing
from tests.image_tools.personalization.subjects import images_of, load_tiny, predict
from tests.image_tools.personalization.tiny_photomakers import faces_of, tiny_photomaker

PROMPT = "a man img"


@pytest.fixture(scope="module")
def plain(tiny_pipelines):
    return load_tiny(tiny_pipelines, "sdxl")


@pytest.fixture(scope="module")
def folder(plain, tmp_path_factory):
    """Both versions, two photos of CLIP's size, and two faces."""
    folder = tmp_path_factory.mktemp("photomaker")
    for version in ("v1", "v2"):
        write_photomaker(folder / f"{version}.safetensors", tiny_photomaker(plain, version))
    levels = (images_of(2, size=8, seed=5) * 255.0).round()
    for name, image, face in zip("ab", levels, faces_of(), strict=True):
        Image.fromarray(image.byte().numpy()).save(folder / f"{name}.png")
        np.save(folder / f"{name}.npy", face.numpy())
    return folder


def config_of(folder, version="v1", **changes):
    settings = {"photos": (str(folder / "a.png"), str(folder / "b.png"))}
    return PhotoMakerConfig(str(folder / f"{version}.safetensors"), **{**settings, **changes})


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_config_makes_the_prior_that_python_makes(plain, folder, version):
    identities = (str(folder / "a.npy"), str(folder / "b.npy"))
    config = config_of(folder, version, identities=identities, photo_weights=(1.0, 0.5))
    loaded = build_reference_tool(config, plain)
    images = (images_of(2, size=8, seed=5) * 255.0).round() / 255.0
    maker = tiny_photomaker(plain, version)
    made = photomaker_prior(
        plain, maker, images, faces=faces_of(), merge_t=799, photo_weights=(1.0, 0.5)
    )
    try:
        assert loaded.merge_t == 799
        torch.testing.assert_close(loaded.person.rows, made.person.rows, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            predict(loaded, PROMPT), predict(made, PROMPT), atol=1e-5, rtol=1e-5
        )
    finally:
        loaded.remove()
        made.remove()


def test_one_face_can_stand_for_all_photos(plain, folder):
    same, alone = (
        build_reference_tool(config_of(folder, "v2", identities=identities), plain)
        for identities in ((str(folder / "a.npy"),) * 2, (str(folder / "a.npy"),))
    )
    assert torch.equal(same.person.rows, alone.person.rows)
    same.remove()
    alone.remove()


def test_faces_of_another_network_are_refused(plain, folder):
    with pytest.raises(UnsupportedModel, match="faces 'mesh' has 1024 numbers - expected 8"):
        build_reference_tool(config_of(folder, "v2"), plain)
    faces = InsightFacesConfig(root=str(folder))
    with pytest.raises((BackendMissing, WeightsMissing), match="models/buffalo_l'"):
        build_reference_tool(config_of(folder, "v2", faces=faces), plain)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"photos": ()}, "photos is empty"),
        ({"style_strength": 120.0}, "style_strength is 120.0 - expected 0 to 100"),
        ({"identities": ("a.npy",) * 3}, "identities has 3 entries for 2 photos"),
        ({"photo_weights": (1.0,)}, "photo_weights has 1 entries for 2 photos"),
        ({"trigger": "my img"}, "trigger is 'my img' - expected one word"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        config_of(tmp_path, **settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"masked": 1.5}, "masked is 1.5"), ({"clip_layers": -1}, "clip_layers is -1")],
)
def test_trainings_that_cannot_be_meant_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        PhotoMakerTrainingConfig(**settings)

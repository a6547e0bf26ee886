"""Pseudo views under ControlNets that see the renders' geometry: what they see, off, bad input."""

from __future__ import annotations

import pytest
import torch

from image_tools.diffusion.loading import load_folder
from image_tools.errors import WeightsMissing
from image_tools.personalization.consistency import ConsistencyPrior, Student
from studio.config import load_scene
from studio.scene_inputs import check_inputs
from studio.scene_parts import build_renderer
from studio.subject.folder import SubjectFolder, read_images
from studio.subject.views import redraw_views, render_views, view_cameras
from tests.image_tools.control.tiny_controls import tiny_controlnet


@pytest.fixture(scope="module")
def prior(tiny_prior):
    return load_folder(tiny_prior, torch.device("cpu"))


@pytest.fixture(scope="module")
def net(prior, tmp_path_factory) -> str:
    """Folder of a ControlNet that does something."""
    folder = tmp_path_factory.mktemp("controlnet")
    tiny_controlnet(prior).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def shape(subject_scene):
    """The object before anything guided it, and its scene."""
    scene = load_scene(subject_scene, ("subject.views.count=5",)).config
    return scene, build_renderer(scene, 0, torch.Generator().manual_seed(0)).eval()


def redrawn(subject_scene, prior, renderer, path, *overrides: str) -> torch.Tensor:
    """Views of the object, rendered and redrawn into a folder of their own."""
    scene, folder = load_scene(subject_scene, overrides).config, SubjectFolder(path)
    config = scene.subject.views
    cameras = view_cameras(config, scene.stages[0].cameras, size=prior.image_size)
    render_views(renderer, cameras, folder, sees=[one.sees for one in config.controls])
    assert redraw_views(scene, prior, cameras, folder, should_stop=lambda: False)
    return read_images(folder.views("pseudo"))


def controls(net: str, strength: float, sees: str = "depth") -> str:
    return (
        f"subject.views.controls=[{{sees: {sees}, net: {{weights: {net}, strength: {strength}}}}}]"
    )


@pytest.fixture(params=["plain", "consistency"])
def subject_prior(request, prior):
    """What redraws: the prior, or one with a student, whose word stands in the scene's prompt."""
    if request.param == "plain":
        return prior
    return ConsistencyPrior(prior, [Student({}, {"sks duck": "duck"}, scale=2.0)])


@pytest.mark.parametrize("sees", ["depth", "normals"])
def test_controls_see_each_view_and_change_it(
    subject_scene, subject_prior, shape, net, tmp_path, sees
):
    """Each view by a picture of its own."""
    prior = subject_prior
    _, renderer = shape
    plain = redrawn(subject_scene, prior, renderer, tmp_path / "plain")
    seen = redrawn(subject_scene, prior, renderer, tmp_path / "seen", controls(net, 1.0, sees))
    differences = (seen - plain).abs().amax(dim=(1, 2, 3))
    assert (differences > 0.0).all()
    pictures = read_images(SubjectFolder(tmp_path / "seen").views(sees))
    assert pictures.shape == plain.shape
    assert pictures.std() > 0.0


def test_controls_of_strength_0_are_off_bit_for_bit(
    subject_scene, subject_prior, shape, net, tmp_path
):
    prior = subject_prior
    _, renderer = shape
    plain = redrawn(subject_scene, prior, renderer, tmp_path / "plain")
    off = redrawn(subject_scene, prior, renderer, tmp_path / "off", controls(net, 0.0))
    assert torch.equal(plain, off)


def test_a_missing_controlnet_is_told_before_the_run(subject_scene, tmp_path):
    scene = load_scene(subject_scene, (controls(str(tmp_path / "nowhere"), 1.0),)).config
    with pytest.raises(WeightsMissing, match=r"subject\.views\.controls\.0\.net"):
        check_inputs(scene)

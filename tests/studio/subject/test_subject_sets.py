"""A subject in 3D by a multi-view relative of the prior that learned it."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from image_tools.vision.cutout_configs import CutoutConfig
from renderers.configs import RandomCamerasConfig
from studio.config import load_scene
from studio.errors import ConfigError
from studio.run_folder import RunFolder
from studio.runner import Runner
from studio.subject.configs import PseudoViewsConfig
from studio.subject.folder import SubjectFolder, read_images, write_images
from studio.subject.views import read_views, view_cameras
from tests.image_tools.tiny_unets import tiny_multiview_unet
from tests.studio.conftest import start

CAMERAS = "{kind: multiview, batch_size: 4, height: 12, width: 12}"
RED = torch.tensor([0.9, 0.2, 0.1])
LAYER = "mid_block.resnets.0.conv1.weight"


@pytest.fixture(scope="module")
def relative(tmp_path_factory, tiny_prior) -> str:
    """A multi-view denoiser beside the tiny prior."""
    folder = tmp_path_factory.mktemp("pocket-mv")
    tiny_multiview_unet().save_pretrained(folder / "unet")
    shutil.copytree(tiny_prior / "scheduler", folder / "scheduler")
    return f"{{kind: pocket_mv, path: {folder}, base: {tiny_prior}}}"


@pytest.fixture(scope="module")
def whole(subject_scene, relative, tmp_path_factory) -> tuple[Runner, RunFolder]:
    """A run to its end in which the relative draws views and guides both stages."""
    overrides = [f"subject.views.prior={relative}", "subject.views.count=8"]
    for stage in ("shape", "refine"):
        overrides += [
            f"stages.{stage}.prior={relative}",
            f"stages.{stage}.cameras={CAMERAS}",
            f"stages.{stage}.guidance={{kind: multiview, guidance_scale: 5.0}}",
            f"stages.{stage}.background={{kind: random, share: batch}}",
        ]
    scene, run = start(subject_scene, tmp_path_factory.mktemp("sets"), *overrides)
    runner = Runner(scene, run)
    while runner.has_next():
        runner.step()
    return runner, run


def test_a_set_is_seen_from_four_sides_and_one_elevation(relative):
    config = load_scene(
        "dreambooth3d", (f"subject.views.prior={relative}", "subject.views.count=8")
    ).config.subject.views
    cameras = view_cameras(config, RandomCamerasConfig(), size=16)
    for first in (0, 4):
        azimuths = cameras.azimuth_deg[first : first + 4]
        turns = [float((b - a) % 360) for a, b in pairwise(azimuths)]
        assert turns == pytest.approx([90.0] * 3, abs=1e-3)
        assert cameras.elevation_deg[first : first + 4].unique().numel() == 1
    assert sorted((cameras.azimuth_deg % 360).round().tolist()) == [45.0 * k for k in range(8)]
    assert cameras.elevation_deg.unique().tolist() == [10.0, 30.0]


def test_the_relative_guides_with_what_was_learned_beside_its_own(whole, tiny_prior):
    runner, run = whole
    learned = load_file(SubjectFolder(run.subject_dir).weights("multiview", is_lora=False))
    before = load_file(tiny_prior / "unet" / "diffusion_pytorch_model.safetensors")[LAYER]
    own = tiny_multiview_unet().state_dict()[LAYER]
    change = learned[f"unet.{LAYER}"] - before
    guiding = dict(runner.prior.unet.named_parameters())[LAYER]
    assert float(change.abs().max()) > 1e-4
    torch.testing.assert_close(guiding.data, own + change)


def test_views_are_redrawn_in_sets(whole):
    """A view depends on its neighbours of the set: it is drawn together with them."""
    _, run = whole
    folder = SubjectFolder(run.subject_dir)
    assert len(read_images(folder.views("pseudo"))) == 8
    assert run.read_info()["preparations"]["views"]["denoiser_evaluations"] % (2 * 4) == 0


def test_views_are_read_on_white_where_they_are_cut_out(tmp_path):
    folder = SubjectFolder(tmp_path)
    steps = torch.linspace(-1, 1, 32)
    disc = steps[:, None] ** 2 + steps[None] ** 2 < 0.3
    grounds = torch.tensor([[0.2, 0.3, 0.9], [0.1, 0.8, 0.2]])
    views = torch.where(disc[None, ..., None], RED, grounds[:, None, None])
    write_images(folder.views("pseudo"), views)
    write_images(folder.views("masks"), torch.ones(2, 32, 32, 3))
    cameras = view_cameras(PseudoViewsConfig(count=2), RandomCamerasConfig(), size=32)
    plain, cut = (
        read_views(folder, cameras, cutout).images for cutout in (None, CutoutConfig(size=32))
    )
    torch.testing.assert_close(plain, views, atol=0.01, rtol=0)
    assert torch.equal(cut[:, 0, 0], torch.ones(2, 3))
    torch.testing.assert_close(cut[:, 16, 16], views[:, 16, 16], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("subject.views.count=6", "count is 6 - expected sets of 4 views"),
        ("subject.views.subject={kind: consistency}", "sets of views are predicted at once"),
    ],
)
def test_sets_that_cannot_be_drawn_are_refused(change: str, words: str, tmp_path: Path):
    lora = "subject.training={kind: dreambooth_lora}"
    with pytest.raises(ConfigError, match=words):
        load_scene("dreambooth3d", ("subject.images=x", "subject.word=duck", lora, change))

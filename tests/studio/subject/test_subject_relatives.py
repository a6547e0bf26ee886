"""A subject in 3D by a multi-view relative of the prior that learned it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from image_tools.diffusion.lora_files import read_lora
from image_tools.vision.cutout_configs import CutoutConfig
from renderers.configs import RandomCamerasConfig
from studio.config import load_scene
from studio.run_folder import RunFolder
from studio.runner import Runner
from studio.scene_parts import build_renderer
from studio.subject.configs import PseudoViewsConfig
from studio.subject.folder import SubjectFolder, read_images, write_images
from studio.subject.views import read_views, render_views, view_cameras
from tests.image_tools.tiny_unets import tiny_multiview_unet
from tests.studio.conftest import start
from tests.studio.subject.conftest import LORA

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


def run_with(
    relative: str, subject_scene: Path, out: Path, *overrides: str
) -> tuple[Runner, RunFolder]:
    """A run to its end in which the relative guides both stages."""
    overrides = list(overrides)
    for stage in ("shape", "refine"):
        overrides += [
            f"stages.{stage}.prior={relative}",
            f"stages.{stage}.cameras={CAMERAS}",
            f"stages.{stage}.guidance={{kind: multiview, guidance_scale: 5.0}}",
            f"stages.{stage}.background={{kind: random, share: batch}}",
        ]
    scene, run = start(subject_scene, out, *overrides)
    runner = Runner(scene, run)
    while runner.has_next():
        runner.step()
    return runner, run


def test_the_relative_guides_with_what_was_learned_beside_its_own(
    subject_scene, relative, tiny_prior, tmp_path
):
    runner, run = run_with(relative, subject_scene, tmp_path)
    learned = load_file(SubjectFolder(run.subject_dir).weights("multiview", is_lora=False))
    before = load_file(tiny_prior / "unet" / "diffusion_pytorch_model.safetensors")[LAYER]
    own = tiny_multiview_unet().state_dict()[LAYER]
    change = learned[f"unet.{LAYER}"] - before
    guiding = dict(runner.prior.unet.named_parameters())[LAYER]
    assert float(change.abs().max()) > 1e-4
    torch.testing.assert_close(guiding.data, own + change)


@pytest.mark.slow
def test_a_lora_acts_on_the_same_layers_of_the_relative(subject_scene, relative, tmp_path):
    runner, run = run_with(relative, subject_scene, tmp_path, LORA)
    path = SubjectFolder(run.subject_dir).weights("multiview", is_lora=True)
    learned = {name: delta for _, name, delta in read_lora(path).deltas()}
    acting = {
        name: layer
        for name, layer in runner.prior.unet.named_modules()
        if hasattr(layer, "lora_A") and layer.active_adapters
    }
    assert set(acting) == set(learned)
    own = tiny_multiview_unet().state_dict()
    for name, layer in acting.items():
        (adapter,) = layer.active_adapters
        assert torch.equal(layer.base_layer.weight, own[f"{name}.weight"])
        torch.testing.assert_close(layer.get_delta_weight(adapter), learned[name].weight())
    assert any(float(delta.weight().abs().max()) > 1e-4 for delta in learned.values())


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


def test_views_are_rendered_and_read_on_colours_where_they_are_cut_out_onto_colours(
    subject_scene, tmp_path
):
    """What the renders are drawn on differs by view, and what they are compared on is known."""
    scene = load_scene(subject_scene).config
    renderer = build_renderer(scene, 0, torch.Generator().manual_seed(0)).eval()
    cameras = view_cameras(PseudoViewsConfig(count=2), scene.stages[0].cameras, size=32)
    white, plain = SubjectFolder(tmp_path / "white"), SubjectFolder(tmp_path / "plain")
    cutout = CutoutConfig(size=32, ground="colors")
    render_views(renderer, cameras, white)
    render_views(renderer, cameras, plain, cutout=cutout)
    masks = read_images(plain.views("masks"))
    assert torch.equal(masks, read_images(white.views("masks")))
    on_white, on_colors = (read_images(folder.views("renders")) for folder in (white, plain))
    # What shows through is white - colour, the same wherever the object is not.
    ground = 1.0 - (on_white - on_colors)[:, :1, :1] / (1.0 - masks[:, :1, :1])
    expected = on_white - (1.0 - masks) * (1.0 - ground)
    torch.testing.assert_close(on_colors, expected, atol=0.02, rtol=0)
    assert float((ground[0] - ground[1]).norm()) > 0.02
    write_images(plain.views("pseudo"), on_colors)
    views = read_views(plain, cameras, cutout)
    assert views.grounds.shape == (2, 3)
    torch.testing.assert_close(views.images[:, 0, 0], views.grounds, atol=0.02, rtol=0)

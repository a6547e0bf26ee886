"""Measures of scenes of two objects, on painted boxes: objects alone, places, changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.editing_3d.measures import Placed, alone, change_in, layout_error
from renderers.backgrounds import build_background
from renderers.box_configs import BoxConfig
from renderers.boxes import box_masks
from renderers.configs import AlbedoMaterialConfig, SolidBackgroundConfig, VolumeRendererConfig
from renderers.fields.samples import FieldSamples
from renderers.volume_renderer import VolumeRenderer
from scenes.toybox.palette import COLORS
from studio.evaluation.views import eval_cameras

CAMERAS = eval_cameras(4, size=64)
OBJECTS = [
    Placed("mushroom", "red", BoxConfig((0.0, -0.45, 0.0), (0.6, 0.6, 0.8))),
    Placed("teapot", "blue", BoxConfig((0.0, 0.45, 0.0), (0.6, 0.6, 0.8))),
]


@pytest.fixture(scope="module")
def images():
    """Both boxes in their colours, over white."""
    masks = box_masks([item.box for item in OBJECTS], CAMERAS, (64, 64))
    colors = torch.tensor([COLORS[item.color] for item in OBJECTS])
    painted = torch.einsum("bkhw,kc->bhwc", masks, colors)
    return painted + (1.0 - masks.sum(dim=1))[..., None]


class PaintedBoxes(nn.Module):
    """Solid boxes, each in its object's colour."""

    radius = 1.0

    def set_fraction(self, fraction: float) -> None:
        """Nothing to adapt."""

    def inside(self, x: torch.Tensor) -> torch.Tensor:
        center, half = (
            torch.tensor([getattr(o.box, n) for o in OBJECTS]) for n in ("center", "size")
        )
        return ((x[:, None] - center).abs() < 0.5 * half).all(dim=-1).float()

    def density(self, x: torch.Tensor) -> torch.Tensor:
        return 200.0 * self.inside(x).sum(dim=-1)

    def query(self, x: torch.Tensor) -> FieldSamples:
        colors = torch.tensor([COLORS[item.color] for item in OBJECTS])
        return FieldSamples(self.density(x), self.inside(x) @ colors)


@pytest.mark.parametrize("k", [0, 1])
def test_an_object_is_seen_alone_from_all_sides_and_as_large_as_the_image(k):
    background = build_background(SolidBackgroundConfig(), torch.Generator())
    config = VolumeRendererConfig(backend="torch", eval_samples_per_ray=256)
    renderer = VolumeRenderer(config, PaintedBoxes(), background, AlbedoMaterialConfig())
    views = alone(renderer, CAMERAS, OBJECTS[k])
    mine, other = (torch.tensor(COLORS[OBJECTS[n].color]) for n in (k, 1 - k))
    near = [
        ((views - color).abs().amax(dim=-1) < 0.1).float().mean(dim=(1, 2))
        for color in (mine, other)
    ]
    assert (near[0] > 0.25).all(), "from the side that the other one hides as well"
    assert (near[1] == 0.0).all()
    assert (views[:, 0] > 0.9).all(), "whole"


def test_layout_error_is_small_in_place_and_the_shift_of_what_is_moved(images):
    for item in OBJECTS:
        found = layout_error(images[:1], CAMERAS[:1], item)
        assert found["views"] == 1
        # A whole box is 0.03 off: its front, which is seen, is nearer than its middle.
        assert found["sideways"] < 0.035
    moved = layout_error(images[:1].roll(8, dims=2), CAMERAS[:1], OBJECTS[0])
    assert moved["sideways"] == pytest.approx(8 / 64, abs=0.035)


def test_change_is_found_in_the_box_that_changed(images):
    green = replace(OBJECTS[0], color="green")
    masks = box_masks([item.box for item in OBJECTS], CAMERAS, (64, 64))
    shift = torch.tensor(COLORS[green.color]) - torch.tensor(COLORS["red"])
    after = images + masks[:, 0, ..., None] * shift
    changed, other, elsewhere = change_in(images, after, CAMERAS, [o.box for o in OBJECTS])
    assert changed > 0.5 * float(shift.abs().mean())
    assert other < 0.01
    assert elsewhere == pytest.approx(0.0, abs=1e-6)

"""Measures of scenes of two objects, on painted boxes: cut-outs, places, changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.editing_3d.measures import Placed, change_in, cut_outs, layout_error
from renderers.box_configs import BoxConfig
from renderers.boxes import box_masks
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


@pytest.mark.parametrize("k", [0, 1])
def test_cut_outs_show_one_object_where_it_is_not_hidden(images, k):
    cuts = cut_outs(images, CAMERAS, OBJECTS, k)
    # From the front, from behind, and from the side on which it is the nearer one.
    assert cuts.shape == (3, 64, 64, 3)
    other = torch.tensor(COLORS[OBJECTS[1 - k].color])
    front_and_back = cuts if k else cuts[[0, 1]]
    near = (front_and_back - other).abs().amax(dim=-1) < 0.1
    assert near.float().mean() < 0.01
    assert (cuts[:, 32, 32] - torch.tensor(COLORS[OBJECTS[k].color])).abs().max() < 0.02


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

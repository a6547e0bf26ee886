"""Objects with several fronts, built from true ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scenes.toybox.objects import ObjectSpec, ToyObject, build_object
from studio.evaluation.janus_objects import two_faced, with_fronts
from studio.evaluation.views import eval_cameras, render_toy

TOY = build_object(ObjectSpec("penguin", "blue", "plain", 9))


def pictures(toy: ToyObject, elevation_deg: float = 0.0) -> torch.Tensor:
    """Views at 0, 90, 180 and 270 degrees."""
    return render_toy(toy, eval_cameras(4, elevation_deg=elevation_deg)).rgb


def test_one_front_is_the_object_itself():
    same = with_fronts(TOY, [True, False, False, False])
    assert len(same.faces) == len(TOY.faces)
    torch.testing.assert_close(pictures(same), pictures(TOY))


def test_four_fronts_look_alike_from_every_quarter():
    views = pictures(with_fronts(TOY, [True] * 4), elevation_deg=15.0)
    for k in (1, 2, 3):
        assert (views[k] - views[0]).abs().mean() < 2e-3
    # In the middle of the image, where only the front quarter is seen, it is the true front.
    true = pictures(TOY, elevation_deg=15.0)[0]
    assert (views[0] - true)[:, 28:36].abs().mean() < 0.05
    assert (views[2] - pictures(TOY, elevation_deg=15.0)[2])[:, 28:36].abs().mean() > 0.1


def test_a_front_stands_where_it_was_asked_for():
    views = pictures(with_fronts(TOY, [True, True, False, False]), elevation_deg=15.0)
    true = pictures(TOY, elevation_deg=15.0)
    middle = slice(28, 36)
    beside_front = (views[1] - true[0])[:, middle].abs().mean()
    beside_side = (views[1] - true[1])[:, middle].abs().mean()
    assert beside_front < 0.5 * beside_side


def test_a_two_faced_object_is_its_own_mirror_image():
    # Seen from the back, a mirror image at x = 0 shows the front with left and right exchanged.
    views = pictures(two_faced(TOY))
    assert (views[2] - views[0].flip(1)).abs().mean() < 2e-3
    assert (views[0] - pictures(TOY)[0]).abs().mean() < 0.02


@pytest.mark.parametrize("fronts", [[True] * 4, [True, False, True, False]])
def test_faces_keep_their_orientation_and_colours_their_faces(fronts):
    toy = with_fronts(TOY, fronts)
    corners = toy.vertices[toy.faces]
    geometric = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    shading = toy.normals[toy.faces].mean(1)
    area = np.linalg.norm(geometric, axis=1)
    agree = (geometric * shading).sum(1) > 0
    assert agree[area > 1e-6].mean() > 0.99
    assert len(toy.face_color) == len(toy.face_patterned) == len(toy.faces)

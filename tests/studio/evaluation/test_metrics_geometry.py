"""Silhouettes and surface distances in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from renderers.errors import EmptyGeometry
from renderers.mesh import Mesh
from studio.evaluation.metrics_geometry import best_yaw_iou, chamfer, visible_points


def disc(radius: float, n: int = 3000) -> np.ndarray:
    """Points evenly on a horizontal disc."""
    k = np.arange(n) + 0.5
    r, angle = radius * np.sqrt(k / n), k * 2.399963
    return np.stack([r * np.cos(angle), r * np.sin(angle), 0 * r], 1)


def box(low: tuple[float, float, float], high: tuple[float, float, float]) -> Mesh:
    """A closed box with outward faces."""
    x0, x1 = np.asarray(low), np.asarray(high)
    corners = np.array([[(x1 if (i >> d) & 1 else x0)[d] for d in range(3)] for i in range(8)])
    quads = ((0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5))
    faces = [f for a, b, c, d in quads for f in ((a, b, c), (a, c, d))]
    return Mesh(torch.tensor(corners).float(), torch.tensor(faces))


def joined(*meshes: Mesh) -> Mesh:
    """One mesh of several."""
    starts = np.cumsum([0] + [m.n_vertices for m in meshes[:-1]]).tolist()
    faces = torch.cat([m.t_pos_idx + s for m, s in zip(meshes, starts)])
    return Mesh(torch.cat([m.v_pos for m in meshes]), faces)


def ring_of_masks(yaws: int) -> torch.Tensor:
    """A mask whose bar moves one column a turn step: no two turns look alike."""
    masks = torch.zeros(yaws, 8, 64)
    for k in range(yaws):
        masks[k, :, 2 * k : 2 * k + 8] = 1.0
    return masks


@pytest.mark.parametrize("turns", [0, 1, 5, -3])
def test_iou_of_a_turned_object_is_one_and_the_turn_is_found(turns):
    true = ring_of_masks(24)
    # The asset is the true object turned by `turns` steps: at azimuth a it shows what the true
    # object shows at a - turn.
    asset = true.roll(turns, 0)[::3]
    found = best_yaw_iou(asset, true[None])
    assert found.iou == 1.0
    assert found.yaw_deg == 15.0 * turns


def test_iou_is_overlap_over_union():
    asset, true = torch.zeros(4, 8, 8), torch.zeros(1, 4, 8, 8)
    asset[:, :, :4], true[:, :, :, 2:] = 1.0, 1.0
    assert best_yaw_iou(asset, true).iou == pytest.approx(2 / 8)


def test_iou_is_a_mean_over_individuals_at_one_common_turn():
    true = ring_of_masks(8)
    both = torch.stack([true, true.roll(4, 0)])
    alone = best_yaw_iou(true, true[None].roll(4, 1)).iou
    assert alone == 1.0
    assert best_yaw_iou(true, both).iou == pytest.approx(0.5, abs=1e-6)


def test_iou_of_nothing_is_zero_and_odd_counts_are_refused():
    assert best_yaw_iou(torch.zeros(4, 8, 8), torch.ones(1, 4, 8, 8)).iou == 0.0
    with pytest.raises(ValueError, match="expected a multiple"):
        best_yaw_iou(torch.zeros(5, 8, 8), torch.zeros(1, 24, 8, 8))


def test_chamfer_of_shifted_planes_is_their_distance():
    points = disc(1.0)
    assert chamfer(points, [points]) == 0.0
    assert chamfer(points + np.array([0, 0, 0.1]), [points]) == pytest.approx(0.1, rel=1e-3)


def test_chamfer_averages_both_directions():
    # From a disc of radius r to a larger one of radius 1: 0 there, and back the mean of d - r over
    # the ring outside r, which is (2/3 (1 - r^3) - r (1 - r^2)) over the whole disc.
    r = 0.5
    expected = (2 / 3 * (1 - r**3) - r * (1 - r**2)) / 2
    assert chamfer(disc(r), [disc(1.0)]) == pytest.approx(expected, abs=1e-2)


def test_chamfer_finds_the_turn_and_averages_individuals():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(300, 3))
    angle = np.deg2rad(45)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    assert chamfer(points @ turn.T, [points]) == pytest.approx(0.0, abs=1e-6)
    low, high = disc(1.0), disc(1.0) + np.array([0, 0, 0.3])
    assert chamfer(low, [low, high]) == pytest.approx(0.15, rel=1e-2)


def test_visible_points_lie_evenly_on_the_surface(generator):
    points = visible_points(box((-0.5, -0.5, -0.5), (0.5, 0.5, 0.5)), 6000, generator)
    assert len(points) == 6000
    face = np.abs(points).argmax(1) * 2 + (points[np.arange(6000), np.abs(points).argmax(1)] > 0)
    np.testing.assert_allclose(np.abs(points).max(1), 0.5, atol=1e-6)
    # Six equal faces: 1000 points each, with a standard deviation of 29.
    assert np.abs(np.bincount(face, minlength=6) - 1000).max() < 150


def test_visible_points_leave_out_what_is_inside(generator):
    hidden = box((-0.2, -0.2, -0.2), (0.2, 0.2, 0.2))
    points = visible_points(joined(box((-0.5,) * 3, (0.5,) * 3), hidden), 2000, generator)
    assert np.abs(points).max(1).min() > 0.49


def test_visible_points_refuse_a_mesh_without_area(generator):
    flat = Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]))
    with pytest.raises(EmptyGeometry, match="no area"):
        visible_points(flat, 10, generator)

"""Where assets stand and how large they are, flat ones and tiny ones included."""

from __future__ import annotations

import numpy as np
import pytest

from studio.export.obj import obj_text
from studio.export.placement import WORLD_TO_GLTF, place
from studio.export.shading import flatten
from studio.export.triangles import Triangles
from tests.studio.export.meshes import ball, box


def sheet(width: float = 4.0, depth: float = 2.0) -> Triangles:
    """A rectangle on the ground, looking up."""
    x, y = width / 2, depth / 2
    corners = np.array([[-x, -y, 0.3], [x, -y, 0.3], [x, y, 0.3], [-x, y, 0.3]])
    return Triangles.of(corners, np.array([[0, 1, 2], [0, 2, 3]]))


def test_height_is_that_of_the_up_axis():
    placed, frame = place(box((1.0, 2.0, 4.0)), height_m=3.0)
    lower, upper = placed.bounds()
    np.testing.assert_allclose(upper - lower, [1.5, 3.0, 0.75])
    np.testing.assert_allclose(lower[1], 0.0, atol=1e-12)
    assert frame.scale == pytest.approx(0.75)


def test_flat_sheet_is_scaled_by_its_longest_side():
    placed, frame = place(sheet(), height_m=1.0)
    lower, upper = placed.bounds()
    np.testing.assert_allclose(upper - lower, [0.5, 0.0, 1.0], atol=1e-12)
    back = (placed.v_pos / frame.scale + np.array(frame.base)) @ WORLD_TO_GLTF
    np.testing.assert_allclose(back, sheet().v_pos, atol=1e-12)


def test_vertices_of_no_face_count_for_nothing():
    mesh = ball(0.5)
    stray = Triangles(np.concatenate([[[3.0, 4.0, 9.0]], mesh.v_pos]), mesh.t_pos_idx + 1)
    placed, frame = place(stray, height_m=1.0)
    expected, same = place(mesh, height_m=1.0)
    assert frame == same
    np.testing.assert_array_equal(placed.corners(), expected.corners())


@pytest.mark.parametrize("height_m", [1e-5, 1.0, 1e5])
def test_obj_keeps_positions_exactly_at_any_size(height_m):
    placed, _ = place(ball(subdivisions=2), height_m=height_m)
    flat = flatten(placed, crease_deg=40.0)
    lines = obj_text(flat, name="ball", mtl_name=None).splitlines()
    written = [line.split()[1:] for line in lines if line.startswith("v ")]
    np.testing.assert_array_equal(np.array(written, dtype=np.float32), flat.position)


@pytest.mark.parametrize(("make", "closed"), [(ball, True), (sheet, False)])
def test_open_surfaces_are_known(make, closed):
    assert flatten(make(), crease_deg=40.0).closed is closed

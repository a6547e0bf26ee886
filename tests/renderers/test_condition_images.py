"""Regions of a render: parts of a mesh, in front of a background that has none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from renderers.cameras import orbit_cameras
from renderers.condition_images import mesh_parts, part_ids
from renderers.errors import StudioError
from renderers.mesh import Mesh
from tests.renderers.test_painted_mesh import box, field, renderer


def two_boxes() -> Mesh:
    """One cube to the left and one to the right of the front camera."""
    left, right = box(0.6, (0.0, -0.6, 0.0)), box(0.6, (0.0, 0.6, 0.0))
    return Mesh(
        torch.cat([left.v_pos, right.v_pos]),
        torch.cat([left.t_pos_idx, right.t_pos_idx + left.n_vertices]),
    )


def front(size: int = 32):
    return orbit_cameras(1, elevation_deg=0, distance=4.0, fovy_deg=40, height=size, width=size)


def test_faces_that_hang_together_are_one_part_numbered_by_their_first_face():
    assert mesh_parts(two_boxes()).tolist() == [0] * 12 + [1] * 12
    backwards = two_boxes()
    backwards = replace(backwards, t_pos_idx=backwards.t_pos_idx.flip(0))
    assert mesh_parts(backwards).tolist() == [0] * 12 + [1] * 12


def test_each_part_has_its_id_where_it_is_seen():
    scene, cameras = renderer(field(two_boxes())), front()
    output = scene.render(cameras)
    ids = part_ids(output, cameras)[0]
    # From +x with +z up, +y is to the right.
    assert set(ids[:, :16].unique().tolist()) == {0, 1}
    assert set(ids[:, 16:].unique().tolist()) == {0, 2}
    covered = output.opacity[0, ..., 0]
    assert bool((covered[ids > 0] > 0.0).all())
    assert bool((ids[covered > 0.999] > 0).all())


def test_a_volume_is_one_region():
    scene, cameras = renderer(field(box())), front()
    output = replace(scene.render(cameras), mesh=None)
    ids = part_ids(output, cameras)
    assert torch.equal(ids == 1, output.opacity[..., 0] > 0.5)
    with pytest.raises(StudioError, match="same size"):
        part_ids(output, front(16))

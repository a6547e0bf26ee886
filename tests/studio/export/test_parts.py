"""Which parts of a surface stay: floaters, parts that touch, parts inside others."""

from __future__ import annotations

import numpy as np
import pytest

from scenes.toybox.catalog import KIND_NAMES
from scenes.toybox.objects import ObjectSpec, build_object
from studio.export.cleanup import weld
from studio.export.configs import ExportConfig
from studio.export.parts import drop_parts
from studio.export.pipeline import export_mesh
from studio.export.triangles import Triangles, face_components
from tests.studio.export.meshes import ball, box, flipped, together


def toy_parts(kind: str) -> Triangles:
    toy = build_object(ObjectSpec(kind, "purple", individual=1))
    return weld(Triangles.of(toy.vertices, toy.faces))


def without_face(mesh: Triangles) -> Triangles:
    return mesh.keep_faces(np.arange(len(mesh.t_pos_idx)) > 0)


def test_floater_is_dropped_and_second_object_kept():
    mesh = together(ball(1.0), ball(0.6, (2.5, 0, 0)), ball(0.05, (0, 0, 2)))
    kept, floaters, hidden = drop_parts(mesh, min_component=0.02)
    assert (floaters, hidden) == (1, 0)
    assert kept.volume() == pytest.approx(ball(1.0).volume() + ball(0.6).volume())


def test_thin_part_with_little_volume_but_much_area_stays():
    mesh = together(ball(1.0), box((2.0, 2.0, 0.01), (0, 0, 2.0)))
    assert drop_parts(mesh, min_component=0.02)[1] == 0


def test_cavity_wall_and_solid_inside_it_are_dropped():
    mesh = together(ball(1.0), flipped(ball(0.8)), ball(0.5))
    kept, floaters, hidden = drop_parts(mesh, min_component=0.02)
    assert (floaters, hidden) == (0, 2)
    assert kept.volume() == pytest.approx(ball(1.0).volume())


def test_zero_keeps_every_visible_part():
    mesh = together(ball(1.0), ball(0.01, (2, 0, 0), subdivisions=1))
    assert drop_parts(mesh, min_component=0.0)[1:] == (0, 0)


@pytest.mark.parametrize("x", [0.98, 1.0, 1.03], ids=["mostly inside", "half inside", "outside"])
def test_small_part_that_reaches_into_the_body_stays(x):
    mesh = together(ball(1.0), ball(0.05, (x, 0, 0)))
    assert drop_parts(mesh, min_component=0.04)[1:] == (0, 0)


def test_small_part_beside_the_body_is_a_floater_unless_a_chain_leads_to_it():
    far = ball(0.05, (1.14, 0, 0))
    assert drop_parts(together(ball(1.0), far), min_component=0.04)[1] == 1
    link = ball(0.05, (1.04, 0, 0))
    assert drop_parts(together(ball(1.0), far, link), min_component=0.04)[1] == 0


def test_coarse_parts_that_cross_without_a_vertex_near_the_crossing_touch():
    needle = box((0.02, 0.02, 1.2), (0, 0, 1.0))
    assert drop_parts(together(box((2, 2, 2)), needle), min_component=0.04)[1:] == (0, 0)


def test_part_turned_inside_out_is_no_cavity_when_it_stands_alone():
    mesh = together(ball(1.0), flipped(ball(0.8, (3, 0, 0))))
    assert drop_parts(mesh, min_component=0.04)[1:] == (0, 0)


def test_parts_with_a_border_are_judged_by_their_vertices():
    touching = without_face(ball(0.05, (1.0, 0, 0)))
    inside = without_face(ball(0.05, (0.2, 0, 0)))
    away = without_face(ball(0.05, (2.0, 0, 0)))
    mesh = together(ball(1.0), touching, inside, away)
    assert drop_parts(mesh, min_component=0.04)[1:] == (1, 1)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_every_part_of_a_toybox_object_stays(kind):
    mesh = toy_parts(kind)
    for min_component in (0.0, 0.04):
        kept, floaters, hidden = drop_parts(mesh, min_component=min_component)
        assert (floaters, hidden) == (0, 0)
        assert len(kept.t_pos_idx) == len(mesh.t_pos_idx)


def test_exported_duck_has_its_beak(tmp_path):
    """Its parts are separate closed solids that reach into each other."""
    mesh = toy_parts("duck")
    n_parts = face_components(mesh).max() + 1
    config = ExportConfig(formats=("glb",), appearance="vertex")
    result = export_mesh(mesh, lambda x, _: x.abs().clamp(0, 1), config, tmp_path)
    assert n_parts > 5
    assert (result.floaters_dropped, result.hidden_dropped) == (0, 0)
    assert result.n_faces == len(mesh.t_pos_idx)
    assert result.problems == ()


def test_many_specks_and_cavities_of_a_noisy_field_are_dropped():
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(60, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    specks = [ball(0.02, 1.3 * d, subdivisions=1) for d in directions]
    cavities = [flipped(ball(0.02, 0.9 * d, subdivisions=1)) for d in directions]
    kept, floaters, hidden = drop_parts(
        together(ball(1.0, subdivisions=5), *specks, *cavities), min_component=0.04
    )
    assert floaters == face_components(together(*specks)).max() + 1
    assert hidden == face_components(together(*cavities)).max() + 1
    assert len(kept.t_pos_idx) == len(ball(1.0, subdivisions=5).t_pos_idx)

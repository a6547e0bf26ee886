"""Simplification, foliage, winding, normals and placement against shapes known in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scenes.objects.catalog import read_catalog
from scenes.objects.convert import convert, placed
from scenes.objects.decimate import decimated, overlap, silhouettes
from scenes.objects.foliage import split_foliage
from scenes.objects.mesh import corner_normals
from scenes.objects.obj_reader import Material, read_obj
from scenes.objects.simplify import simplified, thinned, welded
from scenes.objects.winding import agreeing, outward
from scenes.toybox.objects import OBJECT_RADIUS
from tests.scenes.objects.sources import library as make_library
from tests.scenes.objects.sources import plain, sample_library, signed_volume, sphere, square


def test_decimation_keeps_the_shape_and_the_goal() -> None:
    mesh = sphere(rings=60, segments=120)
    light = simplified(mesh, faces=1000)
    assert 800 <= len(light.t_pos_idx) <= 1050
    exact = 4 / 3 * np.pi * 0.8**3
    assert signed_volume(light.v_pos, light.t_pos_idx) == pytest.approx(exact, rel=0.02)


def test_a_light_mesh_keeps_every_face() -> None:
    mesh = welded(sphere())
    assert np.array_equal(simplified(mesh, faces=4000).t_pos_idx, mesh.t_pos_idx)


def test_touching_thin_slats_keep_their_outline() -> None:
    cube, slats, faces = sphere(rings=6, segments=12), [], []
    for k in range(60):
        at = cube.v_pos * (1.0, 0.008, 0.4) + (0.0, -0.6 + 0.02 * k, 0.0)
        slats.append(at)
        faces.append(cube.t_pos_idx + k * len(at))
    v_pos, tri = np.concatenate(slats), np.concatenate(faces)
    points, less = decimated(v_pos, tri, faces=1500)
    assert len(less) <= 1500 * 1.05
    assert overlap(silhouettes(points, less), silhouettes(v_pos, tri)) > 0.9


def test_overlap_is_intersection_over_union() -> None:
    one, other = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    one[0], other[:, :2] = True, True
    assert overlap(one, other) == pytest.approx(2 / 6)
    assert overlap(~one & one, other & ~other) == 1.0


def test_texture_coordinates_survive_decimation() -> None:
    light = simplified(square(cells=40), faces=200)
    assert len(light.t_pos_idx) <= 210
    at = light.v_pos[light.t_pos_idx].reshape(-1, 3)
    uv = light.v_tex[light.t_tex_idx].reshape(-1, 2)
    assert np.allclose(uv, at[:, :2] * (2, 1), atol=5e-3)


def test_materials_stay_where_they_were() -> None:
    mesh = sphere(rings=60, segments=120)
    upper = mesh.v_pos[mesh.t_pos_idx].mean(1)[:, 2] > 0
    two = (Material("low", (0, 0, 1)), Material("high", (1, 0, 0)))
    light = simplified(replace(mesh, face_material=upper.astype(int), materials=two), faces=1000)
    height = light.v_pos[light.t_pos_idx].mean(1)[:, 2]
    clear = np.abs(height) > 0.1
    names = np.array([light.materials[k].name for k in light.face_material])
    assert np.array_equal(names[clear] == "high", height[clear] > 0)


def test_seams_do_not_smear_the_texture() -> None:
    left, right = square(cells=30), square(cells=30)
    # The second half continues the surface, but lies elsewhere in the texture.
    both = replace(
        left,
        v_pos=np.concatenate([left.v_pos, right.v_pos + np.array([1, 0, 0])]),
        v_tex=np.concatenate([left.v_tex, right.v_tex + np.array([10, 5])]),
        t_pos_idx=np.concatenate([left.t_pos_idx, right.t_pos_idx + len(left.v_pos)]),
        t_tex_idx=np.concatenate([left.t_tex_idx, right.t_tex_idx + len(left.v_tex)]),
        face_material=np.zeros(2 * len(left.t_pos_idx), int),
    )
    light = simplified(both, faces=300)
    uv = light.v_tex[light.t_tex_idx]
    assert np.ptp(uv, axis=1).max() < 3.0  # a smeared triangle would span the jump of 8 or more


def test_equal_positions_and_repeated_faces_become_one() -> None:
    mesh = sphere()
    twice = replace(
        mesh,
        v_pos=np.concatenate([mesh.v_pos, mesh.v_pos]),
        t_pos_idx=np.concatenate([mesh.t_pos_idx, mesh.t_pos_idx[:, ::-1] + len(mesh.v_pos)]),
        t_tex_idx=np.concatenate([mesh.t_tex_idx, mesh.t_tex_idx]),
        face_material=np.zeros(2 * len(mesh.t_pos_idx), int),
    )
    once = welded(mesh)
    assert len(welded(twice).v_pos) == len(once.v_pos)
    assert len(welded(twice).t_pos_idx) == len(once.t_pos_idx)


def leaves(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Separate small squares."""
    rng = np.random.default_rng(0)
    corner = np.array([(0, 0, 0), (0.01, 0, 0), (0.01, 0.01, 0), (0, 0.01, 0)])
    v_pos = (rng.uniform(-1, 1, (count, 1, 3)) + corner).reshape(-1, 3)
    tri = (np.arange(count)[:, None, None] * 4 + np.array([(0, 1, 2), (0, 2, 3)])).reshape(-1, 3)
    return v_pos, tri


def test_fewer_leaves_cover_the_same_area() -> None:
    mesh = plain(*leaves(3000))

    def area(v_pos: np.ndarray, tri: np.ndarray) -> float:
        a, b, c = (v_pos[tri[:, k]] for k in range(3))
        return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)

    light = thinned(mesh, faces=2000)
    assert len(light.t_pos_idx) <= 2000
    before, after = area(mesh.v_pos, mesh.t_pos_idx), area(light.v_pos, light.t_pos_idx)
    assert after == pytest.approx(before, rel=0.01)


def test_a_trunk_is_left_to_decimation() -> None:
    ball = sphere(rings=20, segments=40)
    v_pos, tri = leaves(1000)
    mesh = plain(
        np.concatenate([ball.v_pos, v_pos]),
        np.concatenate([ball.t_pos_idx, tri + len(ball.v_pos)]),
    )
    bodies, small = split_foliage(mesh, faces=800)
    assert np.array_equal(bodies, np.arange(len(ball.t_pos_idx)))
    assert 0 < len(small.t_pos_idx) <= 600
    assert len(split_foliage(mesh, faces=4000)[1].t_pos_idx) == 0


def test_faces_that_look_any_way_are_made_to_look_out() -> None:
    mesh = welded(sphere())
    turned = np.random.default_rng(0).random(len(mesh.t_pos_idx)) < 0.4
    mixed = np.where(turned[:, None], mesh.t_pos_idx[:, ::-1], mesh.t_pos_idx)
    fixed = outward(mesh.v_pos, mixed)
    volume = signed_volume(mesh.v_pos, mesh.t_pos_idx)
    assert signed_volume(mesh.v_pos, fixed) == pytest.approx(volume)
    assert signed_volume(mesh.v_pos, outward(mesh.v_pos, fixed[:, ::-1])) == pytest.approx(volume)


def test_patches_are_turned_one_by_one() -> None:
    one, other = welded(sphere(radius=0.3)), welded(sphere(radius=0.2))
    v_pos = np.concatenate([one.v_pos - np.array([0.4, 0, 0]), other.v_pos + np.array([0.4, 0, 0])])
    inside_out = np.concatenate([one.t_pos_idx, other.t_pos_idx[:, ::-1] + len(one.v_pos)])
    _, patch = agreeing(inside_out)
    assert len(np.unique(patch)) == 2
    expected = 4 / 3 * np.pi * (0.3**3 + 0.2**3)
    assert signed_volume(v_pos, outward(v_pos, inside_out)) == pytest.approx(expected, rel=0.03)


def test_normals_are_smooth_on_a_sphere_and_sharp_on_a_cube() -> None:
    ball = welded(sphere())
    normal = corner_normals(ball.v_pos, ball.t_pos_idx)
    radial = ball.v_pos[ball.t_pos_idx] / 0.8
    assert (normal * radial).sum(-1).min() > np.cos(np.deg2rad(8))
    cube = welded(read_obj(sample_library(), "test/cube/cube.obj"))
    normal = corner_normals(cube.v_pos, cube.t_pos_idx)
    a, b, c = (cube.v_pos[cube.t_pos_idx[:, k]] for k in range(3))
    face = np.cross(b - a, c - a)
    face /= np.linalg.norm(face, axis=1, keepdims=True)
    assert np.allclose(normal, face[:, None], atol=1e-6)


def test_models_are_placed_with_their_front_at_azimuth_zero() -> None:
    cube = read_catalog("Test", sample_library())[0]
    mesh = read_obj(sample_library(), cube.model)
    at = placed(mesh, cube, 0.0).v_pos
    assert np.linalg.norm(at, axis=1).max() == pytest.approx(OBJECT_RADIUS)
    extent = np.ptp(at, axis=0)  # depth, width, height of the catalogue
    assert np.allclose(extent / extent[0], (1.0, 2.0, 4.0))
    source_front = mesh.v_pos[:, 2] > 0  # +z in the file
    assert np.array_equal(at[:, 0] > 0, source_front)
    assert np.array_equal(at[:, 1] > 0, mesh.v_pos[:, 0] > 0)
    assert np.array_equal(at[:, 2] > 0, mesh.v_pos[:, 1] > 0)
    turned = placed(mesh, cube, 90.0).v_pos
    assert np.array_equal(turned[:, 1] > 0, source_front)  # from +x to +y


def test_stray_vertices_do_not_count_for_the_size() -> None:
    library = sample_library()
    text = library.read("test/cube/cube.obj").decode() + "v 50 0 0\n"
    files = {n: library.read(n) for n in library.namelist()} | {"test/cube/cube.obj": text}
    changed = make_library(files)
    mesh = convert(read_catalog("Test", changed)[0], changed)
    assert np.allclose(np.ptp(mesh.v_pos, axis=0) / np.ptp(mesh.v_pos[:, 0]), (1.0, 2.0, 4.0))


def test_invisible_parts_count_for_the_size_but_are_not_drawn() -> None:
    library = sample_library()
    text = library.read("test/cube/cube.mtl").decode().replace("d 1.0", "d 0.0")
    files = {n: library.read(n) for n in library.namelist()} | {"test/cube/cube.mtl": text}
    changed = make_library(files)
    mesh = convert(read_catalog("Test", changed)[0], changed)
    assert mesh.parts == ("face",)  # what is left is the front: 20 cm wide, 40 cm high
    extent = np.ptp(mesh.v_pos, axis=0)
    assert extent[2] / extent[1] == pytest.approx(2.0)
    assert np.linalg.norm(mesh.v_pos, axis=1).max() == pytest.approx(OBJECT_RADIUS)


def test_a_converted_model_has_its_image_the_right_way_up() -> None:
    library = sample_library()
    mesh = convert(read_catalog("Test", library)[0], library)
    assert len(mesh.images) == 1
    assert mesh.parts[int(np.argmax(mesh.image))] == "face"
    faces = mesh.image[mesh.face_material] >= 0
    at = mesh.v_pos[mesh.t_pos_idx[faces]].reshape(-1, 3)
    uv = mesh.v_tex[mesh.t_tex_idx[faces]].reshape(-1, 2)
    assert np.allclose(at[:, 0], at[:, 0].max())  # the textured side is the front
    assert np.array_equal(uv[:, 0] > 0.5, at[:, 1] > 0)
    assert np.array_equal(uv[:, 1] < 0.5, at[:, 2] > 0)  # v grows downwards
    assert signed_volume(mesh.v_pos, mesh.t_pos_idx) > 0

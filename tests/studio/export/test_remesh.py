"""Remeshing by the extra `geometry`: even triangles, closed surfaces, the same shape."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import trimesh

from studio.errors import BackendMissing
from studio.export.configs import ExportConfig
from studio.export.glb_check import check_glb
from studio.export.pipeline import export_field
from studio.export.remesh import check_remesh, isotropic, poisson, remesh
from studio.export.triangles import Triangles, boundary_edges
from tests.studio.export.analytic_fields import robot

NEEDED = {
    "isotropic": ("pymeshlab", "libgl1 libopengl0"),
    "poisson": ("open3d", "libgl1 libegl1 libusb-1.0-0"),
}


def needs(kind: str) -> None:
    """Skip where the package is missing, or where the system lacks its libraries."""
    package, libraries = NEEDED[kind]
    try:
        check_remesh(kind)
    except BackendMissing:
        pytest.skip(f"the extra geometry ({package}) is not installed: make test-geometry")
    except (ImportError, OSError) as error:
        pytest.skip(f"{package} does not load ({error}); on Debian: apt install {libraries}")


def ball(*, opened: bool = False) -> Triangles:
    """A unit sphere whose triangles are of very different sizes; opened at the top when asked."""
    made = trimesh.creation.uv_sphere(radius=1.0, count=[24, 96])
    faces = np.asarray(made.faces)
    if opened:
        centre = np.asarray(made.triangles_center)
        faces = faces[centre[:, 2] < 0.8]
    mesh = trimesh.Trimesh(made.vertices, faces, process=True)
    return Triangles.of(mesh.vertices, mesh.faces)


def shape_quality(mesh: Triangles) -> float:
    """Mean of 4 sqrt(3) area / sum of squared edges: 1 for equilateral triangles."""
    corners = mesh.corners()
    squares = ((corners - np.roll(corners, 1, axis=1)) ** 2).sum((1, 2))
    return float((4.0 * np.sqrt(3.0) * mesh.areas() / squares).mean())


@pytest.mark.parametrize("opened", [False, True], ids=["closed", "opened"])
def test_isotropic_triangles_are_even_and_closed(opened):
    needs("isotropic")
    before = ball(opened=opened)
    after = isotropic(before, 1500)
    assert len(boundary_edges(after)) == 0
    assert 1000 < len(after.t_pos_idx) < 2200
    assert shape_quality(after) > max(0.9, shape_quality(before))
    areas = after.areas()
    assert np.percentile(areas, 95) / np.percentile(areas, 5) < 4
    # A cap of height 0.2 is missing from the opened ball: pi h^2 (3 r - h) / 3.
    lost = np.pi * 0.2**2 * 2.8 / 3 if opened else 0.0
    assert after.volume() == pytest.approx(4 / 3 * np.pi - lost, rel=0.03)


def test_poisson_closes_an_opened_ball_into_a_round_one():
    needs("poisson")
    after = poisson(ball(opened=True), 4000)
    assert len(boundary_edges(after)) == 0
    assert len(after.t_pos_idx) > 2000
    assert after.volume() == pytest.approx(4 / 3 * np.pi, rel=0.06)
    below = after.v_pos[after.v_pos[:, 2] < 0.6]
    assert np.abs(np.linalg.norm(below, axis=1) - 1.0).max() < 0.03


@pytest.mark.parametrize("kind", ["isotropic", "poisson"])
def test_remeshing_is_repeatable(kind):
    needs(kind)
    first, second = (remesh(ball(), kind, max_faces=800) for _ in range(2))
    assert np.array_equal(first.v_pos, second.v_pos)
    assert np.array_equal(first.t_pos_idx, second.t_pos_idx)


@pytest.mark.parametrize("kind", ["isotropic", "poisson"])
def test_a_remeshed_export_is_a_sound_file_of_the_same_shape(kind, tmp_path):
    needs(kind)
    settings = {"resolution": 40, "search_resolution": 32, "max_faces": 2000, "texture_size": 128}
    results = {}
    for name in ("none", kind):
        config = ExportConfig(**settings, remesh=name, formats=("glb",))
        results[name] = export_field(robot(), config, tmp_path / name)
        assert check_glb((tmp_path / name / "asset.glb").read_bytes()) == []
    assert 800 < results[kind].n_faces <= 2100
    boxes = [trimesh.load(tmp_path / name / "asset.glb", force="mesh").extents for name in results]
    assert np.allclose(*boxes, atol=0.06)


def test_none_is_the_same_object():
    mesh = ball()
    assert remesh(mesh, "none", max_faces=10) is mesh


@pytest.mark.parametrize(("kind", "package"), [("isotropic", "pymeshlab"), ("poisson", "open3d")])
def test_a_missing_package_is_told_before_any_work(kind, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    config = ExportConfig(remesh=kind)
    with pytest.raises(BackendMissing, match=rf"'{package}'.*pip install .*\[geometry\]"):
        export_field(robot(), config, tmp_path / "asset")
    assert not (tmp_path / "asset").exists()

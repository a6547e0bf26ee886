"""Texture coordinates: inside the image, without overlap, within the budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from renderers.raster import rasterize
from studio.export.triangles import Triangles
from studio.export.unwrap import Atlas, patch_atlas, unwrap, xatlas_charts


def ball(subdivisions: int = 3) -> Triangles:
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions)
    return Triangles.of(mesh.vertices, mesh.faces)


def covered_fraction(atlas: Atlas, size: int) -> float:
    """Fraction of the texels under any triangle."""
    clip = torch.zeros(1, len(atlas.uv), 4)
    clip[0, :, :2] = torch.from_numpy(2.0 * atlas.uv - 1.0)
    clip[0, :, 3] = 1.0
    raster = rasterize(clip, torch.from_numpy(atlas.t_tex_idx), (size, size))
    return float((raster.tri_id > 0).float().mean())


def uv_areas(atlas: Atlas) -> np.ndarray:
    a, b, c = np.moveaxis(atlas.uv[atlas.t_tex_idx], 1, 0)
    return 0.5 * np.abs((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0])


@pytest.mark.parametrize("kind", ["charts", "patches"])
def test_triangles_lie_in_the_image_and_do_not_overlap(kind):
    mesh = ball()
    atlas = (
        xatlas_charts(mesh, texture_size=512, budget_s=60.0)
        if kind == "charts"
        else patch_atlas(len(mesh.t_pos_idx), texture_size=512)
    )
    assert atlas is not None
    assert atlas.kind == kind
    assert atlas.uv.min() >= 0.0
    assert atlas.uv.max() <= 1.0
    assert atlas.t_tex_idx.shape == mesh.t_pos_idx.shape
    # Without overlap, the covered part of the image is the sum of the areas.
    assert covered_fraction(atlas, 2048) == pytest.approx(uv_areas(atlas).sum(), rel=0.02)


def test_charts_have_nearly_even_resolution():
    mesh = ball()
    atlas = xatlas_charts(mesh, texture_size=512, budget_s=60.0)
    assert atlas is not None
    ratio = uv_areas(atlas) / mesh.areas()
    assert np.percentile(ratio, 95) / np.percentile(ratio, 5) < 3.0


def test_exceeded_budget_falls_back_to_patches():
    atlas = unwrap(ball(), texture_size=512, budget_s=0.001)
    assert atlas is not None
    assert atlas.kind == "patches"


def test_broken_mesh_falls_back_to_patches():
    """xatlas refuses positions that are not finite; the process fails, the export goes on."""
    mesh = Triangles(np.full((3, 3), np.nan), np.array([[0, 1, 2]]))
    atlas = unwrap(mesh, texture_size=64, budget_s=60.0)
    assert atlas is not None
    assert atlas.kind == "patches"
    assert np.isfinite(atlas.uv).all()


def test_too_many_triangles_for_the_texture_give_none():
    assert patch_atlas(20_000, texture_size=128) is None
    assert unwrap(ball(), texture_size=64, budget_s=0.0) is None

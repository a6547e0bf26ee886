"""Baked colours against the fields they come from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from renderers.texture import texture
from studio.errors import Diverged
from studio.export.bake import bake_texture, shell_colours, surface_colours, vertex_colours
from studio.export.triangles import Triangles
from studio.export.unwrap import patch_atlas, xatlas_charts
from tests.studio.export.analytic_fields import GRAY, Ball, DistanceBall, Onion


def ball(radius: float, subdivisions: int = 3) -> Triangles:
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return Triangles.of(mesh.vertices, mesh.faces)


@pytest.mark.parametrize("make", ["charts", "patches"])
def test_texture_shows_the_field_at_every_surface_point(make):
    mesh, field = ball(0.4), DistanceBall(0.4)
    atlas = (
        xatlas_charts(mesh, texture_size=256, budget_s=60.0)
        if make == "charts"
        else patch_atlas(len(mesh.t_pos_idx), texture_size=512)
    )
    assert atlas is not None
    size = 256 if make == "charts" else 512
    baked = bake_texture(mesh, atlas, surface_colours(field), size=size)
    weights = np.random.default_rng(0).dirichlet(np.ones(3), len(mesh.t_pos_idx))
    points = np.einsum("fc,fci->fi", weights, mesh.corners())
    uv = np.einsum("fc,fci->fi", weights, atlas.uv[atlas.t_tex_idx])
    looked_up = texture(torch.from_numpy(baked.image), torch.from_numpy(uv).float()[None, None])
    error = np.abs(looked_up[0, 0].numpy() - (0.5 + 0.5 * points))
    assert error.mean() < 0.003
    assert error.max() < 0.03


def test_colours_spread_over_the_whole_image():
    mesh = ball(0.5)
    atlas = xatlas_charts(mesh, texture_size=128, budget_s=60.0)
    assert atlas is not None
    baked = bake_texture(mesh, atlas, surface_colours(Ball(0.5)), size=128)
    assert 0.2 < baked.coverage < 1.0
    np.testing.assert_allclose(baked.image, GRAY, atol=1e-6)


def test_colours_that_are_no_numbers_are_not_written_as_black():
    mesh = ball(0.4)
    with pytest.raises(Diverged, match=f"{len(mesh.v_pos)} of {len(mesh.v_pos)} points"):
        vertex_colours(mesh, lambda positions, _: positions * float("nan"))


def test_vertex_colours_are_the_fields():
    mesh = ball(0.4)
    colours = vertex_colours(mesh, surface_colours(DistanceBall(0.4)))
    np.testing.assert_allclose(colours, 0.5 + 0.5 * mesh.v_pos, atol=1e-6)


def test_shell_of_one_colour_has_that_colour():
    x = torch.nn.functional.normalize(torch.randn(64, 3), dim=-1)
    colours = shell_colours(Ball(0.5), outside=0.05, inside=0.1)(0.5 * x, x)
    torch.testing.assert_close(colours, torch.full_like(x, GRAY))


def test_shell_composites_from_outside_to_inside():
    """Against the quadrature of a ray at normal incidence, with many more samples."""
    field, normal = Onion(), torch.tensor([[0.0, 0.0, 1.0]])
    colours = shell_colours(field, outside=0.02, inside=0.1)(0.5 * normal, normal)
    depth = 0.52 - (torch.arange(2000) + 0.5) * 0.12 / 2000
    points = depth[:, None] * normal
    optical = field.density(points) * 0.12 / 2000
    before = torch.cumsum(optical, 0) - optical
    weights = torch.exp(-before) * (1.0 - torch.exp(-optical))
    expected = (weights[:, None] * field.albedo(points)).sum(0) / weights.sum()
    torch.testing.assert_close(colours[0], expected, atol=0.05, rtol=0.0)
    assert 0.1 < float(colours[0, 0]) < 0.9


def test_shell_without_density_falls_back_to_the_surface_point():
    field, far = Ball(0.2), torch.tensor([[0.0, 0.0, 0.9]])
    colours = shell_colours(field, outside=0.01, inside=0.01)(far, far / 0.9)
    torch.testing.assert_close(colours, torch.full((1, 3), GRAY))

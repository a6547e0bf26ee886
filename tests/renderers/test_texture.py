"""Texture lookups against their definition, and footprints against closed forms."""

from __future__ import annotations

import pytest
import torch

from renderers.errors import ShapeError
from renderers.raster import interpolate, rasterize
from renderers.texture import texel_footprint, texture
from tests.renderers.shapes import screen_triangle

QUAD = torch.tensor([[0, 1, 2], [0, 2, 3]])
QUAD_UV = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])


def centres(height: int, width: int) -> torch.Tensor:
    """Texture coordinates [1, H, W, 2] of all texel centres."""
    v, u = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    return torch.stack([u, v], -1)[None]


@pytest.mark.parametrize("filter", ["nearest", "linear"])
@pytest.mark.parametrize("wrap", ["clamp", "repeat"])
def test_texel_centres_return_the_texels(filter, wrap, generator):
    tex = torch.rand(5, 7, 3, generator=generator)
    found = texture(tex, centres(5, 7), filter, wrap=wrap)
    torch.testing.assert_close(found[0], tex, atol=1e-6, rtol=0)


def test_rows_grow_with_v_and_columns_with_u():
    tex = torch.zeros(2, 2, 1)
    tex[1, 0] = 1.0  # second row, first column
    uv = torch.tensor([[[[0.25, 0.75], [0.75, 0.25]]]])
    torch.testing.assert_close(texture(tex, uv)[0, 0, :, 0], torch.tensor([1.0, 0.0]))


def test_a_linear_ramp_is_reproduced_between_centres():
    ramp = ((torch.arange(8) + 0.5) / 8)[None, :, None].expand(4, 8, 1)
    u = torch.linspace(0.07, 0.93, 31)
    uv = torch.stack([u, torch.full_like(u, 0.5)], -1)[None, None]
    torch.testing.assert_close(texture(ramp, uv)[0, 0, :, 0], u, atol=1e-6, rtol=0)


def test_clamp_holds_the_border_texel():
    tex = torch.tensor([0.2, 0.8]).view(1, 2, 1)
    uv = torch.tensor([[[[-3.0, 0.5], [0.01, 0.5], [1.7, 0.5]]]])
    torch.testing.assert_close(texture(tex, uv)[0, 0, :, 0], torch.tensor([0.2, 0.2, 0.8]))


def test_repeat_is_periodic_and_continuous_over_the_seam(generator):
    tex = torch.rand(4, 6, 2, generator=generator)
    uv = torch.rand(1, 5, 5, 2, generator=generator)
    shifted = uv + torch.tensor([2.0, -3.0])
    torch.testing.assert_close(
        texture(tex, shifted, wrap="repeat"), texture(tex, uv, wrap="repeat"), atol=1e-5, rtol=0
    )
    seam = texture(tex, torch.tensor([[[[0.0, 0.125]]]]), wrap="repeat")[0, 0, 0]
    torch.testing.assert_close(seam, (tex[0, 0] + tex[0, -1]) / 2, atol=1e-6, rtol=0)


@pytest.mark.parametrize("wrap", ["clamp", "repeat"])
@pytest.mark.parametrize("filter", ["linear", "mip"])
def test_gradients_match_finite_differences(filter, wrap, generator):
    tex = torch.rand(4, 4, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    uv = 0.9 * torch.rand(1, 2, 3, 2, dtype=torch.float64, generator=generator)
    uv.requires_grad_()
    footprint = 1 + 2 * torch.rand(1, 2, 3, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(
        lambda tex, uv: texture(tex, uv, filter, wrap=wrap, footprint=footprint), (tex, uv)
    )


def test_mip_level_zero_is_the_bilinear_lookup(generator):
    tex, uv = torch.rand(8, 8, 3, generator=generator), torch.rand(2, 4, 4, 2, generator=generator)
    footprint = torch.full((2, 4, 4), 0.3)
    torch.testing.assert_close(texture(tex, uv, "mip", footprint=footprint), texture(tex, uv))


def test_mip_of_a_checkerboard_seen_from_far_is_its_mean():
    tex = ((torch.arange(16)[:, None] + torch.arange(16)[None]) % 2).float()[..., None]
    uv = torch.rand(1, 6, 6, 2, generator=torch.Generator().manual_seed(0))
    found = texture(tex, uv, "mip", footprint=torch.full((1, 6, 6), 16.0))
    torch.testing.assert_close(found, torch.full_like(found, 0.5))


def test_mip_between_two_levels_is_their_mean(generator):
    tex, uv = torch.rand(8, 8, 1, generator=generator), centres(4, 4)
    half = torch.nn.functional.avg_pool2d(tex.permute(2, 0, 1), 2).permute(1, 2, 0)
    found = texture(tex, uv, "mip", footprint=torch.full((1, 4, 4), 2**0.5))
    expected = (texture(tex, uv) + texture(half, uv)) / 2
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_mip_accepts_odd_sizes(generator):
    tex = torch.full((5, 7, 1), 0.25)
    uv = torch.rand(1, 3, 3, 2, generator=generator)
    found = texture(tex, uv, "mip", footprint=torch.full((1, 3, 3), 3.0))
    torch.testing.assert_close(found, torch.full_like(found, 0.25))


def test_the_footprint_of_a_flat_quad_is_texels_over_pixels():
    size = (16, 16)
    corners = screen_triangle([[0, 0], [16, 0], [16, 16], [0, 16]], size)[None]
    raster = rasterize(corners, QUAD, size)
    side = texel_footprint(QUAD_UV, QUAD, raster, corners, QUAD, (64, 32))
    torch.testing.assert_close(side, torch.full((1, 16, 16), 4.0), atol=1e-3, rtol=0)


def test_the_footprint_grows_with_the_distance_on_a_tilted_quad():
    size = (32, 32)
    # A rectangle: clip positions are affine in (u, v); its top is four times as far as its bottom.
    u, v = QUAD_UV[:, 0], QUAD_UV[:, 1]
    pos = torch.stack([8 * u - 4, 5 * v - 4, torch.zeros(4), 4 - 3 * v], 1)[None]
    raster = rasterize(pos, QUAD, size)
    side = texel_footprint(QUAD_UV, QUAD, raster, pos, QUAD, (32, 32))[0, :, 16]
    assert (side[:-1] > side[1:]).all()
    # The same from differences of the interpolated coordinates.
    uv = interpolate(QUAD_UV, raster, QUAD)[0] * 32
    down = (uv[1:] - uv[:-1])[:, 16].norm(dim=-1)
    across = (uv[:, 17] - uv[:, 16]).norm(dim=-1)
    torch.testing.assert_close(side[:-1], torch.maximum(down, across[:-1]), rtol=0.01, atol=1e-3)


def test_the_footprint_of_the_background_is_zero():
    size = (8, 8)
    pos = screen_triangle([[0, 0], [4, 0], [4, 4], [0, 4]], size)[None]
    raster = rasterize(pos, QUAD, size)
    side = texel_footprint(QUAD_UV, QUAD, raster, pos, QUAD, (8, 8))
    assert (side[raster.tri_id == 0] == 0).all()


def test_texture_gradients_are_bit_identical_from_run_to_run(generator):
    uv = torch.rand(2, 64, 64, 2, generator=generator)
    weight = torch.rand(2, 64, 64, 3, generator=generator)

    def gradient():
        tex = torch.zeros(16, 16, 3, requires_grad=True)
        return torch.autograd.grad((texture(tex, uv) * weight).sum(), tex)[0]

    assert torch.equal(gradient(), gradient())


def test_mip_without_a_footprint_is_refused():
    with pytest.raises(ValueError, match="filter 'mip' got footprint None"):
        texture(torch.rand(4, 4, 3), torch.rand(1, 2, 2, 2), "mip")


def test_an_unknown_filter_is_refused():
    with pytest.raises(ValueError, match="filter is 'cubic', expected one of nearest, linear, mip"):
        texture(torch.rand(4, 4, 3), torch.rand(1, 2, 2, 2), "cubic")


@pytest.mark.wrong_shapes
def test_coordinates_of_the_wrong_shape_are_refused():
    with pytest.raises(ShapeError, match=r"uv has shape \(2, 2, 2\), expected \[b, h, w, 2\]"):
        texture(torch.rand(4, 4, 3), torch.rand(2, 2, 2))

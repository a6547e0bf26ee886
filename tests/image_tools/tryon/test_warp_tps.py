"""The spline: at rest it bends nothing, it passes through its points, and it is held straight."""

from __future__ import annotations

import pytest
import torch

from image_tools.errors import UnsupportedModel
from image_tools.tryon.ladi_configs import RefinementSettings, WarpSettings
from image_tools.tryon.ladi_warp import GarmentWarp
from image_tools.tryon.warp_refine import RefinementNet
from image_tools.tryon.warp_tps import (
    SplineGrid,
    WarpNet,
    regular_points,
    spline_regulariser,
    warp,
)
from renderers.errors import ShapeError
from tests.image_tools.tryon.tiny_ladi import SIZE, WARP, ladi_sample, tiny_bend


def identity(size: tuple[int, int]) -> torch.Tensor:
    """Column and row of each pixel, corners at -1 and 1."""
    y, x = (torch.linspace(-1.0, 1.0, side) for side in size)
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)


def test_an_untrained_network_bends_nothing() -> None:
    net = WarpNet(WARP).eval()
    generator = torch.Generator().manual_seed(0)
    garments = torch.randn(2, 3, *SIZE, generator=generator)
    people = torch.randn(2, WARP.person_channels, *SIZE, generator=generator)
    points = net(garments, people)
    assert torch.allclose(points, regular_points().expand(2, -1, -1), atol=1e-6)
    assert torch.allclose(net.grid(points), identity(SIZE).expand(2, -1, -1, -1), atol=2e-5)


def test_affine_points_give_the_affine_map() -> None:
    grid = SplineGrid((9, 7))
    matrix, shift = torch.tensor([[0.8, 0.1], [-0.2, 0.7]]), torch.tensor([0.05, -0.1])
    bent = grid((regular_points() @ matrix + shift)[None])
    assert torch.allclose(bent[0], identity((9, 7)) @ matrix + shift, atol=2e-5)


def test_the_spline_passes_through_its_points() -> None:
    size = (41, 41)  # 20 pixels from the middle to the edge: 0.45 is the ninth
    generator = torch.Generator().manual_seed(1)
    points = regular_points() + 0.1 * torch.randn(25, 2, generator=generator)
    bent = SplineGrid(size)(points[None])[0]
    rows = torch.tensor([2, 11, 20, 29, 38])
    found = bent[rows][:, rows].reshape(25, 2)
    assert torch.allclose(found, points, atol=1e-4)


def test_correlation_channels_are_the_garments_places_column_by_column() -> None:
    """Public weights know the order; a loop says what it is."""
    net = WarpNet(WARP).eval()
    generator = torch.Generator().manual_seed(2)
    theirs = torch.randn(1, 5, 3, 2, generator=generator)
    own = torch.randn(1, 5, 3, 2, generator=generator)
    seen = []
    net.extractionA.forward = lambda pixels: theirs
    net.extractionB.forward = lambda pixels: own
    net.loc_net.forward = lambda correlation: seen.append(correlation) or torch.zeros(1, 50)
    net(torch.zeros(1, 3, *SIZE), torch.zeros(1, WARP.person_channels, *SIZE))
    a, b = (x / x.square().sum(1, keepdim=True).add(1e-6).sqrt() for x in (theirs, own))
    for row in range(3):
        for column in range(2):
            wanted = torch.einsum("c,cyx->yx", a[0, :, row, column], b[0])
            assert torch.allclose(seen[0][0, column * 3 + row], wanted, atol=1e-6)


def test_the_regulariser_has_floors_and_counts_every_sample() -> None:
    rest = regular_points()[None]
    floor = (4 * 0.08 + 2 * 0.02) / 6
    assert float(spline_regulariser(rest)) == pytest.approx(floor, abs=1e-6)
    crooked = rest.clone()
    crooked[0, 12] += torch.tensor([0.5, -0.4])
    alone = float(spline_regulariser(crooked))
    assert alone > floor + 0.05
    together = float(spline_regulariser(torch.cat([rest, crooked])))
    assert together == pytest.approx((floor + alone) / 2, abs=1e-6)


def test_a_grid_at_rest_keeps_a_smooth_picture() -> None:
    picture = identity(SIZE).movedim(-1, 0)[None]
    bent = warp(picture, identity((16, 12))[None])
    # Corners at -1 and 1 are read as pixels' edges, so that pictures grow by half a pixel a side.
    assert (bent - picture).abs().max() < 2.5 / 12


def test_the_bent_garment_is_a_picture_of_the_persons_size() -> None:
    sample = ladi_sample()
    bend = tiny_bend()
    warped = bend(sample)
    assert warped.shape == sample.person.shape
    assert 0.0 <= float(warped.min()) <= float(warped.max()) <= 1.0


def test_wrong_channels_and_sizes_are_refused() -> None:
    net = WarpNet(WARP)
    with pytest.raises(ShapeError, match="garments has shape"):
        net(torch.zeros(1, 3, 8, 8), torch.zeros(1, WARP.person_channels, *SIZE))
    dense = WarpNet(WarpSettings(size=SIZE, person_channels=5, width=2, halvings=1))
    with pytest.raises(UnsupportedModel, match="take 5 and 24 channels"):
        GarmentWarp(dense, RefinementNet(RefinementSettings(width=2)))

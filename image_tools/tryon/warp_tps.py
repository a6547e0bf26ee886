"""A thin plate spline that bends a product picture to a body (LaDI-VTON, arXiv 2305.13501, 3.2).

Features of garment and person are compared, each place with each, and a small network makes of the
correlations 5x5 control points, which start on a regular grid and stay in -1..1. The spline through
them, kernel r^2 log r, gives for every pixel the place in the product picture that it shows:

    grid = [phi(r) | 1 x y] K^-1 [points; 0]

Six regularisers keep the points apart and their rows and columns straight:

    rx ry cx cy    mean of max(0.08, |d_i+1^2 - d_i^2|), d steps along rows and columns
    rg cg          max(0.02, sum of |d_i x d_i+1|)

Deviation: rg and cg are means over the whole batch, where the authors' code takes its first sample.
Tensors have the names of the authors' file, so that it loads as it is.

    net = WarpNet(WarpSettings())
    points = net(garments, people)
    warped = warp(garments, net.grid(points), size=(512, 384))
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.diffusion.precision import full_precision
from image_tools.tryon.ladi_configs import WarpSettings
from image_tools.tryon.own_modules import OwnModule
from renderers.errors import check_shape

__all__ = ["SplineGrid", "WarpNet", "spline_regulariser", "warp"]

POINTS, REACH = 5, 0.9
STEP_FLOOR, BEND_FLOOR = 0.08, 0.02
WIDEST = 8
NORM_EPS = 1e-6
INIT_STD = 0.02


class SplineGrid(nn.Module):
    """From control points to a place for every pixel."""

    inverse_kernel: Tensor
    padding_matrix: Tensor
    target_coordinate_repr: Tensor

    def __init__(self, size: tuple[int, int]) -> None:
        """Precompute all that does not depend on the points, in double precision."""
        super().__init__()
        rest = _grid((POINTS, POINTS), REACH)
        count = len(rest)
        kernel = np.zeros((count + 3, count + 3))
        affine = np.concatenate([np.ones((count, 1)), rest], axis=1)
        kernel[:count, :count] = _radial(rest, rest)
        kernel[:count, count:], kernel[count:, :count] = affine, affine.T
        pixels = _grid(size, 1.0)
        ones = np.ones((len(pixels), 1))
        basis = np.concatenate([_radial(pixels, rest), ones, pixels], axis=1)
        self.size = size
        # numpy, because the values must be there even where modules are built without any.
        self.register_buffer("inverse_kernel", torch.from_numpy(np.linalg.inv(kernel)).float())
        self.register_buffer("padding_matrix", torch.zeros(3, 2))
        self.register_buffer("target_coordinate_repr", torch.from_numpy(basis).float())

    def forward(self, points: Float[Tensor, "b 25 2"]) -> Float[Tensor, "b h w 2"]:
        """Column and row in -1..1 that each pixel shows."""
        points = points.to(self.inverse_kernel)
        padded = torch.cat([points, self.padding_matrix.expand(len(points), -1, -1)], dim=1)
        with full_precision(points.device):  # large terms cancel here
            places = self.target_coordinate_repr @ (self.inverse_kernel @ padded)
        return places.unflatten(1, self.size)


def regular_points() -> Float[Tensor, "25 2"]:
    """Column and row of the control points at rest, row by row."""
    return torch.from_numpy(_grid((POINTS, POINTS), REACH)).float()


def _grid(size: tuple[int, int], reach: float) -> Float[np.ndarray, "n 2"]:
    """Column and row, row by row, from -reach to reach."""
    y, x = (np.linspace(-reach, reach, side) for side in size)
    return np.stack(np.meshgrid(y, x, indexing="ij")[::-1], axis=-1).reshape(-1, 2)


def _radial(a: Float[np.ndarray, "n 2"], b: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "n m"]:
    """``r^2 log r`` of all distances, 0 at 0."""
    squares = np.square(a[:, None] - b[None]).sum(axis=-1)
    return 0.5 * squares * np.log(np.where(squares > 0.0, squares, 1.0))


class WarpNet(OwnModule):
    """Control points of the garment's spline from pictures of garment and person."""

    def __init__(self, settings: WarpSettings) -> None:
        """An untrained network, which bends nothing."""
        super().__init__(settings)
        self.extractionA = _Features(3, settings)
        self.extractionB = _Features(settings.person_channels, settings)
        self.loc_net = _Locator(settings)
        self.gridGen = SplineGrid(settings.size)

    def forward(
        self, garments: Float[Tensor, "b 3 h w"], people: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b 25 2"]:
        """Control points.

        Args:
            garments: product pictures in -1..1 at the network's size.
            people: pictures without the garment in -1..1 and pose maps, at the same size.
        """
        height, width = self.settings.size
        check_shape("garments", garments, f"B 3 {height} {width}")
        check_shape("people", people, f"B {self.settings.person_channels} {height} {width}")
        theirs = _unit(self.extractionA(garments))
        own = _unit(self.extractionB(people))
        # Channels are the garment's places, column by column, as the weights have them.
        correlation = torch.einsum("bcij,bcyx->bjiyx", theirs, own).flatten(1, 2)
        return self.loc_net(correlation).unflatten(1, (-1, 2))

    def grid(self, points: Float[Tensor, "b 25 2"]) -> Float[Tensor, "b h w 2"]:
        """The spline through control points."""
        return self.gridGen(points)


class _Features(nn.Module):
    """Halvings by convolutions, and two more convolutions."""

    def __init__(self, channels: int, settings: WarpSettings) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for level in range(settings.halvings):
            wide = settings.width * min(2**level, WIDEST)
            layers += [nn.Conv2d(channels, wide, 4, stride=2, padding=1), nn.ReLU()]
            layers += [nn.BatchNorm2d(wide)]
            channels = wide
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
        layers += [nn.BatchNorm2d(channels)]
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
        self.model = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, INIT_STD)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, INIT_STD)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels)


class _Locator(nn.Module):
    """Coordinates of the control points from correlations."""

    def __init__(self, settings: WarpSettings) -> None:
        super().__init__()
        self.regression = _Regression(settings)

    def forward(self, correlation: Tensor) -> Tensor:
        return self.regression(correlation)


class _Regression(nn.Module):
    """Two halvings, two more convolutions, one linear layer."""

    def __init__(self, settings: WarpSettings) -> None:
        super().__init__()
        rows, columns = (side >> settings.halvings for side in settings.size)
        widths = tuple(settings.width * k for k in (8, 4, 2, 1))
        layers: list[nn.Module] = []
        channels = rows * columns
        for number, wide in enumerate(widths):
            shape = {"kernel_size": 4, "stride": 2} if number < 2 else {"kernel_size": 3}
            layers += [nn.Conv2d(channels, wide, padding=1, **shape), nn.BatchNorm2d(wide)]
            layers += [nn.ReLU()]
            channels = wide
        self.conv = nn.Sequential(*layers)
        self.linear = nn.Linear(channels * (rows // 4) * (columns // 4), POINTS * POINTS * 2)
        nn.init.zeros_(self.linear.weight)
        with torch.no_grad():
            self.linear.bias.copy_(regular_points().flatten().atanh())

    def forward(self, correlation: Tensor) -> Tensor:
        return self.linear(self.conv(correlation).flatten(1)).tanh()


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(dim=1, keepdim=True) + NORM_EPS).sqrt()


def spline_regulariser(points: Float[Tensor, "b 25 2"]) -> Float[Tensor, ""]:
    """Mean of the six regularisers, each over the whole batch."""
    net = points.unflatten(1, (POINTS, POINTS))
    terms = []
    for steps in (net.diff(dim=2), net.diff(dim=1).transpose(1, 2)):
        # Steps are [b, lines, steps along the line, 2].
        uneven = steps.square().diff(dim=2).abs().clamp(min=STEP_FLOOR)
        terms += [uneven[..., 0].mean(), uneven[..., 1].mean()]
        first, second = steps[:, :, :-1], steps[:, :, 1:]
        bends = first[..., 1] * second[..., 0] - first[..., 0] * second[..., 1]
        terms.append(bends.abs().flatten(1).sum(dim=1).clamp(min=BEND_FLOOR).mean())
    return torch.stack(terms).mean()


def warp(
    pictures: Float[Tensor, "b c h w"], grid: Float[Tensor, "b u v 2"]
) -> Float[Tensor, "b c h w"]:
    """Pictures bent by a grid, which is brought to their size; edges are repeated."""
    size = pictures.shape[-2:]
    places = F.interpolate(grid.movedim(-1, 1), size, mode="bilinear", antialias=True)
    return F.grid_sample(
        pictures, places.movedim(1, -1), padding_mode="border", align_corners=False
    )

"""What several photos of one thing have in common, cut out of its surroundings.

Photos of a thing in different places share the thing and nothing else. So one mixture of Gaussians
describes the colours of the thing in all photos, and each photo has another one for what is around
it (GrabCut, Rother et al. 2004, whose foreground model is one photo's). Between the two, pixels are
decided by a random walker with prior models (Grady 2005): the probability ``x`` that a pixel
belongs to the thing minimises

    sum over neighbours w_ij (x_i - x_j)^2 + data sum over pixels (f_i (1 - x_i)^2 + b_i x_i^2)

with ``f`` and ``b`` the posterior of both mixtures and ``w`` small across edges of colour. That is
one sparse linear system, convex and without labels at random, where GrabCut solves a minimum cut.
Mixtures and probabilities take turns.

It knows nothing of things: what it needs is that the thing lies within the frame, that a border of
each photo shows surroundings, and that these differ between photos or from the thing.

    masks = cut_out(photos.images, CutoutConfig())        # [n, h, w] in 0..1
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.vision.cutout_configs import CutoutConfig

__all__ = ["cut_out"]

EPS = 1e-6
NEIGHBOURS = ((0, 1, 1.0), (1, 0, 1.0), (1, 1, 0.5**0.5), (1, -1, 0.5**0.5))
"""Rows and columns to four of the eight neighbours, and the weight of their distance."""
SPREAD = 1e-3
"""Added to the variances of colours, so that flat areas keep a Gaussian."""
JITTER = 1e-3
"""Noise on colours, so that a flat area is not one point to k-means."""
SEPARATION = 0.7
"""Nats by which the thing's pixels must fit the thing better than the surroundings, on average."""
SMALL_HOLE = 0.02
"""Holes below this share of the thing are glints and spots, larger ones are holes: a handle's."""
LUMINANCE = 0.5
"""Weight of brightness beside the colour differences: shadows are darker places of one colour."""


def cut_out(images: Float[Tensor, "n h w 3"], config: CutoutConfig) -> Float[Tensor, "n h w"]:
    """How much of each pixel belongs to the thing that all photos show, 0..1.

    All of a photo's mask is 0 where the colours of thing and surroundings are the same.

    Args:
        images: sRGB colours in 0..1; one photo will do, several in different places do better.
        config: how.
    """
    height, width = images.shape[1:3]
    scale = min(1.0, config.size / max(height, width))
    shape = max(8, round(height * scale)), max(8, round(width * scale))
    small = torch.nn.functional.interpolate(images.movedim(-1, 1), shape, mode="area")
    colors = _opponent(small.movedim(1, -1).double().cpu().numpy())
    rng = np.random.default_rng(config.seed)
    walkers = [_Walker(photo, config) for photo in colors]
    inside = np.stack([_first_guess(shape)] * len(colors))
    outside = np.stack([_frame(shape, config.frame)] * len(colors))
    gain = np.zeros(len(colors))
    for _ in range(config.iterations):
        thing = _Mixture.fit(colors[inside > 0.5], config.thing_colors, rng)
        for k, photo in enumerate(colors):
            around = _Mixture.fit(photo[(inside[k] < 0.5) | outside[k]], config.around_colors, rng)
            evidence = thing.log_density(photo) - around.log_density(photo)
            prior = _place_odds(shape)
            posterior = 1.0 / (1.0 + np.exp(-np.clip(evidence + prior, -30.0, 30.0)))
            posterior[outside[k]] = 0.0
            inside[k] = walkers[k].solve(posterior)
            is_thing = inside[k] > 0.5
            gain[k] = evidence[is_thing].mean() if is_thing.any() else 0.0
    inside[gain < SEPARATION] = 0.0
    masks = torch.from_numpy(np.stack([_largest(mask) for mask in inside])).float()
    large = torch.nn.functional.interpolate(
        masks[:, None], (height, width), mode="bilinear", align_corners=False
    )
    return large[:, 0].to(images)


def _opponent(images: Float[np.ndarray, "n h w 3"]) -> np.ndarray:
    """Brightness and two colour differences, on which light and shadow act less."""
    red, green, blue = np.moveaxis(images, -1, 0)
    brightness = LUMINANCE * (red + green + blue) / 3
    return np.stack([brightness, (red - green) / 2**0.5, (red + green - 2 * blue) / 6**0.5], -1)


def _radius(shape: tuple[int, int]) -> np.ndarray:
    """Distance to the middle, 1 at the middle of each side."""
    return np.hypot(np.linspace(-1, 1, shape[0])[:, None], np.linspace(-1, 1, shape[1])[None])


def _first_guess(shape: tuple[int, int]) -> np.ndarray:
    """An ellipse in the middle, where people put what they photograph."""
    return (_radius(shape) < 0.55).astype(np.float64)


def _place_odds(shape: tuple[int, int]) -> np.ndarray:
    """Logarithm of the odds that a place shows the thing, whatever its colour."""
    likely = np.clip(0.5 + 0.45 * (0.75 - _radius(shape)) / 0.5, 0.05, 0.8)
    return np.log(likely) - np.log1p(-likely)


def _frame(shape: tuple[int, int], share: float) -> np.ndarray:
    """Pixels at the photo's border."""
    rows, columns = (max(1, round(share * side)) for side in shape)
    found = np.ones(shape, dtype=bool)
    found[rows:-rows, columns:-columns] = False
    return found


@dataclass(frozen=True)
class _Mixture:
    """Gaussians of colours, each with a weight."""

    means: np.ndarray
    factors: np.ndarray
    """Inverse Cholesky factors of the covariances."""
    constants: np.ndarray
    """Logarithms of weight and normalisation."""

    @classmethod
    def fit(cls, colors: np.ndarray, count: int, rng: np.random.Generator) -> _Mixture:
        """By k-means, as GrabCut: one Gaussian for each group."""
        from scipy.cluster.vq import kmeans2

        if len(colors) > 4000:
            colors = colors[rng.choice(len(colors), 4000, replace=False)]
        if len(colors) <= count:
            colors = np.repeat(colors, count + 1, 0) if len(colors) else np.zeros((count + 1, 3))
        colors = colors + rng.normal(0.0, JITTER, colors.shape)
        _, groups = kmeans2(colors, count, minit="++", seed=rng)
        means, factors, constants = [], [], []
        for group in range(count):
            own = colors[groups == group]
            if len(own) < 2:
                continue
            mean = own.mean(0)
            covariance = (own - mean).T @ (own - mean) / len(own) + SPREAD * np.eye(3)
            factor = np.linalg.inv(np.linalg.cholesky(covariance))
            means.append(mean)
            factors.append(factor)
            constants.append(np.log(len(own) / len(colors)) + np.log(np.diag(factor)).sum())
        return cls(np.stack(means), np.stack(factors), np.array(constants))

    def log_density(self, colors: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
        """Up to a constant that all mixtures share."""
        away = colors[None] - self.means[:, None, None]
        distance = np.einsum("kij,khwj->khwi", self.factors, away)
        each = self.constants[:, None, None] - 0.5 * (distance**2).sum(-1)
        return np.logaddexp.reduce(each, axis=0)


class _Walker:
    """The linear system of one photo."""

    def __init__(self, colors: Float[np.ndarray, "h w 3"], config: CutoutConfig) -> None:
        """Weights between neighbours, from how different they are."""
        from scipy import sparse

        height, width = self.shape = colors.shape[:2]
        index = np.arange(height * width).reshape(self.shape)
        first, second, weights, squares = [], [], [], []
        for down, right, nearness in NEIGHBOURS:
            own = (slice(0, height - down), slice(max(0, -right), width - max(0, right)))
            other = (slice(down, height), slice(max(0, right), width + min(0, right)))
            squares.append(((colors[own] - colors[other]) ** 2).sum(-1).ravel())
            first.append(index[own].ravel())
            second.append(index[other].ravel())
            weights.append(np.full(squares[-1].size, nearness))
        square = np.concatenate(squares)
        contrast = np.exp(-config.contrast * square / (square.mean() + EPS))
        weight = np.concatenate(weights) * (contrast + EPS)
        pairs = np.concatenate(first), np.concatenate(second)
        graph = sparse.coo_matrix((weight, pairs), shape=(index.size, index.size))
        graph = (graph + graph.T).tocsr()
        degrees = sparse.diags(np.asarray(graph.sum(1)).ravel())
        self.matrix = (degrees - graph + config.data * sparse.identity(index.size)).tocsc()
        self.data = config.data
        self._solve = sparse.linalg.factorized(self.matrix)

    def solve(self, posterior: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
        """The minimum: (L + data) x = data * posterior, as f + b = 1."""
        return self._solve(self.data * posterior.ravel()).reshape(self.shape)


def _largest(mask: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """The largest piece without its small holes; soft at its border."""
    from scipy import ndimage

    labels, count = ndimage.label(mask > 0.5)
    if count == 0:
        return np.zeros_like(mask)
    sizes = ndimage.sum_labels(np.ones_like(mask), labels, np.arange(1, count + 1))
    piece = labels == 1 + int(np.argmax(sizes))
    holes, count = ndimage.label(ndimage.binary_fill_holes(piece) & ~piece)
    areas = ndimage.sum_labels(np.ones_like(mask), holes, np.arange(1, count + 1))
    small = 1 + np.flatnonzero(areas < SMALL_HOLE * piece.sum())
    whole = piece | np.isin(holes, small)
    soft = np.clip((mask - 0.5) * 4.0 + 0.5, 0.0, 1.0)
    near = ndimage.binary_dilation(whole, iterations=1)
    filled = whole & (mask <= 0.5)
    return np.where(filled, 1.0, soft * near)

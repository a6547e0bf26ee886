"""How alike pictures are in the features of a network, whichever it is.

    Fréchet     distance of two sets of pictures as Gaussians of their features (FID, arXiv
                1706.08500): |m - m'|^2 + tr(S + S' - 2 (S S')^1/2)
    kernel      squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 (KID, arXiv
                1801.01401), unbiased, the mean over subsets; tables have 1000 times as much
    likeness    cosine of two pictures' features (CLIP-I, DINO), and its product over all garments
                of a person (M-DINO, BootComp, arXiv 2412.16978): one that is wrong spoils it

Published FID and KID are of Inception's features, which no package brings without a download. Other
features have other numbers, which compare among themselves only.

    score = frechet_distance(clip.pooled(images), clip.pooled(photographs))
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from renderers.errors import ShapeError, check_shape

__all__ = ["frechet_distance", "joint_likeness", "kernel_distance", "likeness"]

DEGREE = 3
SUBSETS, SUBSET_SIZE = 100, 1000


def frechet_distance(
    features: Float[Tensor, "n d"], references: Float[Tensor, "m d"]
) -> Float[Tensor, ""]:
    """Fréchet distance of two sets, 0 for equal ones; it needs many more pictures than features.

    Raises:
        ShapeError: sets of other widths, or of fewer than two pictures.
    """
    _check_sets(features, references)
    sets = [one.double() for one in (features, references)]
    gap = (sets[0].mean(dim=0) - sets[1].mean(dim=0)).square().sum()
    first, second = (torch.atleast_2d(one.mT.cov()) for one in sets)
    root = _root(first)
    # The trace of (S S')^1/2 is that of (S^1/2 S' S^1/2)^1/2, whose matrix is symmetric.
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0.0).sqrt().sum()
    return gap + first.trace() + second.trace() - 2.0 * cross


def kernel_distance(
    features: Float[Tensor, "n d"],
    references: Float[Tensor, "m d"],
    *,
    generator: torch.Generator,
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
) -> Float[Tensor, ""]:
    """Kernel distance of two sets; it may be a little below 0 where they are alike.

    Args:
        features: of pictures.
        references: of those that they are compared with.
        generator: draws the subsets.
        subsets: their number.
        size: pictures in each, of either set; fewer where a set has fewer.

    Raises:
        ShapeError: sets of other widths, or of fewer than two pictures.
    """
    _check_sets(features, references)
    count = min(size, len(features), len(references))
    found = []
    for _ in range(subsets):
        chosen = [
            one[torch.randperm(len(one), generator=generator)[:count].to(one.device)].double()
            for one in (features, references)
        ]
        found.append(_discrepancy(*chosen))
    return torch.stack(found).mean()


def likeness(
    features: Float[Tensor, "b d"], references: Float[Tensor, "b d"]
) -> Float[Tensor, " b"]:
    """Cosine of each picture's features and its reference's."""
    check_shape("references", references, " ".join(str(side) for side in features.shape))
    return F.cosine_similarity(features, references, dim=1)


def joint_likeness(
    worn: Sequence[Float[Tensor, "b d"]], products: Sequence[Float[Tensor, "b d"]]
) -> Float[Tensor, " b"]:
    """Product of the likeness of all garments of each person.

    Args:
        worn: features of each garment cut out of the pictures.
        products: those of its product pictures.

    Raises:
        ShapeError: if there are not as many of both.
    """
    if len(worn) != len(products) or not worn:
        raise ShapeError(
            f"{len(worn)} garments that are worn came with {len(products)} products. Give one each."
        )
    scores = [likeness(*pair) for pair in zip(worn, products, strict=True)]
    return torch.stack(scores).prod(dim=0)


def _discrepancy(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    count = len(x)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.mT / a.shape[1] + 1.0) ** DEGREE

    def others(a: Tensor) -> Tensor:
        values = kernel(a, a)
        return (values.sum() - values.trace()) / (count * (count - 1))

    return others(x) + others(y) - 2.0 * kernel(x, y).mean()


def _root(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The symmetric square root."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0.0).sqrt()) @ vectors.mT


def _check_sets(features: Tensor, references: Tensor) -> None:
    check_shape("features", features, "N D")
    check_shape("references", references, f"M {features.shape[1]}")
    if min(len(features), len(references)) < 2:
        raise ShapeError(
            f"{len(features)} pictures are compared with {len(references)} - expected at least two "
            "of both, for sets have a spread."
        )

"""BootComp's data (arXiv 2412.16978, section 3.2): pairs of people and product pictures of theirs.

Every garment found on a person is turned into a product picture, which is kept where a perceptual
distance to the cut-out garment is below a threshold. The authors use DreamSim and 0.4: LPIPS
rejects intricate patterns, CLIP inner layers. Any distance can be given; :func:`clip_distance` is
one that needs no further model, with another scale.

    products, kept = bootstrap_garments(prior, photos, masks, categories, distance, generators=...)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from image_tools.tryon.decomposition import DecompositionPrior, product_views
from image_tools.tryon.garment_configs import GarmentCategory
from image_tools.tryon.pictures import cut_out
from image_tools.vision.clip_images import ClipImages
from renderers.errors import check_shape

__all__ = ["THRESHOLD", "PerceptualDistance", "bootstrap_garments", "clip_distance", "is_faithful"]

PerceptualDistance = Callable[
    [Float[Tensor, "b h w 3"], Float[Tensor, "b h w 3"]], Float[Tensor, " b"]
]
"""How different pictures look, pair by pair; 0 for equal ones."""

THRESHOLD = 0.4


def clip_distance(clip: ClipImages) -> PerceptualDistance:
    """One minus the cosine of CLIP's embeddings."""

    def distance(
        first: Float[Tensor, "b h w 3"], second: Float[Tensor, "b h w 3"]
    ) -> Float[Tensor, " b"]:
        return 1.0 - F.cosine_similarity(clip.pooled(first), clip.pooled(second), dim=1)

    return distance


@torch.no_grad()
def is_faithful(
    products: Float[Tensor, "b h w 3"],
    references: Float[Tensor, "b h w 3"],
    distance: PerceptualDistance,
    *,
    threshold: float = THRESHOLD,
) -> Bool[Tensor, " b"]:
    """Which product pictures show what was cut out.

    Args:
        products: made of the references.
        references: cut-out garments.
        distance: how different they look.
        threshold: tau, of the distance's own scale.
    """
    check_shape("references", references, " ".join(str(side) for side in products.shape))
    return distance(products, references) < threshold


def bootstrap_garments(
    prior: DecompositionPrior,
    photos: Float[Tensor, "b h w 3"],
    masks: Float[Tensor, "b h w 1"],
    categories: Sequence[GarmentCategory],
    distance: PerceptualDistance,
    *,
    generators: Sequence[torch.Generator],
    threshold: float = THRESHOLD,
) -> tuple[Float[Tensor, "b height width 3"], Bool[Tensor, " b"]]:
    """Product pictures of worn garments, and which of them are fit for training.

    Args:
        prior: makes them.
        photos: people.
        masks: 1 where the garment is.
        categories: what it is.
        distance: how different pictures look.
        generators: one for each photo.
        threshold: tau, of the distance's own scale.
    """
    references = cut_out(photos, masks, prior.image_hw)
    prior.show(references)
    products = product_views(prior, categories, generators=generators)
    return products, is_faithful(products, references, distance, threshold=threshold)

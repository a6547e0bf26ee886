"""From KOSMOS-G's configuration to a prior that reads images among words.

prior = load_kosmos_g_prior(KosmosGConfig("kosmos-g", images=("cat.jpg",)), prior)
images = sample_images(prior, ["a <i> in a bath"], generators=[generator])
"""

from __future__ import annotations

import torch

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.errors import UnsupportedModel
from image_tools.personalization.kosmos_g import KosmosGPrior
from image_tools.personalization.kosmos_g_configs import KosmosGConfig
from image_tools.personalization.kosmos_g_weights import read_kosmos_g
from image_tools.personalization.photos import load_photo
from image_tools.personalization.photos_configs import PhotosConfig
from image_tools.pocket.paths import adapter_path

__all__ = ["load_kosmos_g_prior"]


def load_kosmos_g_prior(config: KosmosGConfig, prior: DiffusionPrior) -> KosmosGPrior:
    """A prior with the model and the images that a config names.

    The model stands where the prior's text encoder does: ``memory.text_encoder: cpu`` keeps both
    there, in float32.

    Raises:
        WeightsMissing: the folder is absent, incomplete or damaged; UnsafeWeights: a pickle.
        UnsupportedModel: the aligner was made for another prior.
        PhotosError: an image cannot be read.
    """
    path = adapter_path(config.weights, role="KOSMOS-G")
    if path.is_file():
        raise UnsupportedModel(
            f"weights: '{path}' is a file - expected a folder with mllm, aligner and tokenizer. "
            "Convert the public checkpoint with python -m "
            "image_tools.personalization.kosmos_g_convert (docs/reference_images.md)."
        )
    place = prior.text.device
    dtype = torch.float32 if place.type == "cpu" else prior.dtype
    model = read_kosmos_g(path, dtype).to(place)
    size, photos = model.image_size, PhotosConfig(fit=config.fit)
    images = [load_photo(each, size=size, config=photos) for each in config.images]
    return KosmosGPrior(prior, model, torch.stack(images) if images else None)

"""From PhotoMaker's configuration to a prior that draws a person.

config = PhotoMakerConfig("photomaker-v1.bin", photos=("me.jpg", "me-too.jpg"))
prior = load_photomaker_prior(config, prior)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.photomaker import (
    PhotoMakerPrior,
    merge_timestep,
    photomaker_prior,
)
from image_tools.personalization.photomaker_configs import PhotoMakerConfig
from image_tools.personalization.photomaker_encoder import IdEncoder
from image_tools.personalization.photomaker_files import read_photomaker
from image_tools.personalization.photos import load_photo
from image_tools.personalization.photos_configs import PhotosConfig
from image_tools.pocket.paths import adapter_path
from image_tools.vision.face_analyzers import build_face_analyzer
from image_tools.vision.faces import load_face_image, main_face
from image_tools.vision.identity_files import check_identity, read_raw_identity

__all__ = ["load_photomaker_prior"]

# insightface's models that the public v2 was trained with.
FACE_PACK = "buffalo_l"


def load_photomaker_prior(config: PhotoMakerConfig, prior: DiffusionPrior) -> PhotoMakerPrior:
    """A prior with the weights and the person that a config names.

    Raises:
        WeightsMissing: something is absent or damaged; UnsafeWeights: an unsafe pickle.
        UnsupportedModel: weights of another denoiser, or another kind of embedding.
        PhotosError: a photo cannot be read; FaceNotFound: v2 finds no face in it.
        StudioError: the prior has tools around it.
    """
    path = adapter_path(config.weights, role="PhotoMaker")
    per_block = getattr(prior.unet.config, "layers_per_block", 2)
    maker = read_photomaker(path, layers_per_block=per_block if isinstance(per_block, int) else 2)
    size, photos = maker.encoder.shape.image_size, PhotosConfig(fit=config.fit)
    images = torch.stack([load_photo(each, size=size, config=photos) for each in config.photos])
    return photomaker_prior(
        prior,
        maker,
        images,
        faces=_read_faces(config, maker.encoder, prior.device),
        merge_t=merge_timestep(config.style_strength, prior.num_train_timesteps),
        trigger=config.trigger,
        lora_weight=config.lora_weight,
        photo_weights=config.photo_weights,
    )


def _read_faces(
    config: PhotoMakerConfig, encoder: IdEncoder, device: torch.device
) -> Float[Tensor, "photos face"] | None:
    """The embedding of the face in each photo, from files or from the photos; None for v1."""
    if encoder.shape.face is None:
        return None
    width, count = encoder.shape.face.width, len(config.photos)
    if config.identities:
        rows = [read_raw_identity(path, width=width) for path in config.identities]
        return torch.stack(rows).expand(count, -1)
    analyzer = build_face_analyzer(config.faces, device, pack=FACE_PACK)
    check_identity(torch.zeros(analyzer.width), width=width, source=f"faces '{config.faces.kind}'")
    found = [main_face(analyzer, load_face_image(path), name=path) for path in config.photos]
    return torch.stack([face.embedding for face in found])

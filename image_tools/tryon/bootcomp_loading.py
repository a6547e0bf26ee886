"""From the configuration of worn garments to a prior that dresses people.

prior = load_garments_prior(config, prior)
"""

from __future__ import annotations

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.pocket.paths import adapter_path
from image_tools.tryon.bootcomp import BootCompPrior
from image_tools.tryon.bootcomp_configs import GarmentsConfig
from image_tools.tryon.garment_files import read_garment
from image_tools.tryon.tryon_weights import read_unet

__all__ = ["load_garments_prior"]

ROLE = "encoder of garments"


def load_garments_prior(config: GarmentsConfig, prior: DiffusionPrior) -> BootCompPrior:
    """The prior, of pictures or of views, with the garments that a config names.

    Raises:
        WeightsMissing: the encoder is absent or damaged.
        UnsupportedModel: it was trained beside another kind of denoiser.
        PhotosError: a picture cannot be read.
        StudioError: a category that BootComp does not know.
    """
    encoder = read_unet(adapter_path(config.encoder, role=ROLE), prior.dtype, role=ROLE)
    garments = [read_garment(one, prior.image_hw) for one in config.garments]
    return BootCompPrior(
        prior, encoder.to(prior.device), garments, garment_scale=config.garment_scale
    )

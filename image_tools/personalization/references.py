"""From a reference tool's configuration to a prior with the tool around it, in 2D and in 3D.

prior = build_reference_tool(IPAdapterConfig("adapter.safetensors", images=("me.jpg",)), prior)
images = sample_images(prior, ["a mug"], generators=[generator])
"""

from __future__ import annotations

from pathlib import Path

from image_tools.diffusion.modified import WrappedPrior
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.instant_id_configs import InstantIDConfig
from image_tools.personalization.kosmos_g_configs import KosmosGConfig
from image_tools.personalization.ms_diffusion_configs import MSDiffusionConfig
from image_tools.personalization.photomaker_configs import PhotoMakerConfig
from image_tools.personalization.reference_configs import ReferenceToolConfig
from image_tools.personalization.style_aligned_configs import StyleAlignedConfig
from image_tools.pocket.paths import adapter_files
from image_tools.tryon.bootcomp_configs import GarmentsConfig

__all__ = ["build_reference_tool", "reference_files"]


def build_reference_tool(config: ReferenceToolConfig, prior: DiffusionPrior) -> WrappedPrior:
    """The prior with a tool that has read its weights and its pictures.

    Args:
        config: one of the reference tools.
        prior: what the tool is put around; it may be wrapped itself.

    Raises:
        WeightsMissing: weights are absent or damaged; UnsafeWeights if they are unsafe pickles.
        PhotosError: a picture cannot be read.
        UnsupportedModel: the weights were made for another kind of model.
    """
    if isinstance(config, StyleAlignedConfig):
        from image_tools.personalization.style_aligned import load_style_reference

        return load_style_reference(config, prior)
    if isinstance(config, InstantIDConfig):
        from image_tools.personalization.instant_id_loading import load_instant_id_prior

        return load_instant_id_prior(config, prior)
    if isinstance(config, KosmosGConfig):
        from image_tools.personalization.kosmos_g_loading import load_kosmos_g_prior

        return load_kosmos_g_prior(config, prior)
    if isinstance(config, MSDiffusionConfig):
        from image_tools.personalization.ms_diffusion_loading import load_ms_diffusion_prior

        return load_ms_diffusion_prior(config, prior)
    if isinstance(config, PhotoMakerConfig):
        from image_tools.personalization.photomaker_loading import load_photomaker_prior

        return load_photomaker_prior(config, prior)
    if isinstance(config, GarmentsConfig):
        from image_tools.tryon.bootcomp_loading import load_garments_prior

        return load_garments_prior(config, prior)
    from image_tools.personalization.ip_adapter_loading import load_ip_adapter_prior

    return load_ip_adapter_prior(config, prior)


def reference_files(config: ReferenceToolConfig) -> list[Path]:
    """Every weight file that the tool reads.

    Raises:
        WeightsMissing: naming the first that is not there.
    """
    return [
        file
        for key, name in config.models()
        for file in adapter_files(name, role=f"{config.kind} ({key})")
    ]

"""The tools that look at reference images, told apart by ``kind``; importable without torch.

A new one derives its config from ``ReferenceToolSettings``, joins the union here, and is built in
``references.py``. Its module must not import ``image_tools.configs``, which imports this one.
"""

from __future__ import annotations

from image_tools.personalization.instant_id_configs import InstantIDConfig
from image_tools.personalization.ip_adapter_configs import IPAdapterConfig
from image_tools.personalization.kosmos_g_configs import KosmosGConfig
from image_tools.personalization.ms_diffusion_configs import MSDiffusionConfig
from image_tools.personalization.photomaker_configs import PhotoMakerConfig
from image_tools.personalization.style_aligned_configs import StyleAlignedConfig
from image_tools.tryon.bootcomp_configs import GarmentsConfig

__all__ = ["ReferenceToolConfig"]

ReferenceToolConfig = (
    IPAdapterConfig
    | InstantIDConfig
    | KosmosGConfig
    | MSDiffusionConfig
    | PhotoMakerConfig
    | StyleAlignedConfig
    | GarmentsConfig
)

"""How a try-on scene dresses people, and what it is told of bodies; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from image_tools.tryon.bootcomp_configs import BootCompConfig
from image_tools.tryon.cat_vton_configs import CatVtonConfig
from image_tools.tryon.idm_vton_configs import IdmVtonConfig
from image_tools.tryon.ladi_configs import LadiVtonConfig
from image_tools.tryon.masks_configs import ParseLayout
from image_tools.tryon.stable_viton_configs import StableVitonConfig

__all__ = ["BodyConfig", "TryOnMethodConfig"]

TryOnMethodConfig = (
    IdmVtonConfig | BootCompConfig | CatVtonConfig | LadiVtonConfig | StableVitonConfig
)


@dataclass(frozen=True)
class BodyConfig:
    """What other programs found in the person's picture; all of its size in pixels."""

    parse: str | None = None
    """Picture whose pixels are labels of clothes and body parts (PNG with palette or grey)."""
    layout: ParseLayout = "atr"
    """What the labels mean: atr (18, DressCode, SegFormer) or lip (20, VITON-HD)."""
    keypoints: str | None = None
    """OpenPose's JSON file."""
    densepose: str | None = None
    """Picture of DensePose's parts in colours (dp_segm). IDM-VTON was not trained without it."""

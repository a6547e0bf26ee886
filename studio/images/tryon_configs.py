"""What a try-on scene is told of garments and bodies, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from image_tools.tryon.bootcomp_configs import BootCompConfig
from image_tools.tryon.cat_vton_configs import CatVtonConfig
from image_tools.tryon.garment_configs import GarmentCategory
from image_tools.tryon.idm_vton_configs import IdmVtonConfig
from image_tools.tryon.ladi_configs import LadiVtonConfig
from image_tools.tryon.masks_configs import ParseLayout
from image_tools.tryon.stable_viton_configs import StableVitonConfig

__all__ = ["BodyConfig", "GarmentConfig", "TryOnMethodConfig"]

TryOnMethodConfig = (
    IdmVtonConfig | BootCompConfig | CatVtonConfig | LadiVtonConfig | StableVitonConfig
)


@dataclass(frozen=True)
class GarmentConfig:
    """One garment."""

    image: str
    """Product picture, on white as a rule; it is not stretched."""
    category: GarmentCategory
    """upper, lower, pants, skirt, dress, hat, sunglasses, shoes, bag or scarf. Models know some of
    them: BootComp pants and skirts, the others lower ones."""
    caption: str = ""
    """What it is in words, such as "short sleeve round neck t-shirt"; empty for its category."""

    @property
    def words(self) -> str:
        """The caption, or in its place the category."""
        return self.caption or self.category


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
    """Picture of DensePose's parts in colours (dp_segm). IDM-VTON does worse without it."""

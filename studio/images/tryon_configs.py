"""How a try-on scene dresses people, and what it is told of bodies; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from image_tools.tryon.bootcomp_configs import BootCompConfig
from image_tools.tryon.cat_vton_configs import CatVtonConfig
from image_tools.tryon.idm_vton_configs import IdmVtonConfig
from image_tools.tryon.ladi_configs import LadiVtonConfig
from image_tools.tryon.masks_configs import ParseLayout
from image_tools.tryon.stable_viton_configs import StableVitonConfig

__all__ = ["BodyConfig", "KeypointFinder", "TryOnMethodConfig"]

KeypointFinder = Literal["movenet"]

TryOnMethodConfig = (
    IdmVtonConfig | BootCompConfig | CatVtonConfig | LadiVtonConfig | StableVitonConfig
)


@dataclass(frozen=True)
class BodyConfig:
    """What other programs found in the person's picture; all of its size in pixels."""

    parse: str | None = None
    """Picture whose pixels are labels of clothes and body parts (PNG with palette or grey)."""
    layout: ParseLayout = "atr"
    """What the labels mean: atr (18, DressCode, SegFormer; 18 may be the neck) or lip (20,
    VITON-HD)."""
    keypoints: str | None = None
    """OpenPose's JSON file."""
    finder: KeypointFinder | None = None
    """What finds the keypoints where no file has them: movenet, which ships; empty for nothing."""
    min_score: float = 0.3
    """Points that the finder is less sure of, 0 to 1, count as not seen."""
    densepose: str | None = None
    """Picture of DensePose's parts in colours (dp_segm). IDM-VTON was not trained without it."""

    def __post_init__(self) -> None:
        """Refuse what is no score."""
        if not 0.0 <= self.min_score <= 1.0:
            raise ValueError(f"min_score is {self.min_score} - expected 0 to 1.")

    def has(self, name: str) -> bool:
        """Whether a file or the finder tells this of the body."""
        is_found = name == "keypoints" and self.finder is not None
        return is_found or getattr(self, name) is not None

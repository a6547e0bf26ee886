"""Which part of a person is painted anew, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["MaskAlgorithm", "MaskConfig", "MaskMode", "ParseLayout"]

MaskAlgorithm = Literal["viton_hd", "idm_vton", "cat_vton"]
MaskMode = Literal["tight", "loose", "bbox"]
ParseLayout = Literal["atr", "lip"]


@dataclass(frozen=True)
class MaskConfig:
    """How the mask of a garment is made of labels, keypoints and body parts."""

    algorithm: MaskAlgorithm = "idm_vton"
    """viton_hd (LaDI-VTON, StableVITON) and idm_vton (IDM-VTON, OOTDiffusion) draw arms along the
    keypoints; cat_vton (CatVTON) takes the hull of DensePose's parts. A model does best with the
    masks that it was trained with. In ATR's labels the neck is what is called face below the
    shoulders, or has the label 18."""
    mode: MaskMode = "loose"
    """tight is the algorithm's own, which lets the old garment's outline shine through: short
    sleeves come out long and the other way round. loose widens it to its hull; bbox paints the
    whole box around it anew. Head, hands and what the person keeps stay in all of them, but for
    bbox, which keeps the head alone."""
    arm_width: float | None = None
    """Width of a drawn arm in pixels of a picture of 512 rows; empty for the algorithm's own (90
    and 60, for people cut at the hip). 45 fits people who are seen from head to foot."""
    loose_margin: float = 12.0
    """So far loose and bbox go beyond the mask, in pixels of a picture of 512 rows."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.arm_width is not None and self.arm_width <= 0.0:
            raise ValueError(f"arm_width is {self.arm_width} - expected more than 0, or nothing.")
        if self.loose_margin < 0.0:
            raise ValueError(f"loose_margin is {self.loose_margin} - expected at least 0.")

"""Configuration of reading a subject's photos, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from image_tools.vision.cutout_configs import CutoutConfig

__all__ = ["PhotosConfig"]


@dataclass(frozen=True)
class PhotosConfig:
    """How photos of any shape become squares of the prior's size."""

    fit: Literal["crop", "pad"] = "crop"
    """crop keeps the middle square; pad keeps everything and fills up with white, which the mask
    excludes."""
    max_megapixels: float = 80.0
    """Larger photos are skipped before they are decoded, so that a small file cannot fill the
    memory (PNG needs 4 to 8 MB for each, WebP 15). JPEGs count by the reduced size at which they
    are decoded."""

    cutout: CutoutConfig | None = None
    """Takes the subject out of its surroundings and puts it on a plain ground: by a photo's own
    transparency, or by what the photos have in common. Empty keeps the surroundings, which are then
    learned too where no caption names them. {} suits a prior that draws single things."""

    def __post_init__(self) -> None:
        """Refuse a limit that no photo meets."""
        if self.max_megapixels <= 0.0:
            raise ValueError(f"max_megapixels is {self.max_megapixels} - expected above 0.")

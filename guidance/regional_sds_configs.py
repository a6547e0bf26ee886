"""Configuration of score distillation by regions: a frozen dataclass, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from guidance.configs import SDSConfig
from image_tools.control.regional_configs import RegionMode

__all__ = ["RegionalSDSConfig"]


@dataclass(frozen=True)
class RegionalSDSConfig:
    """Score distillation in which each object of the scene's layout has a prompt of its own (RPG,
    arXiv 2401.11708, in 3D). Without a layout it is plain SDS."""

    kind: Literal["regional_sds"] = "regional_sds"
    """Tag of this choice."""
    base_ratio: float = 0.3
    """Share beta of the scene's prompt where an object's box is seen: 0 its own prompt alone, 1
    plain SDS."""
    mode: RegionMode = "attn_crop"
    """attn_crop lets each prompt see the whole render and keeps its region; attn_resize shrinks the
    whole into the region; latent predicts the noise for each prompt and blends the predictions,
    which costs a denoiser call for each object."""
    close_ups: float = 0.0
    """Share of the steps that show one object alone, as large as the image, guided by its own
    prompt: small objects get their shape from them."""
    object_radius: float = 0.85
    """Radius of a single object in the images that the prior knows, with the stage's cameras; in
    close-ups it becomes half of the longest edge of the object's box."""
    sds: SDSConfig = field(default_factory=SDSConfig)
    """The rule around it."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        for name in ("base_ratio", "close_ups"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)} - expected 0 to 1, a share.")
        if not self.object_radius > 0.0:
            raise ValueError(f"object_radius is {self.object_radius} - expected more than 0.")

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
    """Share of the steps in which each view shows one object alone, enlarged, with its own prompt:
    small objects get their shape from them."""
    sds: SDSConfig = field(default_factory=SDSConfig)
    """The rule around it."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        for name in ("base_ratio", "close_ups"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)} - expected 0 to 1, a share.")

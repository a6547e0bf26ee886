"""Configuration of layout guidance: frozen dataclasses, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from guidance.configs import SDSConfig

__all__ = ["LayoutGuidedConfig", "LayoutTermsConfig"]


@dataclass(frozen=True)
class LayoutTermsConfig:
    """Weights of what the attention to an object's words is asked for; 0 leaves a term out."""

    inside: float = 1.0
    """(1 - share of the attention inside the box)^2 (layout control, arXiv 2304.03373, Eq. 2)."""
    centroid: float = 0.0
    """Distance of its centre to the box's, as shares of the image (self-guidance, arXiv 2306.00986,
    section 3.1)."""
    size: float = 0.0
    """Difference of the share of the image that it takes to the box's (self-guidance)."""
    shape: float = 0.0
    """Mean difference of its soft outline to the box's (self-guidance)."""

    def __post_init__(self) -> None:
        """Refuse weights below 0."""
        for entry in fields(self):
            if getattr(self, entry.name) < 0.0:
                raise ValueError(
                    f"{entry.name} is {getattr(self, entry.name)} - expected 0 or more."
                )


@dataclass(frozen=True)
class LayoutGuidedConfig:
    """Score distillation that also moves what the prior sees of each object into its box of the
    scene's layout. Without a layout, or at scale 0 and without close-ups, it is plain SDS."""

    kind: Literal["layout_guided"] = "layout_guided"
    """Tag of this choice."""
    scale: float = 100.0
    """v of v sigma_t grad g, added to the guided noise; depends on the prior's latents."""
    min_t: float = 0.5
    """Views at timesteps below this share of the training length are not moved: there the layout
    is settled, and attention tells details."""
    levels: tuple[int, ...] = (0, 1)
    """Halvings of the latents to the decoder's and middle layers whose attention counts. Stable
    Diffusion: 1 and 2; pocket: 0 and 1."""
    terms: LayoutTermsConfig = LayoutTermsConfig()
    """What the attention is asked for."""
    close_ups: float = 0.0
    """Share of the steps that show one object alone, as large as the image, guided by its own
    prompt: small objects get their shape from them."""
    object_radius: float = 0.85
    """Radius of a single object in the images that the prior knows, with the stage's cameras; in
    close-ups it becomes half of the longest edge of the object's box."""
    sds: SDSConfig = field(default_factory=SDSConfig)
    """The rule around it."""

    def __post_init__(self) -> None:
        """Refuse what is no share, and a scale below 0."""
        for name in ("min_t", "close_ups"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)} - expected 0 to 1, a share.")
        if not self.object_radius > 0.0:
            raise ValueError(f"object_radius is {self.object_radius} - expected more than 0.")
        if self.scale < 0.0:
            raise ValueError(f"scale is {self.scale} - expected 0 or more.")

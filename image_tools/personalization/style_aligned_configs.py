"""Settings of StyleAligned: what images of one style share, and where the style comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from image_tools.personalization.photos_configs import PhotosConfig
from image_tools.personalization.reference_contract import ReferenceToolSettings

__all__ = ["PICTURE_SHIFT", "StyleAlignedConfig", "StyleInversionConfig", "StyleSharingConfig"]

PICTURE_SHIFT = math.log(2.0)
"""The authors' score shift where the reference is a picture."""
PHOTOS = PhotosConfig()


@dataclass(frozen=True)
class StyleSharingConfig:
    """What images share with the reference (StyleAligned, arXiv 2312.02133, section 3)."""

    attention: Literal["reference", "full", "off"] = "reference"
    """reference: each image also looks at the reference. full: every image looks at all images of
    its batch, without any of the normalisation below, which mixes contents too. off: at itself."""
    normalized: tuple[Literal["queries", "keys", "values"], ...] = ("queries", "keys")
    """What of the attention gets the reference's mean and deviation (AdaIN); empty for nothing."""
    group_norm: Literal["auto", "shared", "own"] = "auto"
    """Whether group norms take their statistics from image and reference together. auto does, but
    not for sets that SDXL draws without a picture, as the authors have it."""
    score_scale: float = 1.0
    """Factor of the reference's keys; 0.5 against well-known pictures that come through."""
    score_shift: float | None = None
    """Added to the scores of the reference's keys: more for more of its style. Empty for log 2
    with a picture as the reference and 0 without; 0 also suits well-known pictures."""
    only_self_level: float = 0.0
    """Share of the self-attention layers that share nothing, evenly spread; 1 for all of them."""

    def __post_init__(self) -> None:
        """Refuse shares that are none, and doubled entries."""
        if not 0.0 <= self.only_self_level <= 1.0:
            raise ValueError(f"only_self_level is {self.only_self_level} - expected 0 to 1.")
        if len(set(self.normalized)) != len(self.normalized):
            raise ValueError(f"normalized is {list(self.normalized)} - expected each name once.")

    def with_picture(self) -> StyleSharingConfig:
        """The same for a reference that is a picture: what is left open is as published."""
        shift = PICTURE_SHIFT if self.score_shift is None else self.score_shift
        norms = "shared" if self.group_norm == "auto" else self.group_norm
        return replace(self, score_shift=shift, group_norm=norms)


@dataclass(frozen=True)
class StyleInversionConfig:
    """How a reference picture is turned into noise (DDIM inversion) for drawing beside it."""

    guidance_scale: float = 2.0
    """Guidance during the inversion, s in eps_u + s (eps_c - eps_u)."""
    offset: int = 5
    """The reference is so many steps ahead in the first steps: inverted latents of the noisiest
    steps are the least like a picture's."""

    def __post_init__(self) -> None:
        """Refuse a reference that is behind."""
        if self.offset < 0:
            raise ValueError(f"offset is {self.offset} - expected 0 or more steps.")


@dataclass(frozen=True)
class StyleAlignedConfig(ReferenceToolSettings):
    """Pictures in one style without training (StyleAligned, arXiv 2312.02133)."""

    kind: Literal["style_aligned"] = "style_aligned"
    image: str | None = None
    """Picture whose style is taken; empty to draw a set in the style of its first picture."""
    image_prompt: str = ""
    """What that picture shows, in words, its style included."""
    photos: PhotosConfig = PHOTOS
    """How the picture becomes a square."""
    prompts: tuple[str, ...] = ()
    """More things to draw in the same style."""
    style: str = ""
    """Words of the style that are put behind every prompt: "<prompt>, <style>."; empty where the
    prompts say it themselves."""
    sharing: StyleSharingConfig = StyleSharingConfig()
    """What is shared."""
    inversion: StyleInversionConfig = StyleInversionConfig()
    """How the picture is brought back; 3D scenes add noise to it instead."""
    seed: int = 0
    """Of the noise on the picture in 3D scenes."""

    def __post_init__(self) -> None:
        """Refuse a picture that nothing is said about, and a set of one."""
        if self.image is not None and not self.image_prompt.strip():
            raise ValueError("image_prompt is empty - expected what the image shows, in words.")
        if self.image is None and not self.prompts:
            raise ValueError(
                "there are neither an image nor prompts - expected a picture whose style is taken, "
                "or more things to draw in the style of the first."
            )
        if self.image is not None and self.sharing.attention == "full":
            raise ValueError(
                "sharing.attention is full with an image - expected reference: pictures that all "
                "see each other take no style from one of them."
            )

    def pictures(self) -> list[tuple[str, str]]:
        """The reference, if there is one."""
        return [] if self.image is None else [("image", self.image)]

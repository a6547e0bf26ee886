"""Configuration of MS-Diffusion (arXiv 2406.07209): frozen dataclasses, free of torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from image_tools.editing.phrases import phrase_starts
from image_tools.personalization.ip_adapter_configs import ImageDropConfig, ViewFadeConfig
from image_tools.personalization.loop_configs import TuningConfig
from image_tools.personalization.photos_configs import PhotosConfig
from image_tools.personalization.reference_contract import ReferenceToolSettings

__all__ = [
    "MAX_IMAGES",
    "AutoLayoutConfig",
    "Box",
    "MSDiffusionConfig",
    "MSShape",
    "MSSubjectConfig",
    "MSTrainingConfig",
]

Box = tuple[float, float, float, float]
MAX_IMAGES = 4
"""So many images of subjects the published model was trained with at once."""
LONG = TuningConfig(steps=100_000, learning_rate=1e-4)
DROPS = ImageDropConfig()
FADE = ViewFadeConfig()
PADDED = PhotosConfig(fit="pad")


@dataclass(frozen=True)
class MSSubjectConfig:
    """A subject: what it looks like, what the prompt calls it, and where it shall be."""

    images: tuple[str, ...]
    """Pictures of it, one or more; best cut out, on a plain background."""
    phrase: str
    """Words of the prompt that name it, such as dog. Of subjects that are named alike, the second
    one takes the words' second place."""
    box: Box | None = None
    """Left, top, right and bottom, shares of the picture from 0 to 1; empty where layout finds the
    places."""
    scale: float | None = None
    """Factor of its images in the place of the tool's."""

    def __post_init__(self) -> None:
        """Refuse what is no subject."""
        if not self.images:
            raise ValueError("images is empty - expected at least one picture of the subject.")
        if not self.phrase.strip():
            raise ValueError("phrase is empty - expected words of the prompt, such as dog.")
        if self.box is not None:
            _check_box(self.box)
        if self.scale is not None:
            _check_scale(self.scale)


@dataclass(frozen=True)
class AutoLayoutConfig:
    """Places by what the denoiser sees of each phrase while it draws."""

    threshold: float = 0.5
    """Share of a phrase's stretched attention above which its subject is there."""
    start_step: int = 5
    """Number of steps to look at first; until then boxes hold, and a subject without is nowhere."""

    def __post_init__(self) -> None:
        """Refuse what is no share, and no step at all."""
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold is {self.threshold} - expected 0 to 1.")
        if self.start_step < 1:
            raise ValueError(f"start_step is {self.start_step} - expected at least 1.")


@dataclass(frozen=True)
class MSDiffusionConfig(ReferenceToolSettings):
    """MS-Diffusion (arXiv 2406.07209): up to four subjects of your own in one picture, each in its
    box."""

    weights: str
    """The adapter: ms_adapter.bin of doge1516/MS-Diffusion, which is for SDXL, or a .safetensors
    file that was trained here."""
    image_encoder: str
    """Folder of the CLIP vision model that the adapter was trained with: bigG for the published
    one."""
    subjects: tuple[MSSubjectConfig, ...]
    """Who shall be in the picture."""
    kind: Literal["ms_diffusion"] = "ms_diffusion"
    scale: float = 0.6
    """Factor of the attention to images. The authors' value; 0.4 where one subject is the
    background, 0 switches the tool off."""
    layout: AutoLayoutConfig | None = None
    """Finds places while drawing; empty for boxes alone, which all subjects then need."""
    fade: ViewFadeConfig = FADE
    """What 3D scenes show to their sides and back."""
    photos: PhotosConfig = PADDED
    """How pictures become squares. pad keeps the edges, crop is what CLIP was trained on."""
    grounding: Literal["box_and_phrase", "learned"] = "box_and_phrase"
    """What the images' tokens start from: each subject's box and phrase, or what the adapter
    learned for subjects without."""

    def __post_init__(self) -> None:
        """Refuse subjects that the adapter cannot place or was not made for."""
        count = sum(len(subject.images) for subject in self.subjects)
        if not 1 <= count <= MAX_IMAGES:
            raise ValueError(
                f"subjects have {count} images together - expected 1 to {MAX_IMAGES}, which the "
                "model takes. Give fewer subjects, or fewer images of each."
            )
        _check_scale(self.scale)

    def pictures(self) -> list[tuple[str, str]]:
        """All images of all subjects."""
        return [
            (f"subjects.{k}.images.{n}", path)
            for k, subject in enumerate(self.subjects)
            for n, path in enumerate(subject.images)
        ]

    def models(self) -> list[tuple[str, str]]:
        """The adapter and its image encoder."""
        return [("weights", self.weights), ("image_encoder", self.image_encoder)]

    def problems(self, prompt: str) -> list[str]:
        """Subjects that have no place in a picture of a prompt, each with the key at fault."""
        found = [
            f"subjects.{k}.box: is empty - expected the place of '{subject.phrase}', or layout to "
            "find one."
            for k, subject in enumerate(self.subjects)
            if subject.box is None and self.layout is None
        ]
        named = Counter()
        for k, subject in enumerate(self.subjects):
            places = len(phrase_starts(prompt.split(), subject.phrase))
            named[subject.phrase.lower()] += 1
            if places < named[subject.phrase.lower()]:
                found.append(
                    f"subjects.{k}.phrase: '{subject.phrase}' stands {_times(places)} in the "
                    f"prompt '{prompt}' - expected one place for each subject of that name. Use "
                    "words of the prompt, or name the subject there."
                )
        return found


@dataclass(frozen=True)
class MSShape:
    """Sizes of an adapter; those of the published one unless told."""

    image_width: int = 1664
    """Width of the image encoder's states."""
    phrase_width: int = 768
    """Width of a phrase's pooled embedding."""
    text_width: int = 2048
    """Width of the denoiser's text tokens."""
    dim: int = 1280
    """Width of the resampler; its heads are 64 wide."""
    heads: int = 20
    """Heads of the resampler."""
    depth: int = 4
    """Layers of the resampler."""
    tokens: int = 16
    """Tokens of each image."""
    dummies: int = 4
    """Tokens for places without a subject."""


@dataclass(frozen=True)
class MSTrainingConfig:
    """How an adapter is trained (arXiv 2406.07209, section 4.1)."""

    loop: TuningConfig = LONG
    """Length and learning rate; the authors use weight decay 0.01 and clip gradients at 1."""
    drops: ImageDropConfig = DROPS
    """What is hidden of images and text: all images of a sample at once."""
    grounding_drop: float = 0.1
    """Share of samples whose tokens start from learned latents, not from boxes and phrases."""
    checkpointing: bool = False
    """Recompute the denoiser's activations in the backward pass: less memory, more time, the same
    result."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        if not 0.0 <= self.grounding_drop <= 1.0:
            raise ValueError(f"grounding_drop is {self.grounding_drop} - expected 0 to 1.")


def _check_box(box: Box) -> None:
    left, top, right, bottom = box
    if not all(0.0 <= value <= 1.0 for value in box):
        raise ValueError(
            f"box is {list(box)} - expected left, top, right, bottom from 0 to 1, shares of the "
            "picture. Divide pixels by its width and height."
        )
    if left >= right or top >= bottom:
        raise ValueError(
            f"box is {list(box)}, which is empty - expected left below right and top below bottom."
        )


def _check_scale(scale: float) -> None:
    if scale < 0.0:
        raise ValueError(f"scale is {scale} - expected 0 or more.")


def _times(count: int) -> str:
    return {0: "nowhere", 1: "once"}.get(count, f"{count} times")

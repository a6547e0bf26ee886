"""Configuration of IP-Adapter (arXiv 2308.06721) and its trainer, importable without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from image_tools.personalization.loop_configs import TuningConfig
from image_tools.personalization.photos_configs import PhotosConfig
from image_tools.personalization.reference_contract import ReferenceToolSettings
from image_tools.vision.face_configs import FacesConfig, MeshFacesConfig

__all__ = [
    "BlockScaleConfig",
    "IPAdapterConfig",
    "IPAdapterTrainingConfig",
    "IPVariant",
    "ImageDropConfig",
    "ViewFadeConfig",
]

IPVariant = Literal["base", "plus", "full", "faceid", "faceid_plus"]
"""What an adapter reads: CLIP's embedding, CLIP's tokens (by a resampler, or one by one), a face's
identity, or identity and tokens. plus-face is a plus, portrait a faceid, plusv2 a faceid_plus."""

BLOCK = re.compile(r"(down|up)\.\d+|mid")
PHOTOS = PhotosConfig()
MESH = MeshFacesConfig()
LONG = TuningConfig(steps=100_000, learning_rate=1e-4)


@dataclass(frozen=True)
class BlockScaleConfig:
    """Factor of the images in one block of the denoiser."""

    block: str
    """down.N, mid or up.N, counted from 0 in the order in which the denoiser runs."""
    scales: tuple[float, ...] = (1.0,)
    """One for all transformers of the block, or one for each. The style of SDXL lies in up.0 with
    (0, 1, 0), its layout in down.2 with (0, 1) (InstantStyle, arXiv 2404.02733)."""

    def __post_init__(self) -> None:
        """Refuse what is no block, and no scale."""
        if not BLOCK.fullmatch(self.block):
            raise ValueError(
                f"block is {self.block!r} - expected down.N, mid or up.N, such as up.0."
            )
        if not self.scales:
            raise ValueError(f"scales of {self.block} is empty - expected a number, such as 1.")


@dataclass(frozen=True)
class ViewFadeConfig:
    """How a picture counts less the further a view of a 3D scene turns away from its front."""

    least: float = 0.2
    """Share of the scale at the back: scale (least + (1 - least) max(0, cos azimuth)). 1 shows all
    views the picture alike, which puts its front on every side. Pictures are not touched."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        if not 0.0 <= self.least <= 1.0:
            raise ValueError(f"least is {self.least} - expected 0 to 1.")


@dataclass(frozen=True)
class IPAdapterConfig(ReferenceToolSettings):
    """Pictures as prompts (IP-Adapter, arXiv 2308.06721): what they show joins the text."""

    weights: str
    """The adapter: a .safetensors or .bin file of h94/IP-Adapter or h94/IP-Adapter-FaceID, or one
    that was trained here. Its variant is read from the file."""
    kind: Literal["ip_adapter"] = "ip_adapter"
    images: tuple[str, ...] = ()
    """Pictures to go by, one or more; for adapters of faces alone none is needed. With identities
    for a faceid_plus: the same faces, cut out and upright."""
    image_encoder: str | None = None
    """Folder of the CLIP vision model that the adapter was trained with (models/image_encoder of
    h94/IP-Adapter); adapters of faces alone need none."""
    faces: FacesConfig = MESH
    """For faceid variants: what reads the identity of the largest face in each image. Public
    weights need kind: insightface, or identities of its buffalo_l."""
    identities: tuple[str, ...] = ()
    """For faceid variants: a .npy or .safetensors file for each face, in the place of faces. The
    plain faceid needs no images then."""
    normed: bool = True
    """For faceid variants: bring identities to length 1, as all public weights want them but the
    portraits called unnorm."""
    photos: PhotosConfig = PHOTOS
    """How pictures become squares. crop is what CLIP was trained on; pad keeps the edges."""
    scale: float = 0.6
    """Factor of the attention to images; 0 switches the tool off. 0.5 to 0.8 beside a prompt, 1 for
    images alone, less with few steps and low guidance."""
    blocks: tuple[BlockScaleConfig, ...] = ()
    """Factors by block, on top of scale; blocks that are not named get 0. Empty: 1 everywhere."""
    masks: tuple[str, ...] = ()
    """A picture for each image, white where it acts; then images act one by one and add up. Empty:
    all act everywhere, in one attention."""
    start: float = 0.0
    """From where in the denoising it acts: 0 is all noise, 1 none. By the timestep, so it means the
    same in every sampler and in 3D."""
    end: float = 1.0
    """Until where it acts. Ending early leaves details to the text."""
    fade: ViewFadeConfig = ViewFadeConfig()
    """What 3D scenes show to their sides and back."""
    structure: float | None = None
    """For faceid_plus: factor of the face's structure beside its identity in version 2 of the
    weights (1 as published); empty for version 1, which knows no such sum. Files do not tell their
    version, but public names do: with plusv2 in the name it must be given."""
    lora_scale: float = 1.0
    """For faceid variants: factor of the LoRA in the file."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not self.images and not self.identities:
            raise ValueError("images is empty - expected at least one picture, or an identity.")
        count = len(self.images) or len(self.identities)
        for name in ("masks", "identities"):
            given = len(getattr(self, name))
            if given not in (0, count):
                raise ValueError(
                    f"{name} has {given} entries for {count} images - expected one for each, or "
                    "none."
                )
        if not 0.0 <= self.start < self.end <= 1.0:
            raise ValueError(
                f"start {self.start}, end {self.end} - expected 0 <= start < end <= 1."
            )
        if self.scale < 0.0:
            raise ValueError(f"scale is {self.scale} - expected 0 or more.")
        names = [one.block for one in self.blocks]
        if len(set(names)) != len(names):
            raise ValueError(f"blocks names {', '.join(names)} - expected each block once.")

    def pictures(self) -> list[tuple[str, str]]:
        """Images and masks."""
        return [
            *((f"images.{k}", path) for k, path in enumerate(self.images)),
            *((f"masks.{k}", path) for k, path in enumerate(self.masks)),
        ]

    def models(self) -> list[tuple[str, str]]:
        """The adapter, its image encoder and embeddings."""
        encoder = [] if self.image_encoder is None else [("image_encoder", self.image_encoder)]
        faces = [(f"identities.{k}", path) for k, path in enumerate(self.identities)]
        return [("weights", self.weights), *encoder, *faces]


@dataclass(frozen=True)
class ImageDropConfig:
    """What training hides, disjoint shares, so that guidance works and each input counts."""

    image: float = 0.05
    """Samples without an image."""
    text: float = 0.05
    """Samples with an empty prompt."""
    both: float = 0.05
    """Samples with neither."""

    def __post_init__(self) -> None:
        """Refuse what are no shares."""
        shares = (self.image, self.text, self.both)
        if min(shares) < 0.0 or sum(shares) > 1.0:
            raise ValueError(
                f"image, text, both are {shares} - expected 0 or more, at most 1 together."
            )


@dataclass(frozen=True)
class IPAdapterTrainingConfig:
    """How an IP-Adapter is trained (arXiv 2308.06721, section 4.1)."""

    loop: TuningConfig = LONG
    """Length and learning rate; the authors use AdamW with 1e-4 and weight decay 0.01."""
    drops: ImageDropConfig = ImageDropConfig()
    """What is hidden."""
    offset_noise: float = 0.0
    """Standard deviation of a constant added to each channel's noise; 0 for none."""
    min_snr_gamma: float | None = None
    """Min-SNR weighting (arXiv 2303.09556); empty for none, as the authors train."""
    checkpointing: bool = False
    """Recompute the denoiser's activations in the backward pass: less memory, more time, the same
    result."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.offset_noise < 0.0:
            raise ValueError(f"offset_noise is {self.offset_noise} - expected 0 or more.")
        if self.min_snr_gamma is not None and self.min_snr_gamma <= 0.0:
            raise ValueError(f"min_snr_gamma is {self.min_snr_gamma} - expected above 0.")

"""Configuration of InstantID (arXiv 2401.07519) and its trainer, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from image_tools.control.control_configs import ControlConfig
from image_tools.personalization.ip_adapter_configs import ImageDropConfig
from image_tools.personalization.loop_configs import TuningConfig
from image_tools.personalization.reference_contract import ReferenceToolSettings
from image_tools.vision.face_configs import FacesConfig, MeshFacesConfig

__all__ = ["HeadConfig", "InstantIDConfig", "InstantIDNetConfig", "InstantIDTrainingConfig"]

LONG = TuningConfig(steps=100_000, learning_rate=1e-4)
DROPS = ImageDropConfig()
MESH = MeshFacesConfig()


@dataclass(frozen=True)
class HeadConfig:
    """Where a 3D scene has the head whose landmarks each view follows."""

    center: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Middle of the head, half-way between crown and chin, in the world."""
    height: float = 1.0
    """From chin to crown."""
    azimuth_deg: float = 0.0
    """Where the face looks; 0 is the front of the scene."""

    def __post_init__(self) -> None:
        """Refuse a head without a size."""
        if self.height <= 0.0:
            raise ValueError(f"height is {self.height} - expected above 0.")


@dataclass(frozen=True, kw_only=True)
class InstantIDNetConfig(ControlConfig):
    """Another ControlNet beside the identity's, such as depth or edges; it sees the text."""

    weights: str
    """A folder in diffusers layout, one .safetensors file of either layout, or the name of an
    adapter that ships with the package."""
    image: str
    """Its condition, a picture of the prior's image size."""


@dataclass(frozen=True)
class InstantIDConfig(ReferenceToolSettings):
    """A person's face from one photo, with a ControlNet of facial landmarks that sees the identity
    in the place of the text (InstantID, arXiv 2401.07519)."""

    weights: str
    """Folder in the layout of InstantX/InstantID: ControlNetModel/ and ip-adapter.bin (or
    ip-adapter.safetensors), or one that was trained here."""
    kind: Literal["instant_id"] = "instant_id"
    photos: tuple[str, ...] = ()
    """Photos of the person; the largest face of each counts. Several are averaged."""
    identity: str | None = None
    """A .npy or .safetensors file with the person's raw embedding, in the place of photos."""
    faces: FacesConfig = MESH
    """What reads identities from photos. Public weights need kind: insightface, or an identity
    of its antelopev2."""
    pose: str | None = None
    """Picture whose face says where eyes, nose and mouth shall be; empty for the first photo."""
    fit: Literal["crop", "pad"] = "crop"
    """crop takes the middle square of the pose, pad all of it."""
    drawing: Literal["scaled", "legacy"] = "scaled"
    """scaled draws landmarks in proportion to the picture; legacy draws the pixels of the authors'
    code, which fit pictures of about 1024 pixels."""
    scale: float = 0.8
    """Factor of the denoiser's attention to the identity; less against over-saturation."""
    control_scale: float = 0.8
    """Factor of the landmarks' ControlNet."""
    mask: str | None = None
    """A picture that is white where identity and landmarks act; empty for everywhere."""
    nets: tuple[InstantIDNetConfig, ...] = ()
    """More ControlNets."""
    head: HeadConfig | None = None
    """For 3D scenes: where the head is. Its landmarks replace the pose in each view, and both
    factors fade to 0 where the face turns away."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if bool(self.photos) == (self.identity is not None):
            raise ValueError("photos and identity are both given or both empty - expected one.")
        if not self.photos and self.pose is None and self.head is None:
            raise ValueError(
                "pose is empty, and an identity alone has no landmarks - expected a picture with a "
                "face, or a head for a 3D scene."
            )
        for name in ("scale", "control_scale"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name} is {getattr(self, name)} - expected 0 or more.")

    def pictures(self) -> list[tuple[str, str]]:
        """Photos, the pose, the mask and conditions."""
        single = [(key, getattr(self, key)) for key in ("pose", "mask")]
        return [
            *((f"photos.{k}", path) for k, path in enumerate(self.photos)),
            *((key, path) for key, path in single if path is not None),
            *((f"nets.{k}.image", net.image) for k, net in enumerate(self.nets)),
        ]

    def models(self) -> list[tuple[str, str]]:
        """InstantID's folder, the embedding and more ControlNets."""
        person = [] if self.identity is None else [("identity", self.identity)]
        nets = [(f"nets.{k}.weights", net.weights) for k, net in enumerate(self.nets)]
        return [("weights", self.weights), *person, *nets]

    def scene_problems(self) -> list[str]:
        """A 3D scene has cameras around it, and one photo's pose fits one of them."""
        if self.head is not None:
            return []
        return [
            "head: is empty, and in 3D the landmarks of a head are followed - expected where it "
            "is, such as head={center: [0, 0, 0], height: 1.0}."
        ]


@dataclass(frozen=True)
class InstantIDTrainingConfig:
    """How InstantID is trained: resampler, keys and values, and ControlNet together."""

    loop: TuningConfig = LONG
    """Length and learning rate; public training code uses AdamW with 1e-4 and weight decay 0.01."""
    drops: ImageDropConfig = DROPS
    """What is hidden. The authors hide nothing, public training code 5 % each."""
    min_snr_gamma: float | None = None
    """Min-SNR weighting (arXiv 2303.09556); empty for none, as in public training code."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same result."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.min_snr_gamma is not None and self.min_snr_gamma <= 0.0:
            raise ValueError(f"min_snr_gamma is {self.min_snr_gamma} - expected above 0.")

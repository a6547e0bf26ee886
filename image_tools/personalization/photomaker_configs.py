"""Configuration of PhotoMaker (arXiv 2312.04461), importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from image_tools.personalization.photomaker_prompts import TriggerError, split_trigger
from image_tools.personalization.reference_contract import ReferenceToolSettings
from image_tools.vision.face_configs import FacesConfig, MeshFacesConfig

__all__ = ["PhotoMakerConfig"]

FACES = MeshFacesConfig()


@dataclass(frozen=True)
class PhotoMakerConfig(ReferenceToolSettings):
    """A person from a few photos, for SDXL (PhotoMaker v1 and v2, arXiv 2312.04461)."""

    weights: str
    """photomaker-v1 or photomaker-v2, as .bin or .safetensors, or a file that was trained here. Its
    version is read from the file."""
    photos: tuple[str, ...]
    """Photos of the person, each with the face in its middle. Three or four are more alike than
    one; each takes a token of the prompt, and two in v2. Photos of several people are mixed."""
    kind: Literal["photomaker"] = "photomaker"
    identities: tuple[str, ...] = ()
    """For v2: .npy or .safetensors files with the raw embedding of the face in each photo, or one
    for all of them, in the place of what faces says."""
    faces: FacesConfig = FACES
    """For v2: what reads the face in each photo. Public weights need kind: insightface, or
    identities of its buffalo_l."""
    trigger: str = "img"
    """The word behind the class word in prompts: a portrait of a man img."""
    style_strength: float = 20.0
    """Percent of the noise, from the top, at which only the text is known: less is more alike, more
    leaves composition, style and, in 3D, the view to the words. 15 to 50."""
    lora_weight: float = 1.0
    """Factor of the file's LoRA."""
    photo_weights: tuple[float, ...] = ()
    """Factor of each photo's tokens, to mix several people unevenly; empty for ones."""
    fit: Literal["crop", "pad"] = "crop"
    """crop takes the middle square of each photo, pad all of it."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not self.photos:
            raise ValueError("photos is empty - expected one to four photos of the person.")
        if not 0.0 <= self.style_strength <= 100.0:
            raise ValueError(f"style_strength is {self.style_strength} - expected 0 to 100.")
        if self.photo_weights and len(self.photo_weights) != len(self.photos):
            raise ValueError(
                f"photo_weights has {len(self.photo_weights)} entries for {len(self.photos)} "
                "photos - expected one for each, or none."
            )
        if len(self.identities) not in (0, 1, len(self.photos)):
            raise ValueError(
                f"identities has {len(self.identities)} entries for {len(self.photos)} photos - "
                "expected one for each, one for all, or none."
            )
        if not self.trigger or self.trigger != "".join(self.trigger.split()):
            raise ValueError(f"trigger is {self.trigger!r} - expected one word, such as img.")

    def pictures(self) -> list[tuple[str, str]]:
        """The photos."""
        return [(f"photos.{k}", path) for k, path in enumerate(self.photos)]

    def models(self) -> list[tuple[str, str]]:
        """PhotoMaker's file and embeddings."""
        own = [(f"identities.{k}", path) for k, path in enumerate(self.identities)]
        return [("weights", self.weights), *own]

    def problems(self, prompt: str) -> list[str]:
        """A prompt that does not say whom the photos show."""
        try:
            split_trigger(prompt, self.trigger)
        except TriggerError as error:
            return [f"trigger: {error}"]
        return []

    def plain_prompt(self, prompt: str) -> str:
        """The prompt without its trigger."""
        return split_trigger(prompt, self.trigger).text

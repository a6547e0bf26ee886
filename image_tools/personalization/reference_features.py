"""What encoders see in reference images: CLIP's features and identities of faces.

present, absent = encode_references(images, clip=clip, part="hidden")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from image_tools.vision.clip_images import ClipImages
from renderers.errors import ShapeError, StudioError

__all__ = ["ClipPart", "ReferenceFeatures", "encode_references"]

ClipPart = Literal["pooled", "hidden", "nothing"]
"""Which of CLIP's features a tool reads."""


@dataclass(frozen=True)
class ReferenceFeatures:
    """Features of images, one row each."""

    clip: Tensor | None = None
    """CLIP's embedding ``[images, e]`` or its tokens ``[images, n, c]``."""
    face: Float[Tensor, "images width"] | None = None
    """Identities."""

    def __len__(self) -> int:
        return len(next(part for part in (self.clip, self.face) if part is not None))

    def to(self, like: Tensor) -> ReferenceFeatures:
        """On another tensor's device and in its number format."""
        return self._map(lambda part: part.to(like))

    def select(self, rows: Int[Tensor, " selected"]) -> ReferenceFeatures:
        """Rows by index, in the order given."""
        return self._map(lambda part: part[rows.to(part.device)])

    @staticmethod
    def stack(parts: Sequence[ReferenceFeatures]) -> ReferenceFeatures:
        """All rows of several; all have the same features."""
        clips = [part.clip for part in parts if part.clip is not None]
        faces = [part.face for part in parts if part.face is not None]
        return ReferenceFeatures(
            torch.cat(clips) if clips else None, torch.cat(faces) if faces else None
        )

    def where(
        self, is_kept: Bool[Tensor, " images"], absent: ReferenceFeatures
    ) -> ReferenceFeatures:
        """These features in the rows that are kept, those of no image in the others."""

        def choose(own: Tensor | None, none: Tensor | None) -> Tensor | None:
            if own is None:
                return None
            return torch.where(is_kept.to(own.device).reshape(-1, *[1] * (own.ndim - 1)), own, none)

        return ReferenceFeatures(choose(self.clip, absent.clip), choose(self.face, absent.face))

    def _map(self, change: Callable[[Tensor], Tensor]) -> ReferenceFeatures:
        parts = (self.clip, self.face)
        return ReferenceFeatures(*(None if part is None else change(part) for part in parts))


@torch.no_grad()
def encode_references(
    images: Float[Tensor, "images h w 3"] | None,
    *,
    part: ClipPart,
    clip: ClipImages | None = None,
    face: Float[Tensor, "images width"] | None = None,
) -> tuple[ReferenceFeatures, ReferenceFeatures]:
    """Features of images, and those that stand where there is no image.

    The latter are those that IP-Adapters are trained with: a zero embedding, the tokens of zero
    pixels (after normalisation), a zero identity.

    Args:
        images: in 0..1; None where only identities count.
        part: what of CLIP's is wanted.
        clip: sees the images.
        face: identities, one for each image.

    Raises:
        StudioError: the images or the model that ``part`` wants are not given.
        ShapeError: there are not as many identities as images.
    """
    if part == "nothing":
        if face is None:
            raise StudioError("There is neither an image nor a face to look at. Give one.")
        return ReferenceFeatures(face=face), ReferenceFeatures(face=torch.zeros_like(face))
    if images is None or clip is None:
        absent = "images" if images is None else "a CLIP vision model (image_encoder)"
        raise StudioError(f"The tool looks at images by CLIP, and {absent} is not given. Give it.")
    if face is not None and len(face) != len(images):
        raise ShapeError(
            f"{len(face)} faces came with {len(images)} images. Give the identity of one face for "
            "each image."
        )
    own = getattr(clip.features(images), part)
    if part == "pooled":
        none = torch.zeros_like(own)
    else:
        none = clip.see(clip.black(1)).hidden.to(own).expand_as(own)
    no_face = None if face is None else torch.zeros_like(face)
    return ReferenceFeatures(own, face), ReferenceFeatures(none, no_face)

"""Faces in pictures: where they are, five landmarks, and who it is, as numbers.

Any detector and any identity network can stand behind ``FaceAnalyzer``; tools say which width of
embedding they want. Landmarks are in the order of ArcFace's five: the eye on the left of the
picture, the eye on its right, the tip of the nose, the left and the right corner of the mouth.

    analyzer = MeshFaceAnalyzer()                         # image_tools/vision/mesh_faces.py
    face = main_face(analyzer, load_face_image("me.jpg"), name="me.jpg")
    face.embedding, face.normed, face.bbox, face.kps, face.score
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from image_tools.personalization.photos import load_photo
from image_tools.personalization.photos_configs import PhotosConfig
from renderers.errors import StudioError

__all__ = ["Face", "FaceAnalyzer", "FaceNotFound", "load_face_image", "main_face"]

logger = logging.getLogger(__name__)

WHOLE = PhotosConfig(fit="pad")
IMAGE_SIZE = 1024


class FaceNotFound(StudioError):
    """A picture that should show a face shows none that can be found."""

    exit_code = 2


@dataclass(frozen=True)
class Face:
    """One face of a picture."""

    embedding: Float[Tensor, " width"]
    """Who it is, as the network says it, without normalisation."""
    bbox: Float[Tensor, "4"]
    """Left, top, right and bottom, in pixels."""
    kps: Float[Tensor, "5 2"]
    """Eyes, nose and corners of the mouth, x and y in pixels."""
    score: float
    """How sure the detector is, 0 to 1."""

    @property
    def normed(self) -> Float[Tensor, " width"]:
        """The embedding at length 1, for comparing faces by the cosine."""
        return F.normalize(self.embedding, dim=-1)

    @property
    def area(self) -> float:
        """Pixels in the box."""
        left, top, right, bottom = self.bbox.tolist()
        return max(right - left, 0.0) * max(bottom - top, 0.0)


class FaceAnalyzer(Protocol):
    """What finds and describes faces."""

    width: int
    """Numbers in an embedding."""

    def faces(self, image: Float[Tensor, "h w 3"]) -> list[Face]:
        """Every face of a picture in 0..1, the largest first; none is an empty list."""
        ...


def main_face(analyzer: FaceAnalyzer, image: Float[Tensor, "h w 3"], *, name: str) -> Face:
    """The largest face of a picture; that there are others is told to the log.

    Args:
        analyzer: finds it.
        image: the picture, in 0..1.
        name: what messages call the picture.

    Raises:
        FaceNotFound: there is none.
    """
    found = analyzer.faces(image)
    if not found:
        height, width = image.shape[:2]
        raise FaceNotFound(
            f"No face was found in '{name}' ({width}x{height} pixels) - expected one that looks "
            "towards the camera and is at least 24 pixels wide. Choose another picture, or cut "
            "this one less tightly."
        )
    if len(found) > 1:
        left, top, right, bottom = (round(side) for side in found[0].bbox.tolist())
        logger.warning(
            "There are %d faces in '%s'; the largest one is used, at %d..%d, %d..%d.",
            *(len(found), name, left, right, top, bottom),
        )
    return found[0]


def load_face_image(path: Path | str, *, size: int = IMAGE_SIZE) -> Float[Tensor, "s s 3"]:
    """A whole photo as its EXIF says, on a white square.

    Raises:
        PhotosError: if it is absent or cannot be read.
    """
    return load_photo(path, size=size, config=WHOLE)

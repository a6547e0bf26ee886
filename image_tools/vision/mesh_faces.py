"""The face analyser that ships: BlazeFace finds, Face Mesh places, faceres says who it is.

Everything runs in PyTorch without a network, on any device. A face that fills the picture is found
in a larger square around it, a small one in parts of the picture.

The identity is 1024 numbers of HSE_FaceRec_tf, trained on VGGFace2. **It is not ArcFace's**: the
public weights of InstantID, IP-Adapter FaceID and PhotoMaker v2 expect the 512 numbers of
InsightFace (``image_tools/vision/insight_faces.py``) and make nothing sensible of these. They serve
adapters that were trained on them, and judging whether two pictures show the same person.

    faces = MeshFaceAnalyzer().faces(image)               # image [h, w, 3] in 0..1
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.vision.face_crops import Frame, cut, frame_around, windows
from image_tools.vision.face_detection import Detections, decode_detections
from image_tools.vision.faces import Face
from image_tools.vision.graph import load_graph
from image_tools.vision.paths import VISION_FOLDER
from renderers.errors import check_shape

__all__ = ["MeshFaceAnalyzer", "five_points"]

MIN_SCORE = 0.5
MIN_PRESENCE = 0.5
# Around a detected box, as Face Mesh was trained, and around a mesh, for the identity.
MESH_SCALE = 1.5
IDENTITY_SCALE = 1.3
# Points of the mesh: outlines of the eyes, the nose from its tip to below it, corners of the mouth.
LEFT_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
RIGHT_EYE = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)
NOSE = (1, 4)
MOUTH = (61, 291)


class MeshFaceAnalyzer:
    """Finds faces, their five landmarks, and an identity of 1024 numbers."""

    width = 1024

    def __init__(self, folder: Path = VISION_FOLDER, *, device: torch.device | None = None) -> None:
        """Read the three networks.

        Raises:
            WeightsMissing: one of them is not there.
        """
        self.device = device or torch.device("cpu")
        names = ("facemesh-detection-short", "facemesh", "faceres")
        nets = (load_graph(folder / f"{name}.json").to(self.device) for name in names)
        self.detector, self.mesh, self.identity = nets

    @torch.no_grad()
    def faces(self, image: Float[Tensor, "h w 3"]) -> list[Face]:
        """Every face of a picture in 0..1, the largest first.

        Raises:
            ShapeError: if it is no picture.
        """
        check_shape("image", image, "H W 3")
        image = image.to(self.device, torch.float32)
        for frames in windows(*image.shape[:2]):
            found = [face for frame in frames for face in self._faces_in(image, frame)]
            if found:
                return _distinct(found)
        return []

    def _faces_in(self, image: Tensor, window: Frame) -> list[Face]:
        small = cut(image, window, size=self.detector.settings.size)
        raw = self.detector(small[None])["objects"][0]
        detections = decode_detections(raw, min_score=MIN_SCORE)
        faces = (self._face(image, window, detections, k) for k in range(len(detections)))
        return [face for face in faces if face is not None]

    def _face(
        self, image: Tensor, window: Frame, detections: Detections, index: int
    ) -> Face | None:
        """What is known of a detected face; None where the mesh sees none."""
        corners = window.to_picture(detections.boxes[index].reshape(2, 2))
        eyes = window.to_picture(detections.points[index, :2])
        frame = frame_around(corners, eyes=eyes, scale=MESH_SCALE)
        points = self._mesh_points(image, frame)
        if points is None:
            return None
        kps = five_points(points)
        around = frame_around(points, eyes=kps[:2], scale=IDENTITY_SCALE)
        crop = cut(image, around, size=self.identity.settings.size)
        embedding = self.identity(crop[None])["descriptor"][0]
        bbox = torch.cat([points.amin(dim=0), points.amax(dim=0)])
        parts = (part.cpu() for part in (embedding, bbox, kps))
        return Face(*parts, float(detections.scores[index]))

    def _mesh_points(self, image: Tensor, frame: Frame) -> Float[Tensor, "468 2"] | None:
        size = self.mesh.settings.size
        found = self.mesh(cut(image, frame, size=size)[None])
        if float(found["presence"]) < MIN_PRESENCE:
            return None
        return frame.to_picture(found["mesh"].reshape(-1, 3)[:, :2] / size)


def five_points(mesh: Float[Tensor, "468 d"]) -> Float[Tensor, "5 d"]:
    """ArcFace's five landmarks of Face Mesh's points, in two or three dimensions."""
    left, right, nose = (mesh[list(part)].mean(dim=0) for part in (LEFT_EYE, RIGHT_EYE, NOSE))
    return torch.stack([left, right, nose, *mesh[list(MOUTH)]])


def _distinct(found: list[Face]) -> list[Face]:
    """The largest first, each face once: windows overlap."""
    kept: list[Face] = []
    for face in sorted(found, key=lambda one: -one.area):
        centers = [one.kps.mean(dim=0) for one in kept]
        near = [float((face.kps.mean(dim=0) - c).norm()) for c in centers]
        sizes = [one.area**0.5 for one in kept]
        if all(distance > size / 2.0 for distance, size in zip(near, sizes, strict=True)):
            kept.append(face)
    return kept

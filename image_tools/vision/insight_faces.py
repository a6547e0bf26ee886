"""Faces by the package insightface, on whose 512 numbers public weights were trained.

insightface and its models are not part of this package: the code is MIT, the model packs are for
non-commercial research. Install them yourself and put a pack where it is looked for,

    ~/.insightface/models/antelopev2/*.onnx          for InstantID
    ~/.insightface/models/buffalo_l/*.onnx           for IP-Adapter's faceid and PhotoMaker v2

(unpacking the first one's zip often makes a second folder ``antelopev2`` inside, which is refused).
Nothing is downloaded. insightface wants bytes in the order blue, green, red.

    analyzer = InsightFaceAnalyzer(pack="antelopev2")
    face = main_face(analyzer, image, name="me.jpg")      # face.embedding has 512 numbers
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.errors import WeightsMissing
from image_tools.vision.faces import Face
from renderers.errors import BackendMissing, check_shape

__all__ = ["InsightFaceAnalyzer", "bgr_bytes", "find_pack"]

ROOT = "~/.insightface"
# Sizes at which a face is looked for: large ones find small faces, small ones those that fill all.
DETECTION_SIZES = (640, 448, 256)
MODULES = ("detection", "recognition")


class InsightFaceAnalyzer:
    """insightface's detector, landmarks and ArcFace embedding."""

    width = 512

    def __init__(self, *, pack: str, root: str = ROOT, device: torch.device | None = None) -> None:
        """Load a model pack.

        Raises:
            BackendMissing: insightface is not installed.
            WeightsMissing: the pack is not where it is looked for.
        """
        try:
            from insightface.app import FaceAnalysis
        except ImportError as error:
            raise BackendMissing(
                "faces.kind is insightface, and the package insightface is not installed. Expected "
                f"it with onnxruntime, and its models {pack} in '{root}/models/{pack}': pip "
                "install insightface onnxruntime. Or give a file with a face embedding."
            ) from error
        find_pack(root, pack)
        is_gpu = device is not None and device.type == "cuda"
        providers = [*(["CUDAExecutionProvider"] if is_gpu else []), "CPUExecutionProvider"]
        folder, context = str(Path(root).expanduser()), (device.index or 0) if is_gpu else -1
        with redirect_stdout(io.StringIO()):  # it prints what it finds
            self._app = FaceAnalysis(
                name=pack, root=folder, allowed_modules=list(MODULES), providers=providers
            )
            self._app.prepare(ctx_id=context, det_size=(DETECTION_SIZES[0],) * 2)

    def faces(self, image: Float[Tensor, "h w 3"]) -> list[Face]:
        """Every face of a picture in 0..1, the largest first."""
        pixels = bgr_bytes(image)
        for size in DETECTION_SIZES:
            # A second call of prepare is ignored.
            self._app.det_model.input_size = (size, size)
            found = [_face(raw) for raw in self._app.get(pixels)]
            if found:
                return sorted(found, key=lambda face: -face.area)
        return []


def bgr_bytes(image: Float[Tensor, "h w 3"]) -> np.ndarray:
    """A picture as OpenCV has it: bytes, blue first."""
    check_shape("image", image, "H W 3")
    levels = (image.detach().cpu().clamp(0.0, 1.0) * 255.0).round().byte()
    return np.ascontiguousarray(levels.numpy()[..., ::-1])


def find_pack(root: str, pack: str) -> Path:
    """The folder with a pack's models.

    Raises:
        WeightsMissing: there are none, or they lie one folder too deep.
    """
    folder = Path(root).expanduser() / "models" / pack
    if any(folder.glob("*.onnx")):
        return folder
    if any((folder / pack).glob("*.onnx")):
        raise WeightsMissing(
            f"The models of {pack} lie in '{folder / pack}' - expected them one folder higher, in "
            f"'{folder}'. Move the .onnx files there."
        )
    raise WeightsMissing(
        f"The models of {pack} are missing: no .onnx file in '{folder}'. Expected insightface's "
        "model pack, which is not downloaded for you; unpack it there."
    )


def _face(raw: Any) -> Face:
    parts = (raw.embedding, raw.bbox, raw.kps)
    tensors = (torch.from_numpy(np.asarray(part, dtype=np.float32)) for part in parts)
    return Face(*tensors, float(raw.det_score))

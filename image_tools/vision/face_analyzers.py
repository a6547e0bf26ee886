"""From a configuration to what finds faces.

analyzer = build_face_analyzer(MeshFacesConfig(), torch.device("cpu"), pack="antelopev2")
"""

from __future__ import annotations

import torch

from image_tools.vision.face_configs import FacesConfig, InsightFacesConfig
from image_tools.vision.faces import FaceAnalyzer
from image_tools.vision.insight_faces import InsightFaceAnalyzer
from image_tools.vision.mesh_faces import MeshFaceAnalyzer

__all__ = ["build_face_analyzer"]


def build_face_analyzer(config: FacesConfig, device: torch.device, *, pack: str) -> FaceAnalyzer:
    """What finds faces.

    Args:
        config: names it.
        device: where it runs.
        pack: of insightface's models, where the config names none: the one that the tool's public
            weights were trained with.

    Raises:
        BackendMissing: insightface is not installed.
        WeightsMissing: networks are not where they are looked for.
    """
    if isinstance(config, InsightFacesConfig):
        return InsightFaceAnalyzer(root=config.root, pack=config.pack or pack, device=device)
    return MeshFaceAnalyzer(device=device)

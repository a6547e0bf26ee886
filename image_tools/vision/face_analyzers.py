"""From a configuration to what finds faces.

analyzer = build_face_analyzer(MeshFacesConfig(), torch.device("cpu"))
"""

from __future__ import annotations

import torch

from image_tools.vision.face_configs import FacesConfig, InsightFacesConfig
from image_tools.vision.faces import FaceAnalyzer
from image_tools.vision.insight_faces import InsightFaceAnalyzer
from image_tools.vision.mesh_faces import MeshFaceAnalyzer

__all__ = ["build_face_analyzer"]


def build_face_analyzer(config: FacesConfig, device: torch.device) -> FaceAnalyzer:
    """What finds faces.

    Raises:
        BackendMissing: insightface is not installed.
        WeightsMissing: networks are not where they are looked for.
    """
    if isinstance(config, InsightFacesConfig):
        return InsightFaceAnalyzer(root=config.root, pack=config.pack, device=device)
    return MeshFaceAnalyzer(device=device)

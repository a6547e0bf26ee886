"""Configuration of what finds and describes faces, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["FacesConfig", "InsightFacesConfig", "MeshFacesConfig"]


@dataclass(frozen=True)
class MeshFacesConfig:
    """The face networks that ship with the package. Their identity (1024 numbers) is for weights
    that were trained on it; public weights need insightface's."""

    kind: Literal["mesh"] = "mesh"


@dataclass(frozen=True)
class InsightFacesConfig:
    """The package insightface, which you install, with a model pack, which you put in place."""

    kind: Literal["insightface"] = "insightface"
    root: str = "~/.insightface"
    """Folder with models/PACK/*.onnx. Nothing is downloaded."""
    pack: str | None = None
    """Model pack; empty for the one that the tool's public weights were trained with: antelopev2
    for InstantID, buffalo_l for IP-Adapter's faceid and PhotoMaker v2. Both give 512 numbers, and
    those of the other pack are somebody else's face."""


FacesConfig = MeshFacesConfig | InsightFacesConfig
"""What finds faces, their landmarks and their identity."""

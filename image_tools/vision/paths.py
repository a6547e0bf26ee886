"""Where the shipped vision networks lie."""

from __future__ import annotations

from pathlib import Path

__all__ = ["VISION_FOLDER"]

VISION_FOLDER = Path(__file__).parent / "weights"

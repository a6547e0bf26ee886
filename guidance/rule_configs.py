"""The union of all guidance rules' configurations, importable without torch."""

from __future__ import annotations

from guidance.configs import SDSConfig

__all__ = ["GuidanceConfig"]

GuidanceConfig = SDSConfig

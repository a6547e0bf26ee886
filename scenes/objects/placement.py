"""Which way the models look that do not look where their catalogue says.

Found by looking at contact sheets from four sides. All others face +z in their file, which becomes
azimuth 0; things that are the same all around have no front to speak of.
"""

from __future__ import annotations

__all__ = ["yaw_of"]

YAW_DEG: dict[str, float] = {
    "BlendSwap-CC-0/caballito": 90.0,
    "BlendSwap-CC-0/forkLift": 90.0,
    "BlendSwap-CC-0/motorbike": -90.0,
    "BlendSwap-CC-0/wheelbarrow": -90.0,
    "BlendSwap-CC-BY/toyTrain": 90.0,
}
"""Turn around the vertical that brings the front to azimuth 0, counter-clockwise from above."""


def yaw_of(source: str) -> float:
    """The turn of a model given by library and id, 0 for most."""
    return YAW_DEG.get(source, 0.0)

"""Configuration of multi-view guidance object by object: a frozen dataclass, free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from guidance.multiview_configs import MultiViewConfig

__all__ = ["OF_SETS", "LayoutMultiViewConfig"]


@dataclass(frozen=True)
class LayoutMultiViewConfig:
    """Guidance by a prior of several views, one object of the scene's layout at a time: cameras go
    around its box and see nothing else. Without a layout it is plain multi-view guidance."""

    kind: Literal["layout_multiview"] = "layout_multiview"
    """Tag of this choice."""
    whole: float = 0.0
    """Share of the steps that show the whole scene, guided by its prompt; the objects share the
    others equally."""
    object_radius: float = 0.85
    """Radius of a single object in the images that the prior knows, with the stage's cameras; it
    becomes half of the longest edge of each box."""
    margin: float = 1.1
    """Size of what is seen of the scene, in boxes: objects may stand a little over."""
    multiview: MultiViewConfig = field(default_factory=MultiViewConfig)
    """The rule around it."""

    def __post_init__(self) -> None:
        """Refuse what is no share and no size."""
        if not 0.0 <= self.whole <= 1.0:
            raise ValueError(f"whole is {self.whole} - expected 0 to 1, a share of the steps.")
        if not self.object_radius > 0.0:
            raise ValueError(f"object_radius is {self.object_radius} - expected more than 0.")
        if not self.margin >= 1.0:
            raise ValueError(f"margin is {self.margin} - expected at least 1, in boxes.")


OF_SETS = MultiViewConfig | LayoutMultiViewConfig
"""Rules whose prior sees all views of a set at once."""

"""What rules that edit know of the finished scene they edit: its images, its prompt, what changes.

Original(views, prompts, word="mushroom").views(cameras)      images of the frozen scene
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from guidance.prompts import ViewPrompts
from guidance.views import CameraAngles

__all__ = ["Original", "OriginalViews"]


@runtime_checkable
class OriginalViews(Protocol):
    """Renders the scene as it was before the edit."""

    def __call__(self, cameras: CameraAngles) -> Tensor:
        """Images [b, h, w, 3] in 0..1 of the views that were rendered last, without gradient."""
        ...


@dataclass(frozen=True)
class Original:
    """A finished scene that is edited."""

    views: OriginalViews
    prompts: ViewPrompts
    """The source prompt, encoded for all views."""
    word: str = ""
    """What of the source prompt changes; empty for everything."""

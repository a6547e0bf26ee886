"""What the guidance sees of a render: its colours, or its normals as colours."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from renderers.outputs import RenderOutput

__all__ = ["guided_images"]


def guided_images(
    output: RenderOutput, guide_on: Literal["color", "normals"]
) -> Float[Tensor, "b h w 3"]:
    """Images for the guidance, in 0..1.

    Normals are those of the world, 0.5 n + 0.5, over the same background as the colours
    (ProlificDreamer's geometry stage, arXiv 2305.16213, section 4). The render must have normals.
    """
    if guide_on == "color":
        return output.comp_rgb
    if output.comp_normal is not None:
        return output.comp_normal
    shown = 0.5 * output.normal + 0.5
    return output.opacity * shown + (1.0 - output.opacity) * output.comp_rgb_bg

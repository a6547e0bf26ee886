"""What the guidance sees of a render: its colours, or its normals as colours.

A pixel is alpha c + (1 - alpha) b, with the object's colour c and a background b that is random in
every step. With g the guidance's gradient on the pixel, its opacity moves by

    color        (c - b) . g
    background   (m - b) . g,    m the mean of the backgrounds; ours

Let the guidance want the colour T there, and g = alpha c + (1 - alpha) b - T. Averaged over b, of
variance v, the first one is (c - m) . (alpha c + (1 - alpha) m - T) - (1 - alpha) v: where T lies
on the other side of m than c, as white eyes or black ones do on an orange fish, opacity falls
before the colour has followed, and what becomes of an eye is a hole through the head. The second
one is -(1 - alpha) v for any T that does not follow the background, and alpha v for T = b: opacity
rises where the guidance wants something and falls where it wants the background. Colours move as
before.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from renderers.configs import RandomBackgroundConfig
from renderers.outputs import RenderOutput

__all__ = ["guided_images", "opacity_by_background"]

MIN_OPACITY = 0.05
"""Bounds the object's colour where there is next to nothing of it."""


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


def opacity_by_background(
    images: Float[Tensor, "b h w 3"], output: RenderOutput, background: RandomBackgroundConfig
) -> Float[Tensor, "b h w 3"]:
    """The same images, whose gradient moves opacity by the background instead of the colour.

    Args:
        images: colours or normals over the background.
        output: the render they belong to.
        background: what the backgrounds were drawn from.
    """
    random = background.probability
    mean = 0.5 * random + (1.0 - random) * images.new_tensor(background.color)
    opacity = output.opacity.detach()
    behind = (1.0 - opacity) * output.comp_rgb_bg.detach()
    color = (images.detach() - behind) / opacity.clamp(min=MIN_OPACITY)
    nothing = output.opacity - opacity  # but its gradient
    return torch.addcmul(images, nothing, mean - color.clamp(0.0, 1.0))

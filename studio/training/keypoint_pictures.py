"""Condition images of the toybox's keypoints, from what its renderer knows of them.

A keypoint is the centre of a named part, projected by the camera; one that is outside of the view,
or behind something by the depth buffer, is left out (``scenes.toybox.render``). Each is a disc in
the colour of its name, ``palette`` of ``keypoint_names()``, and a stick in that colour, darker,
joins it to the first of its object, the body as a rule, where both are seen. Sizes are shares of
the picture's.

    image = keypoint_picture(buffers.keypoints[0], (64, 64))          # [64, 64, 3] in 0..1
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.control.annotators import palette
from image_tools.control.stick_figures import Color, StickFigure, draw_figures
from scenes.toybox.keypoints import keypoint_names

__all__ = ["keypoint_colors", "keypoint_picture"]

# Shares of the longer side: discs of 5 pixels in pictures of 64, sticks of a pixel and a half.
RADIUS, HALF_WIDTH = 0.036, 0.012


def keypoint_colors() -> dict[str, Color]:
    """The bytes of each name's colour."""
    names = keypoint_names()
    colors = palette(len(names)).mul(255.0).round().int().tolist()
    return {name: tuple(color) for name, color in zip(names, colors, strict=True)}


def keypoint_picture(
    keypoints: Mapping[str, tuple[float, float, bool]], size: tuple[int, int]
) -> Float[Tensor, "h w 3"]:
    """The picture of what one camera sees.

    Args:
        keypoints: x and y in pixels, and whether it is seen, by "object/name".
        size: rows and columns.
    """
    keys = [tuple(key.split("/")) for key in keypoints]
    first = {number: place for place, (number, _) in reversed(list(enumerate(keys)))}
    colors = keypoint_colors()
    drawn = [colors[name] for _, name in keys]
    joined = [place for place, (number, _) in enumerate(keys) if first[number] != place]
    scale = max(size)
    figure = StickFigure(
        sticks=tuple((first[keys[place][0]], place) for place in joined),
        stick_colors=tuple(drawn[place] for place in joined),
        point_colors=tuple(drawn),
        half_width=HALF_WIDTH * scale,
        radius=RADIUS * scale,
    )
    rows = torch.tensor([list(map(float, row)) for row in keypoints.values()]).reshape(-1, 3)
    return draw_figures(rows[None, :, :2], figure, size, seen=rows[None, :, 2] > 0)

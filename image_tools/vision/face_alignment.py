"""Faces turned, moved and scaled to where recognition networks expect eyes, nose and mouth.

The five points of a picture go to those of a template by the similarity transform with the least
squared error there, in the template's pixels (without reflection): with complex numbers p of the
picture and q of the template, around their means,

    q ~ a p,   a = sum conj(p) q / sum |p|^2

The crop takes the way back, 1 / a. Fitted from the template to the picture, a face that is no mere
similarity of the template, such as one from the side, would be cut smaller. Outside of the picture
a crop is black. Template (ArcFace's, arXiv 1801.07698), fit and black are InsightFace's, which what
is trained with it expects.

    crop = aligned_face(image, face.kps, size=224)
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.vision.face_crops import Frame, cut

__all__ = ["aligned_face", "alignment_frame"]

# Eyes, nose and corners of the mouth in a square of 112 pixels.
TEMPLATE = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
TEMPLATE_SIDE = 112.0


def alignment_frame(kps: Float[Tensor, "5 2"]) -> Frame:
    """The square of a picture in which a face's landmarks lie as in the template."""
    template = torch.tensor(TEMPLATE, dtype=torch.float64) - TEMPLATE_SIDE / 2.0
    points, middle = kps.detach().double().cpu(), template.mean(dim=0)
    around = torch.complex(*(points - points.mean(dim=0)).T)
    fit = (around.conj() @ torch.complex(*(template - middle).T)) / around.abs().square().sum()
    turn = 1.0 / complex(fit)  # from the template to the picture
    offset = turn * complex(*middle.tolist())
    x, y = points.mean(dim=0).tolist()
    return Frame(
        x - offset.real,
        y - offset.imag,
        TEMPLATE_SIDE * abs(turn),
        math.atan2(turn.imag, turn.real),
    )


def aligned_face(
    image: Float[Tensor, "h w 3"], kps: Float[Tensor, "5 2"], *, size: int
) -> Float[Tensor, "s s 3"]:
    """A face cut out of a picture, its landmarks at the template's places."""
    return cut(image, alignment_frame(kps), size=size, outside="black")

"""Aligned faces: landmarks at the template's places, however the face was turned."""

from __future__ import annotations

import math

import pytest
import torch

from image_tools.vision.face_alignment import TEMPLATE, TEMPLATE_SIDE, aligned_face, alignment_frame


def moved(angle: float, scale: float, x: float, y: float) -> torch.Tensor:
    """The template turned, scaled and moved."""
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[cos, -sin], [sin, cos]])
    return scale * torch.tensor(TEMPLATE) @ turn.T + torch.tensor([x, y])


@pytest.mark.parametrize(
    "pose", [(0.0, 1.0, 0.0, 0.0), (0.4, 1.7, 20.0, -5.0), (-2.5, 0.6, 90.0, 70.0)]
)
def test_landmarks_come_to_the_template_s_places(pose):
    kps = moved(*pose)
    frame = alignment_frame(kps)
    back = frame.to_picture(torch.tensor(TEMPLATE) / TEMPLATE_SIDE)
    torch.testing.assert_close(back, kps, atol=1e-3, rtol=1e-4)
    assert frame.side == pytest.approx(pose[1] * TEMPLATE_SIDE, rel=1e-4)


def test_no_other_similarity_has_a_smaller_error():
    generator = torch.Generator().manual_seed(0)
    kps = moved(0.3, 1.2, 4.0, 9.0) + 3.0 * torch.randn(5, 2, generator=generator)
    frame, template = alignment_frame(kps), torch.tensor(TEMPLATE) / TEMPLATE_SIDE

    def error(x=0.0, y=0.0, side=1.0, angle=0.0) -> float:
        """In the template's own pixels, where the fit is made."""
        other = type(frame)(frame.x + x, frame.y + y, frame.side * side, frame.angle + angle)
        return float((other.to_picture(template) - kps).square().sum())

    best = error()
    changes = ({"x": 0.5}, {"y": 0.5}, {"side": 1.02}, {"angle": 0.02})
    for change in changes:
        opposite = {k: 2.0 - v if k == "side" else -v for k, v in change.items()}
        assert best < error(**change)
        assert best < error(**opposite)


def test_what_is_at_the_eyes_is_at_the_template_s_eyes():
    image = torch.zeros(200, 200, 3)
    kps = moved(0.5, 1.0, 60.0, 20.0)
    for x, y in kps[:2].round().long().tolist():
        image[y - 2 : y + 3, x - 2 : x + 3] = 1.0
    crop = aligned_face(image, kps, size=112)
    for x, y in torch.tensor(TEMPLATE)[:2].round().long().tolist():
        assert float(crop[y, x].mean()) > 0.7
    assert float(crop.mean()) < 0.02

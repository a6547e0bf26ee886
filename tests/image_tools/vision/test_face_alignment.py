"""Aligned faces: landmarks at the template's places, however the face was turned."""

from __future__ import annotations

import math

import numpy as np
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


# Landmarks of faces that are no mere similarity of the template, and the matrices that InsightFace
# makes of them: its estimate_norm calls skimage's SimilarityTransform.estimate(kps, template). Here
# they come from the singular values of Umeyama's paper (1991, eq. 40 to 43) in NumPy.
ESTIMATED = {
    "three quarters": (
        [[114.9, 155.1], [198.0, 154.5], [204.0, 215.1], [129.0, 277.2], [198.0, 276.6]],
        [[0.33301, -0.01153, 2.30783], [0.01153, 0.33301, -1.87562]],
    ),
    "from the side": (
        [[135.0, 155.1], [186.0, 154.5], [225.0, 215.1], [144.0, 277.2], [186.0, 276.6]],
        [[0.32062, -0.00773, 1.52116], [0.00773, 0.32062, 1.39018]],
    ),
    "turned": (
        [[80.0, 60.0], [120.0, 85.0], [85.0, 95.0], [60.0, 105.0], [88.0, 126.0]],
        [[0.67057, 0.42789, -42.35245], [-0.42789, 0.67057, 45.78903]],
    ),
}


@pytest.mark.parametrize("name", ESTIMATED)
def test_the_square_is_that_of_insightface(name):
    kps, matrix = (torch.tensor(part) for part in ESTIMATED[name])
    in_template = kps @ matrix[:, :2].T + matrix[:, 2]
    back = alignment_frame(kps).to_picture(in_template / TEMPLATE_SIDE)
    torch.testing.assert_close(back, kps, atol=2e-2, rtol=0.0)


def test_the_fit_equals_that_by_singular_values():
    generator = np.random.default_rng(0)
    template = np.array(TEMPLATE)
    for _ in range(8):
        kps = 200.0 * generator.random((5, 2))
        around, wanted = kps - kps.mean(0), template - template.mean(0)
        u, values, v = np.linalg.svd(wanted.T @ around / 5.0)
        signs = np.array([1.0, np.sign(np.linalg.det(u @ v))])
        scale = (values * signs).sum() / around.var(0).sum()
        linear = scale * (u * signs) @ v
        in_template = torch.tensor(around @ linear.T + template.mean(0))
        back = alignment_frame(torch.tensor(kps)).to_picture(in_template / TEMPLATE_SIDE)
        torch.testing.assert_close(back, torch.tensor(kps), atol=1e-6, rtol=0.0)


def test_outside_of_the_picture_is_black():
    """As cv2.warpAffine with borderValue 0 leaves it, which makes InsightFace's crops."""
    image = torch.ones(100, 100, 3)
    crop = aligned_face(image, moved(0.0, 1.0, -56.0, -56.0), size=112)
    assert float(crop[:50].abs().max()) == float(crop[:, :50].abs().max()) == 0.0
    assert float(crop[60:, 60:].min()) == 1.0


def test_what_is_at_the_eyes_is_at_the_template_s_eyes():
    image = torch.zeros(200, 200, 3)
    kps = moved(0.5, 1.0, 60.0, 20.0)
    for x, y in kps[:2].round().long().tolist():
        image[y - 2 : y + 3, x - 2 : x + 3] = 1.0
    crop = aligned_face(image, kps, size=112)
    for x, y in torch.tensor(TEMPLATE)[:2].round().long().tolist():
        assert float(crop[y, x].mean()) > 0.7
    assert float(crop.mean()) < 0.02

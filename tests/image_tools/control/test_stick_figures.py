"""Drawings of points and sticks: areas, colours, order, and what is left out."""

from __future__ import annotations

import math

import pytest
import torch

from image_tools.control.stick_figures import StickFigure, draw_figures
from renderers.errors import ShapeError

RED, BLUE = (255, 0, 0), (0, 0, 255)
FIGURE = StickFigure(((0, 1),), (RED,), (RED, BLUE), half_width=3.0, radius=4.0)
POINTS = torch.tensor([[[20.0, 32.0], [90.0, 32.0]]])
SIZE = (64, 120)


def test_sticks_are_ellipses_and_points_discs():
    discs = StickFigure((), (), (RED, BLUE), half_width=3.0, radius=4.0)
    blue = draw_figures(POINTS, discs, SIZE)[..., 2]
    assert float(blue.sum()) == pytest.approx(math.pi * 16.0, rel=0.01)
    stick = StickFigure(((0, 1),), (RED,), (RED, BLUE), half_width=3.0, radius=0.0)
    red = draw_figures(POINTS, stick, SIZE)[..., 0]
    assert float(red.sum()) / 0.6 == pytest.approx(math.pi * 35.0 * 3.0, rel=0.01)


def test_points_lie_over_sticks_in_full_colour():
    image = draw_figures(POINTS, FIGURE, SIZE)
    assert image[32, 20].tolist() == [1.0, 0.0, 0.0]
    assert image[32, 90].tolist() == [0.0, 0.0, 1.0]
    torch.testing.assert_close(image[32, 55], torch.tensor([0.6, 0.0, 0.0]))


def test_a_stick_is_drawn_between_points_that_are_both_seen():
    seen = torch.tensor([[True, False]])
    image = draw_figures(POINTS, FIGURE, SIZE, seen=seen)
    assert float(image[:, 30:].max()) == 0.0
    assert float(image[:, :30].max()) == 1.0


def test_figures_may_leave_the_picture_and_several_share_it():
    points = torch.cat([POINTS - 30.0, POINTS, POINTS + 400.0])
    together = draw_figures(points, FIGURE, SIZE)
    alone = draw_figures(POINTS, FIGURE, SIZE)
    assert torch.equal(together[20:], alone[20:])
    assert float(together[:6].max()) > 0.5
    assert draw_figures(points[:0], FIGURE, SIZE).count_nonzero() == 0


def test_figures_of_other_designs_are_refused():
    with pytest.raises(ShapeError, match="1 sticks have 2 colours"):
        StickFigure(((0, 1),), (RED, BLUE), (RED, BLUE), half_width=1.0, radius=1.0)
    with pytest.raises(ShapeError, match="points"):
        draw_figures(torch.zeros(1, 3, 2), FIGURE, SIZE)

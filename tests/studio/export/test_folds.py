"""Faces that are listed more than once, in all the ways in which they may be."""

from __future__ import annotations

import numpy as np
import pytest

from studio.export.folds import corner_sets, drop_doubled
from studio.export.triangles import Triangles

UP, UP_TOO, DOWN = [0, 1, 2], [1, 2, 0], [2, 1, 0]
V_POS = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("faces", "left"),
    [
        ([UP], [UP]),
        ([UP, UP_TOO], [UP]),
        ([UP, DOWN], []),
        ([UP, UP_TOO, DOWN, [1, 0, 2]], []),
        ([DOWN, UP, UP_TOO], [UP]),
        ([UP, DOWN, DOWN], [DOWN]),
        ([UP, [0, 3, 1]], [UP, [0, 3, 1]]),
        ([[0, 1, 1], UP, [2, 2, 2]], [UP]),
    ],
)
def test_copies_go_and_faces_back_to_back_cancel(faces, left):
    kept = drop_doubled(Triangles.of(V_POS, np.array(faces)))
    used = np.unique(np.array(left, dtype=np.int64))
    assert kept.t_pos_idx.tolist() == np.searchsorted(used, left).reshape(-1, 3).tolist()
    assert np.array_equal(kept.v_pos, V_POS[used])


def test_corners_in_any_order_are_one_set():
    sets = corner_sets(np.array([UP, DOWN, UP_TOO, [0, 3, 1], [1, 0, 3]]), 4)
    assert sets[0] == sets[1] == sets[2] != sets[3] == sets[4]

"""Wrong view words: of what images, and in which order."""

from __future__ import annotations

import numpy as np
import pytest

from studio.training.contrast_views import OPPOSITE_VIEWS, WrongViews

SIDES = tuple(OPPOSITE_VIEWS)
CAPTIONS = [f"a red {kind}, {view}" for kind in ("mug", "duck", "apple") for view in SIDES]
CAPTIONS += ["a duck", "a blue duck, overhead view", "a mug left of a duck, front view"]


def latents() -> np.ndarray:
    """Sides of the duck differ by 1, of the mug by a half, of the apple not at all."""
    values = np.zeros((len(CAPTIONS), 4, 2, 2), dtype=np.float16)
    for row, caption in enumerate(CAPTIONS):
        size = 1.0 if "duck" in caption else 0.5 if "mug" in caption else 0.0
        values[row] = size * caption.endswith(("left side view", "front view"))
    return values


def rows_of(kind: dict[str, np.ndarray]) -> list[int]:
    """All rows of a kind, whatever their view."""
    return sorted(int(row) for rows in kind.values() for row in rows)


def test_opposites_are_mutual():
    assert all(
        OPPOSITE_VIEWS[OPPOSITE_VIEWS[view]] == view != OPPOSITE_VIEWS[view] for view in SIDES
    )


def test_only_the_view_of_a_caption_is_exchanged():
    rng = np.random.default_rng(0)
    assert WrongViews.contradict("left, left side view", rng) == "left, right side view"
    wrong = {WrongViews.contradict("a car, a bus, front view", rng) for _ in range(50)}
    assert wrong == {"a car, a bus, back view", "a car, a bus, overhead view"}
    wrong = {WrongViews.contradict("a car, overhead view", rng) for _ in range(50)}
    assert wrong == {"a car, front view", "a car, back view"}


def test_kinds_come_in_the_order_of_how_their_sides_differ_and_flat_ones_not_at_all():
    views = WrongViews(CAPTIONS, latents(), least_difference=0.1)
    assert [rows_of(kind) for kind in views.kinds] == [[4, 5, 6, 7, 13], [0, 1, 2, 3]]


def test_captions_of_two_objects_or_without_a_view_are_not_compared():
    views = WrongViews(CAPTIONS, latents(), least_difference=0.0)
    compared = {row for kind in views.kinds for row in rows_of(kind)}
    assert compared == {*range(12), CAPTIONS.index("a blue duck, overhead view")}


def test_synonyms_are_of_the_same_kind():
    captions = [f"a {noun}, {v}" for noun, v in zip(("duck", "rubber duck") * 2, SIDES)]
    values = np.arange(4, dtype=np.float16).reshape(4, 1, 1, 1)
    views = WrongViews(captions, values, 0.1)
    assert [rows_of(kind) for kind in views.kinds] == [[0, 1, 2, 3]]


def test_draws_widen_from_the_first_kind_to_all():
    views = WrongViews(CAPTIONS, latents(), least_difference=0.1)
    rng = np.random.default_rng(0)
    duck = {4, 5, 6, 7, 13}
    for share, expected in ((0.0, duck), (0.5, duck), (0.51, duck | {0, 1, 2, 3})):
        rows, wrong = views.draw(rng, 64, share)
        assert set(rows.tolist()) == expected
        assert (np.diff(rows) >= 0).all()
        assert len(wrong) == 64
        assert all(told != CAPTIONS[row] for row, told in zip(rows, wrong))


def test_views_are_drawn_alike_often_though_few_images_are_from_above():
    captions = [*CAPTIONS, *(f"a {color} duck, front view" for color in ("red", "blue") * 20)]
    values = np.concatenate([latents(), np.ones((40, 4, 2, 2), dtype=np.float16)])
    views = WrongViews(captions, values, least_difference=0.1)
    rows, _ = views.draw(np.random.default_rng(0), 2000, 0.0)
    assert (rows == 13).mean() == pytest.approx(0.2, abs=0.04)


def test_objects_without_sides_are_refused():
    with pytest.raises(ValueError, match=r"contrast\.share to 0"):
        WrongViews(CAPTIONS, np.zeros_like(latents()), least_difference=0.1)
    with pytest.raises(ValueError, match="opposite sides"):
        WrongViews(["a red duck, front view"], latents()[:1], least_difference=0.1)

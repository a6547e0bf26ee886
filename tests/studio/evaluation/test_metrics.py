"""Metrics of pictures and verdicts in closed form."""

from __future__ import annotations

import pytest
import torch

from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES
from scenes.toybox.objects import ObjectSpec
from studio.evaluation.judge import HEADS, Verdicts
from studio.evaluation.metrics import (
    chroma,
    janus,
    prompt_agreement,
    saturation_error,
    view_consistency,
)

# A front seen from -45 to 45 degrees: certain at 0, even odds at the border.
TRUE_FRONT = torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5])


def verdicts(kinds: list[str], colors: list[str]) -> Verdicts:
    """Verdicts that are certain of the given words."""
    n = len(kinds)
    return Verdicts(
        kind=torch.eye(len(KIND_NAMES))[[KIND_NAMES.index(k) for k in kinds]],
        color=torch.eye(len(COLOR_NAMES))[[COLOR_NAMES.index(c) for c in colors]],
        pattern=torch.full((n, HEADS["pattern"]), 0.25),
        view=torch.full((n, HEADS["view"]), 0.25),
    )


def test_prompt_agreement_counts_views():
    found = prompt_agreement(
        verdicts(["duck", "duck", "fish", "car"], ["red", "blue", "red", "blue"]),
        ObjectSpec("duck", "red"),
    )
    assert found.kind.tolist() == [True, True, False, False]
    assert found.color.tolist() == [True, False, True, False]
    assert found.both.tolist() == [True, False, False, False]


def test_janus_is_zero_for_the_true_object_and_one_for_four_fronts():
    four = torch.stack([TRUE_FRONT.roll(2 * k) for k in range(4)]).amax(0)
    assert janus(TRUE_FRONT, TRUE_FRONT).score == 0.0
    assert janus(four, TRUE_FRONT).score == 1.0
    assert janus(torch.ones(8), TRUE_FRONT).score == 1.0


def test_janus_of_two_fronts_is_the_share_of_views_they_take():
    # Room: one at 90, 180 and 270 degrees, one half at 135 and 225; a second front at 180 degrees
    # takes the one at 180 and the halves beside it.
    two = torch.maximum(TRUE_FRONT, TRUE_FRONT.roll(4))
    assert janus(two, TRUE_FRONT).score == pytest.approx((1 + 0.5 + 0.5) / 4)
    assert janus(0.5 * two, TRUE_FRONT).score == pytest.approx((0.5 + 0.25 + 0.25) / 4)


@pytest.mark.parametrize("quarters", range(4))
def test_janus_does_not_mind_which_way_the_object_faces(quarters):
    turned = janus(TRUE_FRONT.roll(2 * quarters), TRUE_FRONT)
    assert (turned.score, turned.turn_deg) == (0.0, 90.0 * quarters)


def test_janus_charges_little_for_an_eighth_turn():
    # A front at 45 degrees: even odds at 90, where there is room for one.
    assert janus(TRUE_FRONT.roll(1), TRUE_FRONT).score == pytest.approx(0.5 / 4)


def test_janus_forgives_a_front_that_is_never_seen():
    assert janus(torch.zeros(8), TRUE_FRONT).score == 0.0


@pytest.mark.parametrize("view_count", [6, 9])
def test_janus_needs_quarter_turns(view_count):
    with pytest.raises(ValueError, match="multiple of 4"):
        janus(torch.zeros(view_count), torch.zeros(view_count))


def test_janus_refuses_objects_without_a_front():
    with pytest.raises(ValueError, match="alike from all sides"):
        janus(torch.ones(8), torch.full((8,), 0.7))


def test_view_consistency_is_one_when_all_views_read_alike():
    assert view_consistency(verdicts(["duck"] * 4, ["red"] * 4)) == 1.0


def test_view_consistency_counts_changes_between_neighbours():
    # Four neighbouring pairs around the ring, two of them across the change.
    assert view_consistency(verdicts(["duck", "duck", "fish", "fish"], ["red"] * 4)) == 0.5
    assert view_consistency(verdicts(["duck", "fish"] * 2, ["red"] * 4)) == 0.0


def test_view_consistency_of_soft_verdicts_is_the_bhattacharyya_coefficient():
    soft = verdicts(["duck", "duck"], ["red", "red"])
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    soft.kind.zero_()
    soft.kind[0, :2], soft.kind[1, :2] = p, q
    assert view_consistency(soft) == pytest.approx(float((p * q).sqrt().sum()), rel=1e-6)


def test_chroma_looks_at_the_object_only():
    rgb, mask = torch.rand(1, 4, 4, 3), torch.zeros(1, 4, 4)
    rgb[:, :2], mask[:, :2] = torch.tensor([0.9, 0.4, 0.2]), 1.0
    assert chroma(rgb, mask) == pytest.approx(0.7)
    assert chroma(rgb, torch.zeros(1, 4, 4)) == 0.0


def test_saturation_error_is_signed_and_zero_for_the_truth():
    mask = torch.ones(1, 2, 2)
    true, vivid = torch.tensor([0.6, 0.4, 0.4]), torch.tensor([1.0, 0.2, 0.2])
    true, vivid = true.expand(1, 2, 2, 3), vivid.expand(1, 2, 2, 3)
    assert saturation_error(true, mask, true, mask) == 0.0
    assert saturation_error(vivid, mask, true, mask) == pytest.approx(0.6)
    assert saturation_error(true, mask, vivid, mask) == pytest.approx(-0.6)

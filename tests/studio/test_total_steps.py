"""``steps=N`` gives N steps in all, in proportion to the stages' own."""

from __future__ import annotations

import random

import pytest

from studio.config import load_scene
from studio.errors import ConfigError
from studio.total_steps import set_total_steps, shares_of

SHARES = {
    (100, (900, 100)): [90, 10],
    (11, (300, 100)): [8, 3],
    (101, (150, 150)): [51, 50],
    (100, (1, 1, 1)): [34, 33, 33],
    (3, (0, 5, 0)): [1, 1, 1],
    (2, (1000, 1)): [1, 1],
    (4, (1000, 1, 1, 1)): [1, 1, 1, 1],
    (10**30, (1, 2)): [(10**30) // 3, 2 * (10**30) // 3 + 1],
}


@pytest.mark.parametrize(("asked", "shares"), SHARES.items(), ids=str)
def test_shares_add_up_and_leave_no_stage_out(asked, shares):
    total, counts = asked
    assert shares_of(total, counts) == shares
    assert sum(shares) == total


def test_shares_are_less_than_a_step_away_from_proportion():
    draw = random.Random(0)
    for _ in range(500):
        counts = [draw.randint(1, 999) for _ in range(draw.randint(1, 6))]
        total = draw.randint(1000 * len(counts), 9999)  # enough for more than one step each
        shares = shares_of(total, counts)
        assert sum(shares) == total
        exact = [total * count / sum(counts) for count in counts]
        assert all(abs(share - part) < 1 for share, part in zip(shares, exact, strict=True))


@pytest.mark.parametrize("total", [7, 100, 101, 333])
@pytest.mark.parametrize("preset", ["pocket-dreamflow", "pocket-prolificdreamer", "pocket-magic3d"])
def test_a_preset_gets_the_number_of_steps_that_was_asked_for(preset, total):
    stages = load_scene(preset, [f"steps={total}"]).config.stages
    assert sum(stage.steps for stage in stages) == total


@pytest.mark.parametrize("total", [1, 0, -3])
def test_fewer_steps_than_stages_are_refused(total):
    stages = [{"steps": 300}, {"steps": 100}]
    with pytest.raises(ConfigError) as refused:
        set_total_steps(stages, total)
    assert str(refused.value) == f"steps: is {total} - expected at least 2, one for each stage."
    assert stages == [{"steps": 300}, {"steps": 100}]

"""Schedules over the fraction of a stage, and timesteps that follow them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from guidance.configs import AnnealedTimestepsConfig, UniformTimestepsConfig
from guidance.schedules import check_schedule, value_at
from guidance.timesteps import annealed_timestep, choose_timesteps, timestep_bounds

T = 1000


def _draw(config, fraction, seed=0, n_views=4):
    return choose_timesteps(
        config,
        n_views,
        num_train_timesteps=T,
        fraction=fraction,
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize("fraction", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_number_is_constant(fraction):
    assert value_at(3.0, fraction) == 3.0


@pytest.mark.parametrize(
    ("fraction", "value"),
    [(-0.1, 10.0), (0.0, 10.0), (0.2, 10.0), (0.35, 15.0), (0.5, 20.0), (1.0, 20.0), (9.0, 20.0)],
)
def test_value_is_held_outside_the_points_and_linear_between(fraction, value):
    assert value_at(((0.2, 10.0), (0.5, 20.0)), fraction) == pytest.approx(value)


def test_two_points_at_one_fraction_make_a_jump():
    schedule = ((0.0, 1.0), (0.5, 1.0), (0.5, 3.0), (1.0, 5.0))
    assert value_at(schedule, math.nextafter(0.5, 0.0)) == 1.0
    assert value_at(schedule, 0.5) == 3.0
    assert value_at(schedule, 0.75) == 4.0


def test_a_jump_at_the_start_and_at_the_end():
    assert value_at(((0.0, 1.0), (0.0, 2.0)), 0.0) == 2.0
    schedule = ((0.0, 1.0), (1.0, 1.0), (1.0, 7.0))
    assert value_at(schedule, 0.999) == 1.0
    assert value_at(schedule, 1.0) == 7.0


def test_single_point_and_yaml_lists():
    assert value_at(((0.5, 4.0),), 0.1) == value_at(((0.5, 4.0),), 0.9) == 4.0
    assert value_at([[0, 0], [1, 10]], 0.25) == 2.5


def test_malformed_queries_are_errors():
    with pytest.raises(ValueError, match="NaN"):
        value_at(((0.0, 1.0),), math.nan)
    with pytest.raises(ValueError, match="no points"):
        value_at((), 0.5)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ((), "max_t is empty"),
        (((0.0, 1.0, 2.0),), "must be"),
        (((0.5, 1.0), (0.2, 1.0)), "increasing order"),
        (((0.0, 1.0), (1.5, 1.0)), "Keep them from 0 to 1"),
        (((math.nan, 1.0),), "Keep them from 0 to 1"),
        (1.5, "has the value 1.5. Keep it from 0.0 to 1.0"),
        (((0.0, 0.5), (1.0, -0.1)), "has the value -0.1"),
        (math.nan, "has the value nan"),
    ],
)
def test_malformed_schedules_are_refused(schedule, message):
    with pytest.raises(ValueError, match=message):
        check_schedule("max_t", schedule, low=0.0, high=1.0)


def test_good_schedules_pass():
    check_schedule("max_t", 0.98, low=0.0, high=1.0)
    check_schedule("max_t", ((0.0, 0.98), (1.0, 0.5)), low=0.0, high=1.0)
    check_schedule("weight", -3.0)


def test_uniform_draws_fill_their_bounds_and_nothing_else():
    config = UniformTimestepsConfig(min_t=0.02, max_t=0.03)
    draws = _draw(config, 0.5, n_views=2000)
    assert sorted(set(draws.tolist())) == list(range(20, 31))


def test_bounds_move_with_the_stage():
    config = UniformTimestepsConfig(min_t=0.02, max_t=((0.0, 0.98), (1.0, 0.5)))
    bounds = [timestep_bounds(config, T, fraction) for fraction in (0.0, 0.5, 1.0)]
    assert bounds == [(20, 980), (20, 740), (20, 500)]
    assert _draw(config, 1.0, n_views=5000).max() == 500
    assert _draw(config, 0.0, n_views=5000).max() > 950


def test_bounds_stay_inside_the_training_range():
    config = UniformTimestepsConfig(min_t=0.0, max_t=1.0)
    assert timestep_bounds(config, T, 0.0) == (0, 999)


@pytest.mark.parametrize(
    ("low", "high", "place"),
    [
        (0.6, 0.5, "0.000"),
        (0.6, ((0.0, 0.9), (1.0, 0.3)), "1.000"),
        (((0.3, 0.2), (0.5, 0.95), (0.7, 0.2)), 0.9, "0.500"),
        (((0.0, 0.2), (0.5, 0.95), (0.5, 0.2)), 0.9, "0.500"),  # before the jump
        (((0.0, 0.4), (0.5, 0.4)), ((0.0, 0.9), (0.4, 0.3), (0.4, 0.9)), "0.400"),
    ],
)
def test_bounds_that_cross_are_refused_with_the_place(low, high, place):
    """Before a run begins, not at the step where they do."""
    with pytest.raises(ValueError, match=rf"min_t is above max_t at {place} of the stage"):
        UniformTimestepsConfig(min_t=low, max_t=high)


def test_bounds_may_meet_and_jump_together():
    together = ((0.0, 0.9), (0.5, 0.9), (0.5, 0.2))
    config = UniformTimestepsConfig(min_t=together, max_t=together)
    assert timestep_bounds(config, T, 0.4) == (900, 900)
    assert timestep_bounds(config, T, 0.5) == (200, 200)


def test_draws_repeat_with_the_seed():
    config = UniformTimestepsConfig()
    assert torch.equal(_draw(config, 0.3, seed=1), _draw(config, 0.3, seed=1))
    assert not torch.equal(_draw(config, 0.3, seed=1), _draw(config, 0.3, seed=2))


def test_views_can_share_one_timestep():
    assert len(set(_draw(UniformTimestepsConfig(share="batch"), 0.3, n_views=16).tolist())) == 1
    assert len(set(_draw(UniformTimestepsConfig(share="view"), 0.3, n_views=16).tolist())) > 8


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_annealed_timesteps_fall_from_start_to_end_without_randomness(power):
    config = AnnealedTimestepsConfig(start_t=1.0, end_t=0.2, power=power)
    steps = [annealed_timestep(config, T, i / 200) for i in range(201)]
    assert (steps[0], steps[-1]) == (999, 200)
    assert all(a >= b for a, b in itertools.pairwise(steps))
    assert steps[50] == round(1000 * (1 - 0.8 * 0.25**power))
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    t = choose_timesteps(config, 3, num_train_timesteps=T, fraction=0.25, generator=generator)
    assert t.tolist() == [steps[50]] * 3
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(
    "bad", [{"start_t": 0.1, "end_t": 0.5}, {"start_t": 1.1}, {"power": 0.0}, {"end_t": -0.1}]
)
def test_bad_annealing_is_refused(bad):
    with pytest.raises(ValueError):
        AnnealedTimestepsConfig(**bad)


def test_bounds_outside_the_training_length_are_refused():
    with pytest.raises(ValueError, match="max_t has the value 980"):
        UniformTimestepsConfig(max_t=980.0)

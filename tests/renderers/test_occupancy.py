"""The occupancy grid against fields whose occupied cells are known."""

from __future__ import annotations

import pytest
import torch

from renderers.occupancy import OccupancyGrid


def _ball(centre: float = 0.0, density: float = 100.0):
    return lambda x: density * ((x - centre).norm(dim=1) < 0.5)


def _centres(grid: OccupancyGrid) -> torch.Tensor:
    axis = ((torch.arange(grid.resolution) + 0.5) / grid.resolution * 2 - 1) * grid.radius
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)


def test_everything_is_occupied_before_the_first_update():
    assert OccupancyGrid(8, 1.0).occupied_fraction == 1.0


def test_without_a_generator_exactly_the_cells_with_their_centre_inside_are_occupied():
    grid = OccupancyGrid(20, 1.5)
    grid.update(_ball(0.3), step=0)
    centre = torch.tensor([0.3, 0.3, 0.3])
    assert torch.equal(grid.binary, (_centres(grid) - centre).norm(dim=-1) < 0.5)
    assert grid.occupied_fraction == pytest.approx(float(grid.binary.float().mean()))


def test_axes_of_the_grid_are_world_x_y_z():
    grid = OccupancyGrid(4, 1.0)
    grid.update(lambda x: 100.0 * ((x[:, 0] > 0.5) & (x[:, 1] < -0.5)), step=0)
    expected = torch.zeros(4, 4, 4, dtype=torch.bool)
    expected[3, 0, :] = True
    assert torch.equal(grid.binary, expected)


def test_cells_within_boxes_are_those_that_a_box_touches():
    grid = OccupancyGrid(4, 1.0)  # cells of 0.5
    boxes = torch.tensor([[[-0.2, -5.0, 0.6], [0.2, 5.0, 0.7]], [[0.9, 0.9, 0.9], [1.0, 1.0, 1.0]]])
    expected = torch.zeros(4, 4, 4, dtype=torch.bool)
    expected[1:3, :, 3] = True
    expected[3, 3, 3] = True
    assert torch.equal(grid.cells_within(boxes), expected)
    outside = torch.tensor([[[2.0, 2.0, 2.0], [3.0, 3.0, 3.0]]])
    assert not grid.cells_within(outside).any()


def test_cells_fade_out_after_the_field_has_left_them(generator):
    grid = OccupancyGrid(16, 1.0, ema_decay=0.5, threshold=0.01)
    grid.update(_ball(), step=0)
    before = grid.binary.clone()
    for step in range(1, 12):
        grid.update(lambda x: torch.zeros(x.shape[0]), step=step, generator=generator)
    assert before.any()
    assert torch.all(grid.values <= 0.5**11 * 100.0 * grid.step_size * 1.0001)
    # The mean fell as well; nothing above the smaller of the two bounds remains unmarked.
    assert torch.equal(grid.binary, grid.values > min(0.01, float(grid.values.mean())))


@pytest.mark.parametrize(("value", "occupied"), [(0.0, 0.0), (0.005, 0.0), (0.1, 1.0)])
def test_a_uniform_field_is_occupied_only_above_the_threshold(value, occupied):
    """Below it, the bound is the mean, which no cell of a uniform field exceeds."""
    grid = OccupancyGrid(8, 1.0, threshold=0.01, step_size=0.1)
    grid.update(lambda x: torch.full((x.shape[0],), value / 0.1), step=0)
    assert grid.occupied_fraction == occupied


def _broken_at_the_centre(value: float):
    """A weak ball whose core is no number."""
    return lambda x: torch.where(x.norm(dim=1) < 0.2, value, 0.3 * (x.norm(dim=1) < 0.6))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_cells_that_are_no_number_are_occupied_and_leave_the_others_as_they_are(value):
    grid, healthy = (OccupancyGrid(16, 1.0, step_size=0.1, threshold=1.0) for _ in range(2))
    grid.update(_broken_at_the_centre(value), step=0)
    healthy.update(_broken_at_the_centre(0.3), step=0)
    wrong = ~grid.values.isfinite()
    assert wrong.sum() == (_centres(grid).norm(dim=-1) < 0.2).sum() > 0
    assert grid.binary[wrong].all()
    assert torch.equal(grid.binary, healthy.binary)
    assert 0.05 < grid.occupied_fraction < 0.2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_cells_that_were_no_number_heal_when_they_are_seen_again(value, generator):
    grid = OccupancyGrid(16, 1.0, step_size=0.1, warmup_steps=1)
    grid.update(_broken_at_the_centre(value), step=0)
    wrong = ~grid.values.isfinite()
    for step in range(1, 3):  # after the warm-up occupied cells are visited
        grid.update(_broken_at_the_centre(0.0), step=step, generator=generator)
    assert wrong.any()
    assert grid.values.isfinite().all()
    assert (grid.values[wrong] == 0.0).all()
    assert not grid.binary[wrong].any()


def test_the_bound_is_the_mean_while_that_is_below_the_threshold():
    grid = OccupancyGrid(8, 1.0, threshold=0.01, step_size=0.1)
    weak = 0.004 / grid.step_size
    grid.update(lambda x: weak * (x[:, 0] > 0.5), step=0)
    assert grid.occupied_fraction == pytest.approx(0.25)


def test_the_remembered_value_is_a_decayed_maximum():
    grid = OccupancyGrid(2, 1.0, ema_decay=0.9, step_size=0.1)
    for density in (10.0, 1.0, 9.0):
        grid.update(lambda x, d=density: torch.full((x.shape[0],), d), step=0)
    # 1.0, then 0.9 (more than 0.1), then 0.9 (more than 0.81).
    torch.testing.assert_close(grid.values, torch.full((2, 2, 2), 0.9))


def test_after_the_warm_up_a_part_of_the_cells_and_all_few_occupied_ones_are_visited(generator):
    grid = OccupancyGrid(16, 1.0, warmup_steps=10)
    seen = []

    def density(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return _ball()(x)

    grid.update(density, step=9, generator=generator)
    assert sum(x.shape[0] for x in seen) == 16**3
    occupied = grid.binary.clone()
    assert 0 < int(occupied.sum()) < 16**3 // 4
    seen.clear()
    grid.update(density, step=10, generator=generator)
    visited = torch.cat(seen)
    assert visited.shape[0] == 16**3 // 4 + int(occupied.sum())
    cell = ((visited + 1) * 8).long()
    marked = torch.zeros_like(occupied)
    marked[cell[:, 0], cell[:, 1], cell[:, 2]] = True
    assert torch.all(marked[occupied])


def test_positions_stay_in_their_cells(generator):
    grid = OccupancyGrid(5, 2.0)
    seen = []
    grid.update(lambda x: (seen.append(x), torch.ones(x.shape[0]))[1], step=0, generator=generator)
    cell = ((seen[0] / 2.0 + 1) * 2.5).floor()
    r = torch.arange(5.0)
    expected = torch.stack(torch.meshgrid(r, r, r, indexing="ij"), dim=-1).reshape(-1, 3)
    assert torch.equal(cell, expected)


def test_state_and_generator_resume_bit_for_bit():
    def trained(steps: range, grid: OccupancyGrid, generator: torch.Generator) -> OccupancyGrid:
        for step in steps:
            grid.update(_ball(0.01 * step), step=step * 50, generator=generator)
        return grid

    straight = trained(range(12), OccupancyGrid(12, 1.0), torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    first = trained(range(6), OccupancyGrid(12, 1.0), generator)
    second = OccupancyGrid(12, 1.0)
    second.load_state_dict(first.state_dict())
    resumed = trained(range(6, 12), second, generator)
    assert torch.equal(straight.values, resumed.values)
    assert torch.equal(straight.binary, resumed.binary)


def test_the_density_function_runs_without_gradients():
    grid = OccupancyGrid(4, 1.0)
    weight = torch.ones(3, requires_grad=True)
    grid.update(lambda x: (x * weight).sum(dim=1).exp(), step=0)
    assert not grid.values.requires_grad


@pytest.mark.parametrize(("resolution", "radius"), [(0, 1.0), (8, 0.0), (8, float("nan"))])
def test_impossible_grids_are_refused(resolution, radius):
    with pytest.raises(ValueError, match="occupancy grid"):
        OccupancyGrid(resolution, radius)

"""Marching against analytic intersections, compositing against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from renderers.backends import torch_march
from renderers.errors import BackendMissing, ShapeError
from renderers.marching import accumulate, composite, march_rays, select_samples
from renderers.occupancy import OccupancyGrid

BACKENDS = ["torch", "numba"]
RADIUS = 1.3


def _grid(resolution: int = 16) -> OccupancyGrid:
    return OccupancyGrid(resolution, RADIUS)


def _shell_grid(generator: torch.Generator, resolution: int = 32) -> OccupancyGrid:
    grid = OccupancyGrid(resolution, RADIUS)
    grid.update(lambda x: 100.0 * ((x.norm(dim=1) - 0.8).abs() < 0.2), step=0, generator=generator)
    return grid


def _rays(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Origins inside and outside the box, directions anywhere, some along the axes."""
    rays_o = torch.randn(n, 3, generator=generator) * 1.5
    rays_d = torch.randn(n, 3, generator=generator)
    rays_d[:3], rays_d[3:6] = torch.eye(3), -torch.eye(3)
    return rays_o, rays_d / rays_d.norm(dim=1, keepdim=True)


def _chord(rays_o: torch.Tensor, rays_d: torch.Tensor) -> torch.Tensor:
    """Length of each ray's part inside the box, in float64."""
    o, d = rays_o.double(), rays_d.double()
    a, b = (-RADIUS - o) / d, (RADIUS - o) / d
    enter = torch.minimum(a, b).nan_to_num(-math.inf).amax(dim=1).clamp(min=0)
    leave = torch.maximum(a, b).nan_to_num(math.inf).amin(dim=1)
    return (leave - enter).clamp(min=0)


def _one_ray(n_samples: int, step: float):
    """A ray along +x with exactly ``n_samples`` samples, starting at the face of the box."""
    grid = OccupancyGrid(1, 0.5 * n_samples * step)
    samples = march_rays(
        torch.tensor([[-grid.radius, 0.0, 0.0]]),
        torch.tensor([[1.0, 0.0, 0.0]]),
        grid,
        step_size=step,
    )
    assert len(samples) == n_samples
    return samples


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_a_full_grid_samples_cover_the_chord_to_within_a_step(backend, generator):
    rays_o, rays_d = _rays(500, generator)
    jitter = torch.rand(500, generator=generator)
    samples = march_rays(rays_o, rays_d, _grid(), step_size=0.01, jitter=jitter, backend=backend)
    covered = samples.packed_info[:, 1] * 0.01
    chord = _chord(rays_o, rays_d)
    assert (covered - chord).abs().max() <= 0.01 * 1.001
    assert (chord == 0).any()
    assert torch.all(samples.packed_info[chord == 0, 1] == 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_are_packed_ordered_and_lie_on_their_rays_in_occupied_cells(backend, generator):
    grid = _shell_grid(generator)
    rays_o, rays_d = _rays(400, generator)
    s = march_rays(rays_o, rays_d, grid, step_size=0.02, backend=backend)
    first, count = s.packed_info.unbind(1)
    assert torch.equal(first, torch.cumsum(count, 0) - count)
    assert int(count.sum()) == len(s) > 0
    assert torch.equal(s.ray_indices, torch.arange(400).repeat_interleave(count))
    same_ray = s.ray_indices[1:] == s.ray_indices[:-1]
    assert torch.all(s.t_starts.diff()[same_ray] > 0.019)
    torch.testing.assert_close(s.t_ends - s.t_starts, torch.full_like(s.t_starts, 0.02))
    on_ray = rays_o[s.ray_indices] + s.middles[:, None] * rays_d[s.ray_indices]
    torch.testing.assert_close(s.positions, on_ray)
    cell = ((s.positions + RADIUS) * (32 / (2 * RADIUS))).long().clamp(0, 31)
    assert grid.binary[cell[:, 0], cell[:, 1], cell[:, 2]].all()


def test_numba_places_the_same_samples_bit_for_bit(generator):
    grid = _shell_grid(generator)
    rays_o, rays_d = _rays(2000, generator)
    options = {
        "step_size": 0.013,
        "near": 0.1,
        "far": 2.5,
        "jitter": torch.rand(2000, generator=generator),
        "max_samples": 8_000,
    }
    a = march_rays(rays_o, rays_d, grid, backend="torch", **options)
    b = march_rays(rays_o, rays_d, grid, backend="numba", **options)
    assert a.step_size == b.step_size > 0.013
    for name in ("t_starts", "t_ends", "ray_indices", "packed_info", "positions"):
        assert torch.equal(getattr(a, name), getattr(b, name))


def test_the_dense_search_in_pieces_finds_the_same_samples(generator, monkeypatch):
    grid = _shell_grid(generator)
    rays_o, rays_d = _rays(100, generator)
    whole = march_rays(rays_o, rays_d, grid, step_size=0.05, backend="torch")
    monkeypatch.setattr(torch_march, "_MAX_LATTICE_POINTS", 1000)
    pieces = march_rays(rays_o, rays_d, grid, step_size=0.05, backend="torch")
    assert torch.equal(whole.positions, pieces.positions)
    assert torch.equal(whole.ray_indices, pieces.ray_indices)


@pytest.mark.parametrize("backend", BACKENDS)
def test_near_and_far_bound_the_middles(backend, generator):
    rays_o, rays_d = _rays(200, generator)
    s = march_rays(rays_o, rays_d, _grid(), step_size=0.02, near=0.5, far=1.5, backend=backend)
    assert s.middles.min() >= 0.5 - 1e-6
    assert s.middles.max() <= 1.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_boxes_leave_the_samples_of_each_ray_that_lie_in_its_own(backend, generator):
    rays_o, rays_d = _rays(1000, generator)
    boxes = torch.tensor(
        [[[-1.0, -0.9, -0.8], [0.3, 0.5, 0.4]], [[0.0, -1.0, 0.1], [0.9, 0.9, 1.5]]]
    )
    within = boxes.repeat_interleave(500, dim=0)
    grid = _shell_grid(generator)
    whole = march_rays(rays_o, rays_d, grid, step_size=0.02, backend=backend)
    part = march_rays(rays_o, rays_d, grid, step_size=0.02, within=within, backend=backend)
    low, high = within[whole.ray_indices].unbind(1)
    inside = ((whole.positions >= low) & (whole.positions <= high)).all(dim=1)
    assert 500 < inside.sum() < 0.5 * len(whole)
    expected = select_samples(whole, inside)
    for name in ("t_starts", "t_ends", "ray_indices", "packed_info", "positions"):
        assert torch.equal(getattr(part, name), getattr(expected, name)), name


def test_the_sample_cap_counts_what_boxes_leave(generator):
    rays_o, rays_d = _rays(100, generator)
    within = torch.tensor([[-0.3, -0.3, -0.3], [0.3, 0.3, 0.3]]).expand(100, 2, 3)
    whole = march_rays(rays_o, rays_d, _grid(), step_size=0.02)
    part = march_rays(
        rays_o, rays_d, _grid(), step_size=0.02, within=within, max_samples=len(whole) // 4
    )
    assert part.step_size == pytest.approx(0.02)


def test_jitter_shifts_the_lattice_by_its_part_of_a_step():
    ray = torch.tensor([[-3.0, 0.1, 0.2]]), torch.tensor([[1.0, 0.0, 0.0]])
    for jitter in (0.0, 0.3, 0.9):
        s = march_rays(*ray, _grid(), step_size=0.1, jitter=torch.tensor([jitter]))
        phase = s.t_starts / 0.1 - jitter
        torch.testing.assert_close(phase, phase.round(), atol=1e-4, rtol=0)


def test_jittered_samples_are_spread_evenly(generator):
    n = 4000
    ray = (
        torch.tensor([[-3.0, 0.1, 0.2]]).expand(n, 3),
        torch.tensor([[1.0, 0.0, 0.0]]).expand(n, 3),
    )
    jitter = torch.rand(n, generator=generator)
    s = march_rays(*ray, _grid(), step_size=0.26, jitter=jitter)
    histogram = torch.histc(s.positions[:, 0], bins=26, min=-RADIUS, max=RADIUS)
    assert (histogram / (len(s) / 26) - 1).abs().max() < 0.35


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pruned_picture_equals_the_dense_one(backend, generator):
    def density(x: torch.Tensor) -> torch.Tensor:
        return 30.0 * (x.norm(dim=1) < 0.6)

    pruned, full = OccupancyGrid(32, RADIUS), OccupancyGrid(32, RADIUS)
    # The centre of every cell that the ball touches lies within half a cell's diagonal of it.
    reach = 0.6 + 3**0.5 * RADIUS / 32
    pruned.update(lambda x: 30.0 * (x.norm(dim=1) < reach), step=0)
    assert pruned.occupied_fraction < 0.15
    rays_o, rays_d = _rays(1500, generator)
    pictures, samples = [], []
    for grid in (pruned, full):
        s = march_rays(rays_o, rays_d, grid, step_size=0.02, backend=backend)
        colours = s.positions.sin().abs()
        pictures.append(composite(density(s.positions), colours, s, 1500, backend=backend))
        samples.append(len(s))
    assert samples[0] < 0.3 * samples[1]
    for name in ("values", "opacity", "depth"):
        torch.testing.assert_close(*(getattr(picture, name) for picture in pictures))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_sample_cap_lengthens_the_step_and_keeps_every_ray(backend, generator):
    rays_o, rays_d = _rays(300, generator)
    free = march_rays(rays_o, rays_d, _grid(), step_size=0.01, backend=backend)
    cap = len(free) // 5
    capped = march_rays(rays_o, rays_d, _grid(), step_size=0.01, max_samples=cap, backend=backend)
    assert 0.7 * cap < len(capped) <= cap
    again = march_rays(rays_o, rays_d, _grid(), step_size=capped.step_size, backend=backend)
    assert torch.equal(capped.positions, again.positions)
    long_rays = _chord(rays_o, rays_d) > 2 * capped.step_size
    assert torch.all(capped.packed_info[long_rays, 1] > 0)
    uncapped = march_rays(
        rays_o, rays_d, _grid(), step_size=0.01, max_samples=len(free), backend=backend
    )
    assert uncapped.step_size == 0.01


def test_a_cap_that_cannot_be_met_stops_at_a_quarter_of_the_box(generator):
    rays_o, rays_d = _rays(300, generator)
    s = march_rays(rays_o, rays_d, _grid(), step_size=0.01, max_samples=1)
    assert s.step_size == 2 * RADIUS / 4
    assert len(s) > 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rays_and_rays_that_miss_give_empty_samples(backend):
    for n in (0, 4):
        rays_o = torch.full((n, 3), 5.0)
        rays_d = torch.tensor([[1.0, 0.0, 0.0]]).expand(n, 3)
        s = march_rays(rays_o, rays_d, _grid(), step_size=0.1, max_samples=10, backend=backend)
        assert len(s) == 0
        assert s.packed_info.shape == (n, 2)
        sigma = torch.zeros(0, requires_grad=True)
        out = composite(sigma, torch.zeros(0, 3), s, n, backend=backend)
        assert torch.equal(out.values, torch.zeros(n, 3))
        assert torch.equal(out.opacity, torch.zeros(n))
        (out.values.sum() + out.weights.sum()).backward()
        assert sigma.grad.shape == (0,)


@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_density_is_absorbed_exponentially(backend):
    s = _one_ray(100, 0.02)
    out = composite(torch.full((100,), 1.7), torch.ones(100, 1), s, backend=backend)
    assert float(out.opacity) == pytest.approx(1 - math.exp(-1.7 * 2.0), rel=1e-5)
    k = torch.arange(100)
    expected = torch.exp(-1.7 * 0.02 * k) * (1 - math.exp(-1.7 * 0.02))
    torch.testing.assert_close(out.weights, expected, rtol=2e-4, atol=1e-7)
    torch.testing.assert_close(out.values[:, 0], out.opacity)
    assert float(out.depth) == pytest.approx(float((expected * s.middles).sum()), rel=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_very_thin_matter_keeps_its_relative_precision(backend):
    s = _one_ray(10, 0.1)
    out = composite(torch.full((10,), 1e-8), torch.ones(10, 1), s, backend=backend)
    assert float(out.opacity) == pytest.approx(1e-8, rel=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_opaque_wall_shows_its_colour_and_distance_and_hides_what_is_behind(backend):
    s = _one_ray(50, 0.04)
    sigma = torch.zeros(50)
    sigma[20:] = 1e6
    colours = torch.rand(50, 3, generator=torch.Generator().manual_seed(1))
    out = composite(sigma, colours, s, backend=backend)
    assert float(out.opacity) == 1.0
    torch.testing.assert_close(out.values[0], colours[20])
    torch.testing.assert_close(out.depth[0], s.middles[20])
    assert torch.all(out.weights[21:] == 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_of_a_ray_sum_to_its_opacity_and_to_at_most_one(backend, generator):
    rays_o, rays_d = _rays(300, generator)
    s = march_rays(rays_o, rays_d, _shell_grid(generator), step_size=0.02)
    sigma = torch.rand(len(s), generator=generator) * 50
    out = composite(sigma, torch.ones(len(s), 1), s, backend=backend)
    torch.testing.assert_close(accumulate(out.weights, torch.ones(len(s), 1), s)[:, 0], out.opacity)
    assert out.opacity.max() <= 1 + 1e-6
    assert out.weights.min() >= 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_density_that_is_no_number_harms_no_other_ray(backend, value, generator):
    """In values and gradients; where it is infinite, its own ray ends there, opaque."""
    rays_o, rays_d = _rays(60, generator)
    s = march_rays(rays_o, rays_d, _grid(), step_size=0.1)
    sigma, colours = torch.rand(len(s), generator=generator), s.positions.sin()
    bad = len(s) // 3
    others = torch.arange(60) != s.ray_indices[bad]
    others_samples = others[s.ray_indices]
    results = []
    for broken in (False, True):
        x = sigma.clone()
        x[bad] = value if broken else x[bad]
        x.requires_grad_()
        out = composite(x, colours, s, backend=backend)
        grad = torch.autograd.grad(out.values[others].square().sum(), x)[0]
        results.append((out, grad[others_samples]))
    (whole, grad), (broken, broken_grad) = results
    torch.testing.assert_close(broken.values[others], whole.values[others])
    torch.testing.assert_close(broken.depth[others], whole.depth[others])
    torch.testing.assert_close(broken_grad, grad)
    opacity = broken.opacity[~others].item()
    assert math.isnan(opacity) if math.isnan(value) else opacity == pytest.approx(1.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rays_that_are_no_numbers_are_refused(backend, value, generator):
    rays_o, rays_d = _rays(10, generator)
    for wrong in (rays_o, rays_d):
        kept = wrong[4, 1].clone()
        wrong[4, 1] = value
        with pytest.raises(ValueError, match="1 of 10 rays have an origin or a direction that is"):
            march_rays(rays_o, rays_d, _grid(), step_size=0.1, backend=backend)
        wrong[4, 1] = kept
    assert len(march_rays(rays_o, rays_d, _grid(), step_size=0.1, backend=backend))


def test_compositing_many_rays_equals_one_after_the_other(generator):
    rays_o, rays_d = _rays(20, generator)
    grid = _shell_grid(generator)
    s = march_rays(rays_o, rays_d, grid, step_size=0.05)
    sigma, colours = torch.rand(len(s)) * 20, torch.rand(len(s), 3)
    together = composite(sigma, colours, s).values
    for i in range(20):
        alone = march_rays(rays_o[i : i + 1], rays_d[i : i + 1], grid, step_size=0.05)
        mine = s.ray_indices == i
        assert torch.equal(composite(sigma[mine], colours[mine], alone).values[0], together[i])


def test_reference_passes_gradcheck_twice(generator):
    rays_o, rays_d = _rays(8, generator)
    s = march_rays(rays_o, rays_d, _grid(), step_size=0.35)
    assert 5 < len(s) < 40
    sigma = torch.rand(len(s), generator=generator, dtype=torch.float64).requires_grad_()
    colours = torch.rand(len(s), 2, generator=generator, dtype=torch.float64).requires_grad_()
    spans = s.t_starts.double(), s.t_ends.double(), s.ray_indices, s.packed_info

    def function(sigma, colours):
        return torch_march.composite(sigma, colours, *spans)

    assert torch.autograd.gradcheck(function, (sigma, colours))
    assert torch.autograd.gradgradcheck(function, (sigma, colours))


@pytest.mark.parametrize("create_graph", [False, True])
def test_numba_equals_the_reference_in_values_and_gradients(create_graph, generator):
    rays_o, rays_d = _rays(400, generator)
    s = march_rays(rays_o, rays_d, _shell_grid(generator), step_size=0.03)
    sigma0 = torch.rand(len(s), generator=generator) * 20
    colours0 = torch.rand(len(s), 5, generator=generator)
    results = []
    for backend in BACKENDS:
        sigma, colours = sigma0.clone().requires_grad_(), colours0.clone().requires_grad_()
        out = composite(sigma, colours, s, 400, backend=backend)
        loss = (out.values.sin().sum() + (out.opacity**2).sum()) + (
            (0.3 * out.depth).sum() + (out.weights**3).sum()
        )
        grads = torch.autograd.grad(loss, (sigma, colours), create_graph=create_graph)
        if create_graph:
            grads += torch.autograd.grad(sum((g**2).sum() for g in grads), (sigma, colours))
        results.append([out.values, out.opacity, out.depth, out.weights, *grads])
    for expected, actual in zip(*results):
        assert float((actual - expected).norm().detach()) <= 2e-6 * float(expected.norm().detach())


def test_gradients_of_reruns_agree_bit_for_bit(generator):
    rays_o, rays_d = _rays(400, generator)
    s = march_rays(rays_o, rays_d, _shell_grid(generator), step_size=0.03)
    sigma = (torch.rand(len(s), generator=generator) * 20).requires_grad_()
    colours = torch.rand(len(s), 3, generator=generator)
    first, second = (
        torch.autograd.grad(composite(sigma, colours, s).values.sin().sum(), sigma)[0]
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_selecting_hidden_samples_away_keeps_the_picture(generator):
    rays_o, rays_d = _rays(300, generator)
    s = march_rays(rays_o, rays_d, _shell_grid(generator), step_size=0.02)
    sigma = torch.full((len(s),), 60.0)
    colours = torch.rand(len(s), 3, generator=generator)
    whole = composite(sigma, colours, s)
    keep = whole.weights > 1e-7
    assert 0.05 < float(keep.float().mean()) < 0.9
    few = select_samples(s, keep)
    assert len(few) == int(keep.sum())
    assert few.n_rays == s.n_rays
    assert torch.equal(few.ray_indices, torch.arange(300).repeat_interleave(few.packed_info[:, 1]))
    part = composite(sigma[keep], colours[keep], few)
    torch.testing.assert_close(part.values, whole.values, atol=1e-5, rtol=0)


@pytest.mark.wrong_shapes
def test_wrong_input_is_refused(generator):
    rays_o, rays_d = _rays(10, generator)
    grid = _grid()
    with pytest.raises(ShapeError, match="rays_o has shape"):
        march_rays(rays_o[:, :2], rays_d, grid, step_size=0.1)
    with pytest.raises(ShapeError, match="rays_d has shape"):
        march_rays(rays_o, rays_d[:5], grid, step_size=0.1)
    with pytest.raises(ShapeError, match="jitter has shape"):
        march_rays(rays_o, rays_d, grid, step_size=0.1, jitter=torch.zeros(3))
    with pytest.raises(ShapeError, match="within has shape"):
        march_rays(rays_o, rays_d, grid, step_size=0.1, within=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"step_size 0\.0"):
        march_rays(rays_o, rays_d, grid, step_size=0.0)
    with pytest.raises(BackendMissing, match="unknown backend"):
        march_rays(rays_o, rays_d, grid, step_size=0.1, backend="cupy")
    s = march_rays(rays_o, rays_d, grid, step_size=0.1)
    with pytest.raises(ShapeError, match="sigma has shape"):
        composite(torch.zeros(3), torch.zeros(3, 3), s)
    with pytest.raises(ShapeError, match="packed_info"):
        composite(torch.zeros(len(s)), torch.zeros(len(s), 3), s, 7)

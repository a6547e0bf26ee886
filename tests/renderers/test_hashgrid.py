"""The hash grid against interpolation written out, and its backends against each other."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from renderers.backends import numba_hashgrid, torch_hashgrid
from renderers.backends.torch_hashgrid import GridLayout
from renderers.configs import HashGridConfig
from renderers.errors import BackendMissing, ShapeError
from renderers.hashgrid import HashGrid

DENSE = HashGridConfig(
    n_levels=2, n_features=2, log2_hashmap_size=12, base_resolution=4, finest_resolution=9
)
MIXED = HashGridConfig(
    n_levels=4, n_features=2, log2_hashmap_size=10, base_resolution=5, finest_resolution=100
)
RELATIVE_TOLERANCE = 2e-6
"""Of the norm, in float32: some hundred additions of rounded products."""


def _points(n: int, generator: torch.Generator) -> torch.Tensor:
    x = torch.rand(n, 3, generator=generator)
    x[0], x[1] = 0.0, 1.0  # the borders count
    return x


def _table(layout: GridLayout, generator: torch.Generator, dtype=torch.float32) -> torch.Tensor:
    shape = (layout.n_entries, layout.n_features)
    return torch.randn(shape, generator=generator, dtype=dtype)


def _assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    error = (actual - expected).norm() / expected.norm().clamp(min=1e-12)
    assert float(error.detach()) <= RELATIVE_TOLERANCE


def _naive_features(x: torch.Tensor, table: torch.Tensor, config: HashGridConfig) -> torch.Tensor:
    """Instant-NGP Eq. 2-4 for one point at a time, in Python numbers."""
    growth = (config.finest_resolution / config.base_resolution) ** (1 / (config.n_levels - 1))
    offset, columns = 0, []
    for level in range(config.n_levels):
        scale = np.float32(config.base_resolution * growth**level - 1)
        side = math.floor(scale + 0.5) + 2
        hashed = side**3 > 2**config.log2_hashmap_size
        rows = []
        for point in x.tolist():
            position = [np.float32(c) * scale + np.float32(0.5) for c in point]
            cell = [math.floor(p) for p in position]
            total = torch.zeros(config.n_features, dtype=torch.float64)
            for corner in itertools.product((0, 1), repeat=3):
                weight, index, vertex = 1.0, 0, [c + k for c, k in zip(cell, corner)]
                for p, c, k in zip(position, cell, corner):
                    weight *= float(p) - c if k else 1 - (float(p) - c)
                if hashed:
                    for v, prime in zip(vertex, (1, 2654435761, 805459861)):
                        index ^= (v * prime) % 2**32
                    index %= 2**config.log2_hashmap_size
                else:
                    index = vertex[0] + side * (vertex[1] + side * vertex[2])
                total += weight * table[offset + index].double()
            rows.append(total)
        columns.append(torch.stack(rows))
        offset += 2**config.log2_hashmap_size if hashed else -(-(side**3) // 8) * 8
    assert offset == table.shape[0]
    return torch.cat(columns, dim=1).float()


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("config", [DENSE, MIXED])
def test_features_equal_trilinear_interpolation_written_out(config, backend, generator):
    grid = HashGrid(config, generator=generator)
    grid.table.data.normal_(generator=generator)
    x = _points(40, generator)
    _assert_close(grid(x, backend=backend), _naive_features(x, grid.table.detach(), config))


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_linear_function_is_reproduced_up_to_the_border(backend, generator):
    grid = HashGrid(DENSE, generator=generator)
    layout, slope = grid.layout, torch.tensor([0.3, -1.1, 0.7])
    for level, side in enumerate(layout.resolutions):
        assert not layout.hashed[level]
        vertex = torch.stack(
            torch.meshgrid(*[torch.arange(side)] * 3, indexing="ij")[::-1], dim=-1
        ).reshape(-1, 3)  # x fastest
        values = ((vertex - 0.5) / layout.scales[level]) @ slope
        first = layout.offsets[level]
        grid.table.data[first : first + side**3] = values[:, None]
    x = _points(200, generator)
    features, jac = grid.with_jacobian(x, backend=backend)
    expected = (x @ slope)[:, None].expand_as(features)
    torch.testing.assert_close(features, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(jac, slope[None, :, None].expand_as(jac), atol=2e-5, rtol=0)


def test_reference_passes_gradcheck_twice(generator):
    config = HashGridConfig(
        n_levels=2, n_features=2, log2_hashmap_size=4, base_resolution=2, finest_resolution=6
    )
    layout = GridLayout.from_config(config)
    x = torch.rand(4, 3, generator=generator, dtype=torch.float64).requires_grad_()
    table = _table(layout, generator, torch.float64).requires_grad_()

    def encode(x, table):
        return torch_hashgrid.encode(x, table, layout)

    def encode_with_jacobian(x, table):
        return torch_hashgrid.encode_with_jacobian(x, table, layout)

    assert torch.autograd.gradcheck(encode, (x, table))
    assert torch.autograd.gradgradcheck(encode, (x, table))
    assert torch.autograd.gradcheck(encode_with_jacobian, (x, table))


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_jacobian_equals_the_derivative_found_by_autograd(backend, generator):
    grid = HashGrid(MIXED, generator=generator)
    grid.table.data.normal_(generator=generator)
    x = torch.rand(50, 3, generator=generator).requires_grad_()
    features, jac = grid.with_jacobian(x.detach(), backend=backend)
    for k in range(grid.n_outputs):
        (slope,) = torch.autograd.grad(grid(x, backend=backend)[:, k].sum(), x)
        _assert_close(jac[:, :, k], slope)
    _assert_close(features, grid(x, backend=backend))


@pytest.mark.parametrize("config", [DENSE, MIXED])
def test_numba_equals_the_reference_in_values_and_all_gradients(config, generator):
    _compare_backends(config, generator)


@pytest.mark.slow
@pytest.mark.parametrize("n_features", [1, 4, 8])
def test_numba_equals_the_reference_for_other_feature_counts(n_features, generator):
    config = HashGridConfig(
        n_levels=3, n_features=n_features, log2_hashmap_size=9, base_resolution=4,
        finest_resolution=40,
    )  # fmt: skip
    _compare_backends(config, generator)


def _compare_backends(config: HashGridConfig, generator: torch.Generator) -> None:
    layout = GridLayout.from_config(config)
    x, table = _points(3000, generator), _table(layout, generator)
    g = torch.randn(3000, layout.n_outputs, generator=generator)
    gj = torch.randn(3000, 3, layout.n_outputs, generator=generator) / 50
    results = []
    for backend in (torch_hashgrid, numba_hashgrid):
        xs, ts = x.clone().requires_grad_(), table.clone().requires_grad_()
        y = backend.encode(xs, ts, layout)
        y2, jac = backend.encode_with_jacobian(x, ts, layout)
        plain = torch.autograd.grad(y, (xs, ts), g)
        joint = torch.autograd.grad((y2, jac), ts, (g, gj))
        results.append([y, *plain, y2, jac, *joint])
    for expected, actual in zip(*results):
        _assert_close(actual, expected)


def test_numba_reads_the_same_table_rows_bit_for_bit(generator):
    # With one non-zero row, a feature is non-zero exactly where that row is a corner.
    layout = GridLayout.from_config(MIXED)
    x = _points(4000, generator)
    for row in torch.randint(layout.n_entries, (20,), generator=generator).tolist():
        table = torch.zeros(layout.n_entries, layout.n_features)
        table[row] = 1.0
        reference = torch_hashgrid.encode(x, table, layout)
        assert torch.equal(numba_hashgrid.encode(x, table, layout) != 0, reference != 0)


def test_table_gradients_of_reruns_agree_bit_for_bit(generator, monkeypatch):
    grid = HashGrid(MIXED, generator=generator)
    x = torch.rand(5000, 3, generator=generator)
    g = torch.randn(5000, grid.n_outputs, generator=generator)
    gj = torch.randn(5000, 3, grid.n_outputs, generator=generator)

    def gradients() -> list[torch.Tensor]:
        plain = torch.autograd.grad(grid(x, backend="numba"), grid.table, g)
        joint = torch.autograd.grad(grid.with_jacobian(x, backend="numba"), grid.table, (g, gj))
        return [*plain, *joint]

    first = gradients()
    assert all(torch.equal(a, b) for a, b in zip(first, gradients()))
    # Whichever thread takes which level, the sums are the same.
    monkeypatch.setattr(
        numba_hashgrid, "_level_order", lambda layout: np.arange(layout.n_levels)[::-1].copy()
    )
    assert all(torch.equal(a, b) for a, b in zip(first, gradients()))


def test_kernels_may_be_called_from_several_threads(generator):
    grid = HashGrid(MIXED, generator=generator)
    x = torch.rand(2000, 3, generator=generator)
    expected = grid(x, backend="numba")
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: grid(x, backend="numba"), range(40)))
    assert all(torch.equal(result, expected) for result in results)


def test_second_derivatives_through_numba_equal_the_reference(generator):
    layout = GridLayout.from_config(MIXED)
    table = _table(layout, generator).requires_grad_()
    x = torch.rand(300, 3, generator=generator).requires_grad_()
    results = []
    for backend in (torch_hashgrid, numba_hashgrid):
        y = backend.encode(x, table, layout)
        (slope,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
        results.append(torch.autograd.grad((slope**2).sum(), (x, table)))
    for expected, actual in zip(*results):
        _assert_close(actual, expected)


def test_jacobian_of_positions_that_need_gradients_is_differentiable_in_them(generator):
    grid = HashGrid(DENSE, generator=generator)
    grid.table.data.normal_(generator=generator)
    x = torch.rand(20, 3, generator=generator).requires_grad_()
    _, jac = grid.with_jacobian(x, backend="numba")
    (grad,) = torch.autograd.grad((jac**2).sum(), x)
    assert grad.abs().max() > 0


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_positions_outside_the_cube_count_as_border_points(backend, generator):
    grid = HashGrid(MIXED, generator=generator)
    x = torch.tensor([[1.5, 0.3, -2.0], [0.5, 0.3, 0.2]], requires_grad=True)
    features = grid(x, backend=backend)
    assert torch.equal(features[:1], grid(torch.tensor([[1.0, 0.3, 0.0]]), backend=backend))
    (grad,) = torch.autograd.grad(features.sum(), x)
    assert grad[0, 0] == 0
    assert grad[0, 2] == 0


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_nan_position_spoils_its_own_features_only(backend, generator):
    grid = HashGrid(MIXED, generator=generator)
    x = torch.rand(10, 3, generator=generator)
    x[4, 1] = float("nan")
    broken = grid(x, backend=backend).isnan().any(dim=1)
    assert broken.tolist() == [i == 4 for i in range(10)]


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_no_points_give_no_features_and_zero_gradients(backend):
    grid = HashGrid(MIXED)
    x = torch.zeros(0, 3)
    features = grid(x, backend=backend)
    assert features.shape == (0, grid.n_outputs)
    features, jac = grid.with_jacobian(x, backend=backend)
    assert jac.shape == (0, 3, grid.n_outputs)
    (features.sum() + jac.sum()).backward()
    assert torch.equal(grid.table.grad, torch.zeros_like(grid.table))


def test_memory_layout_of_positions_and_gradients_does_not_matter(generator):
    grid = HashGrid(MIXED, generator=generator)
    x = torch.rand(3, 64, generator=generator).T
    g = torch.randn(grid.n_outputs, 64, generator=generator).T
    assert not x.is_contiguous()
    (strided,) = torch.autograd.grad(grid(x, backend="numba"), grid.table, g)
    (plain,) = torch.autograd.grad(
        grid(x.contiguous(), backend="numba"), grid.table, g.contiguous()
    )
    assert torch.equal(strided, plain)


def test_double_precision_runs_on_the_reference(generator):
    grid = HashGrid(DENSE, generator=generator).double()
    assert grid(torch.rand(5, 3, generator=generator, dtype=torch.float64)).dtype == torch.float64


def test_initial_table_is_small_and_follows_the_generator():
    grids = [HashGrid(DENSE, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(grids[0].table, grids[1].table)
    assert not torch.equal(grids[0].table, grids[2].table)
    assert float(grids[0].table.detach().abs().max()) <= 1e-4


def test_levels_fade_in_from_coarse_to_fine():
    grid = HashGrid(MIXED)

    def levels_on(progress: float, start_level: int) -> list[float]:
        return grid.level_mask(progress, start_level=start_level)[:: MIXED.n_features].tolist()

    assert levels_on(0.0, 1) == [1, 0, 0, 0]
    assert levels_on(0.5, 1) == [1, 1, 0.5, 0]
    assert levels_on(0.5, 2) == [1, 1, 1, 0]
    assert levels_on(1.0, 1) == levels_on(7.0, 2) == [1, 1, 1, 1]
    assert grid.level_mask(0.3).shape == (grid.n_outputs,)


def test_finest_level_has_the_configured_resolution_and_hashing_starts_when_it_must():
    layout = GridLayout.from_config(HashGridConfig())
    assert layout.n_levels == 16
    assert layout.scales[0] == 15
    assert layout.scales[-1] == 2047
    assert layout.hashed == tuple(side**3 > 2**19 for side in layout.resolutions)
    assert layout.offsets[-1] - layout.offsets[-2] == 2**19


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (HashGridConfig(n_levels=0), "n_levels 0"),
        (HashGridConfig(log2_hashmap_size=40), "log2_hashmap_size 40"),
        (HashGridConfig(base_resolution=64, finest_resolution=16), "base_resolution 64"),
    ],
)
def test_impossible_sizes_are_refused(config, words):
    with pytest.raises(ValueError, match=words):
        GridLayout.from_config(config)


@pytest.mark.wrong_shapes
def test_wrong_shape_dtype_and_backend_are_refused():
    grid = HashGrid(DENSE)
    with pytest.raises(ShapeError, match="x has shape"):
        grid(torch.zeros(4, 2))
    with pytest.raises(TypeError, match=r"torch\.float64"):
        grid(torch.zeros(4, 3, dtype=torch.float64))
    with pytest.raises(BackendMissing, match="unknown backend"):
        grid(torch.zeros(4, 3), backend="warp")

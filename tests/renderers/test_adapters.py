"""Adapters for CUDA libraries: clear errors without them, agreement with our kernels with them."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch

from renderers.configs import HashGridConfig
from renderers.errors import BackendMissing
from renderers.hashgrid import HashGrid, build_hash_grid
from renderers.marching import composite, march_rays
from renderers.occupancy import OccupancyGrid

CONFIG = HashGridConfig(
    n_levels=4, n_features=2, log2_hashmap_size=12, base_resolution=8, finest_resolution=64
)
HAS_GPU = torch.cuda.is_available()


def _require(name: str) -> None:
    if not HAS_GPU or importlib.util.find_spec(name) is None:
        pytest.skip(f"needs {name} and a CUDA device")


def _absent(name: str) -> None:
    if HAS_GPU and importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed and usable here")


def test_a_config_builds_our_grid_and_remembers_its_backend(generator):
    grid = build_hash_grid(dataclasses.replace(CONFIG, backend="torch"), generator=generator)
    assert isinstance(grid, HashGrid)
    assert grid.backend == "torch"
    x = torch.rand(10, 3, generator=generator)
    assert torch.equal(grid(x), grid(x, backend="torch"))


def test_without_tinycudann_its_grid_is_one_clear_error():
    _absent("tinycudann")
    with pytest.raises(BackendMissing, match=r"'tinycudann' was asked for.*requirements-cuda"):
        build_hash_grid(dataclasses.replace(CONFIG, backend="tinycudann"))


def test_without_nerfacc_marching_and_compositing_are_one_clear_error():
    _absent("nerfacc")
    grid, rays = OccupancyGrid(4, 1.0), torch.tensor([[-3.0, 0.0, 0.0]])
    forward = torch.tensor([[1.0, 0.0, 0.0]])
    with pytest.raises(BackendMissing, match=r"'nerfacc' was asked for.*pip install nerfacc"):
        march_rays(rays, forward, grid, step_size=0.1, backend="nerfacc")
    samples = march_rays(rays, forward, grid, step_size=0.1)
    with pytest.raises(BackendMissing, match="nerfacc"):
        composite(samples.middles, samples.positions, samples, backend="nerfacc")


@pytest.mark.gpu
def test_tinycudann_has_a_true_jacobian_that_trains(generator):
    _require("tinycudann")
    grid = build_hash_grid(
        dataclasses.replace(CONFIG, backend="tinycudann"), generator=generator
    ).cuda()
    grid.encoding.params.data.normal_()
    x = torch.rand(1000, 3, generator=generator).cuda() * 0.9 + 0.05
    features, jac = grid.with_jacobian(x)
    assert features.shape == (1000, grid.n_outputs)
    torch.testing.assert_close(features, grid(x))
    # Inside a cell the features are linear along an axis.
    eps = 1e-4
    for axis in range(3):
        shift = torch.zeros(3, device="cuda")
        shift[axis] = eps
        slope = (grid(x + shift) - grid(x - shift)) / (2 * eps)
        off = (slope - jac[:, axis]).abs() > 1e-2 * jac.abs().max()
        assert off.float().mean() < 0.05  # only where a cell border lies between
    (jac**2).sum().backward()
    assert grid.encoding.params.grad.abs().max() > 0
    assert grid(x[:0]).shape == (0, grid.n_outputs)


@pytest.mark.gpu
def test_nerfacc_places_the_same_samples_and_gives_the_same_picture(generator):
    _require("nerfacc")
    grid = OccupancyGrid(16, 1.3)
    grid.update(lambda x: 100.0 * ((x.norm(dim=1) - 0.8).abs() < 0.2), step=0)
    grid = grid.cuda()
    rays_o = torch.randn(500, 3, generator=generator)
    rays_d = torch.nn.functional.normalize(torch.randn(500, 3, generator=generator), dim=1)
    jitter = torch.rand(500, generator=generator)
    rays_o, rays_d, jitter = rays_o.cuda(), rays_d.cuda(), jitter.cuda()
    options = {"step_size": 0.05, "near": 0.1, "jitter": jitter}
    ours = march_rays(rays_o, rays_d, grid, backend="torch", **options)
    theirs = march_rays(rays_o, rays_d, grid, backend="nerfacc", **options)
    # Its running sum of steps may carry a sample over a cell border.
    assert abs(len(ours) - len(theirs)) < 0.01 * len(ours)
    sigma = torch.rand(len(ours), generator=generator).cuda() * 20
    results = []
    for backend in ("torch", "nerfacc"):
        density = sigma.clone().requires_grad_()
        out = composite(density, ours.positions, ours, backend=backend)
        loss = out.values.sin().sum() + (out.opacity**2).sum() + out.depth.sum()
        results.append([out.values, out.opacity, out.depth, *torch.autograd.grad(loss, density)])
    for expected, actual in zip(*results):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)

"""The Triton kernels against the reference: on a GPU, or in Triton's interpreter without one.

The interpreter must be switched on before Triton is imported, so `test_kernels_in_the_interpreter`
runs the ``cpu`` cases of this file in a process of its own; in any other process they are skipped.
Another test compiles every kernel for a GPU that need not be there.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from renderers.backends import torch_hashgrid
from renderers.backends.torch_hashgrid import GridLayout
from renderers.configs import HashGridConfig
from renderers.marching import composite, march_rays
from renderers.occupancy import OccupancyGrid

RELATIVE_TOLERANCE = 2e-6
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.slow),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


def _why_triton_is_unusable() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'text-to-3d-studio[triton]'"
    return None


def _require_kernels(device: str) -> None:
    if (reason := _why_triton_is_unusable()) is not None:
        pytest.skip(reason)
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if device == "cpu" and not INTERPRETED:
        pytest.skip("runs in the process that test_kernels_in_the_interpreter starts")


def _assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    error = (actual.detach().cpu() - expected.detach().cpu()).norm()
    assert float(error) <= RELATIVE_TOLERANCE * float(expected.detach().norm()) + 1e-12


def test_the_guard_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install" in _why_triton_is_unusable()
    with pytest.raises(pytest.skip.Exception, match="triton is not installed"):
        _require_kernels("cpu")


@pytest.mark.slow
def test_kernels_in_the_interpreter():
    if INTERPRETED:
        pytest.skip("this is the process with the interpreter")
    if (reason := _why_triton_is_unusable()) is not None:
        pytest.skip(reason)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, "-q", "-x", "-m", "slow", "-k", "cpu"],
        cwd=root,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_features", [2, 3])
def test_hash_grid_equals_the_reference_in_values_and_all_gradients(device, n_features, generator):
    _require_kernels(device)
    from renderers.backends import triton_hashgrid

    config = HashGridConfig(
        n_levels=3, n_features=n_features, log2_hashmap_size=10, base_resolution=5,
        finest_resolution=100,
    )  # fmt: skip
    layout = GridLayout.from_config(config)
    assert set(layout.hashed) == {False, True}
    n = 300 if device == "cpu" else 20_000
    x = torch.rand(n, 3, generator=generator)
    x[0], x[1] = 0.0, 1.0
    table = torch.randn(layout.n_entries, n_features, generator=generator)
    g = torch.randn(n, layout.n_outputs, generator=generator)
    gj = torch.randn(n, 3, layout.n_outputs, generator=generator) / 50
    x, table, g, gj = (tensor.to(device) for tensor in (x, table, g, gj))
    results = []
    for kernels in (torch_hashgrid, triton_hashgrid):
        xs, ts = x.clone().requires_grad_(), table.clone().requires_grad_()
        y = kernels.encode(xs, ts, layout)
        y2, jac = kernels.encode_with_jacobian(x, ts, layout)
        plain = torch.autograd.grad(y, (xs, ts), g)
        joint = torch.autograd.grad((y2, jac), ts, (g, gj))
        results.append([y, *plain, y2, jac, *joint])
    for expected, actual in zip(*results):
        _assert_close(actual, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_hash_grid_reads_the_same_rows_at_cell_borders(device, generator):
    _require_kernels(device)
    from renderers.backends import triton_hashgrid

    layout = GridLayout.from_config(HashGridConfig(2, 1, 8, 4, 24))
    # Positions right at and one bit beside the borders of the finest level's cells.
    scale = layout.scales[-1]
    border = (torch.arange(1, 20) - 0.5) / scale
    up, down = torch.tensor(1.0), torch.tensor(0.0)
    around = torch.cat([border, torch.nextafter(border, up), torch.nextafter(border, down)])
    x = around[torch.randint(len(around), (200, 3), generator=generator)]
    # Large, unlike rows: reading one wrong row changes a feature by far more than rounding.
    table = torch.randn(layout.n_entries, 1, generator=generator) * 1e4
    expected = torch_hashgrid.encode_with_jacobian(x, table, layout)
    actual = triton_hashgrid.encode_with_jacobian(x.to(device), table.to(device), layout)
    for want, have in zip(expected, actual):
        _assert_close(have, want)


@pytest.mark.parametrize("device", DEVICES)
def test_second_derivatives_of_the_hash_grid_equal_the_reference(device, generator):
    _require_kernels(device)
    from renderers.backends import triton_hashgrid

    layout = GridLayout.from_config(HashGridConfig(2, 2, 8, 4, 24))
    table = torch.randn(layout.n_entries, 2, generator=generator).to(device).requires_grad_()
    x = torch.rand(60, 3, generator=generator).to(device).requires_grad_()
    results = []
    for kernels in (torch_hashgrid, triton_hashgrid):
        y = kernels.encode(x, table, layout)
        (slope,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
        results.append(torch.autograd.grad((slope**2).sum(), (x, table)))
    for expected, actual in zip(*results):
        _assert_close(actual, expected)


def _scene(n_rays: int, generator: torch.Generator, device: str):
    grid = OccupancyGrid(16, 1.3)
    grid.update(lambda x: 100.0 * ((x.norm(dim=1) - 0.8).abs() < 0.2), step=0)
    rays_o = torch.randn(n_rays, 3, generator=generator) * 0.7
    rays_d = torch.randn(n_rays, 3, generator=generator)
    rays_d[:3] = torch.eye(3)
    rays_d = rays_d / rays_d.norm(dim=1, keepdim=True)
    jitter = torch.rand(n_rays, generator=generator)
    return grid.to(device), rays_o.to(device), rays_d.to(device), jitter.to(device)


@pytest.mark.parametrize("device", DEVICES)
def test_marching_places_the_same_samples(device, generator):
    _require_kernels(device)
    n_rays = 100 if device == "cpu" else 5000
    grid, rays_o, rays_d, jitter = _scene(n_rays, generator, device)
    options = {"step_size": 0.06, "near": 0.1, "far": 3.0, "jitter": jitter}
    options["max_samples"] = 4 * n_rays
    a = march_rays(rays_o, rays_d, grid, backend="torch", **options)
    b = march_rays(rays_o, rays_d, grid, backend="triton", **options)
    assert len(a) > n_rays
    assert torch.equal(a.packed_info, b.packed_info)
    assert torch.equal(a.ray_indices, b.ray_indices)
    _assert_close(b.t_starts, a.t_starts)
    _assert_close(b.positions, a.positions)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("create_graph", [False, True])
def test_compositing_equals_the_reference_in_values_and_gradients(device, create_graph, generator):
    _require_kernels(device)
    n_rays = 80 if device == "cpu" else 5000
    grid, rays_o, rays_d, jitter = _scene(n_rays, generator, device)
    s = march_rays(rays_o, rays_d, grid, step_size=0.1, jitter=jitter, backend="torch")
    sigma0 = torch.rand(len(s), generator=generator).to(device) ** 4 * 20  # thin and thick
    colours0 = torch.rand(len(s), 3, generator=generator).to(device)
    results = []
    for backend in ("torch", "triton"):
        sigma, colours = sigma0.clone().requires_grad_(), colours0.clone().requires_grad_()
        out = composite(sigma, colours, s, n_rays, backend=backend)
        loss = (out.values.sin().sum() + (out.opacity**2).sum()) + (
            (0.3 * out.depth).sum() + (out.weights**3).sum()
        )
        grads = torch.autograd.grad(loss, (sigma, colours), create_graph=create_graph)
        if create_graph:
            grads += torch.autograd.grad(sum((g**2).sum() for g in grads), (sigma, colours))
        results.append([out.values, out.opacity, out.depth, out.weights, *grads])
    for expected, actual in zip(*results):
        _assert_close(actual, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_compositing_a_density_that_is_no_number_equals_the_reference(device, value, generator):
    _require_kernels(device)
    rays_o = torch.randn(20, 3, generator=generator) * 0.5
    rays_d = torch.nn.functional.normalize(torch.randn(20, 3, generator=generator), dim=1)
    grid = OccupancyGrid(4, 1.0).to(device)
    s = march_rays(rays_o.to(device), rays_d.to(device), grid, step_size=0.2)
    sigma = torch.rand(len(s), generator=generator).to(device)
    bad = len(s) // 3
    sigma[bad] = value
    expected, actual = (
        composite(sigma, s.positions, s, backend=backend) for backend in ("torch", "triton")
    )
    for name in ("values", "opacity", "depth"):
        one, other = getattr(actual, name), getattr(expected, name)
        torch.testing.assert_close(one, other, equal_nan=True, rtol=1e-5, atol=1e-6)
    harmed = ~expected.opacity.isfinite()
    expected_harm = [] if value == float("inf") else [int(s.ray_indices[bad])]
    assert harmed.nonzero().squeeze(1).tolist() == expected_harm


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_to_do_is_no_error(device):
    _require_kernels(device)
    from renderers.backends import triton_hashgrid

    grid = OccupancyGrid(4, 1.0).to(device)
    for n_rays in (0, 3):
        rays = torch.full((n_rays, 3), 5.0, device=device)
        s = march_rays(rays, rays / 75**0.5, grid, step_size=0.1, backend="triton")
        assert len(s) == 0
        sigma = torch.zeros(0, device=device, requires_grad=True)
        out = composite(sigma, torch.zeros(0, 2, device=device), s, n_rays, backend="triton")
        assert torch.equal(out.values, torch.zeros(n_rays, 2, device=device))
        out.values.sum().backward()
    layout = GridLayout.from_config(HashGridConfig(2, 2, 8, 4, 24))
    table = torch.ones(layout.n_entries, 2, device=device, requires_grad=True)
    triton_hashgrid.encode(torch.zeros(0, 3, device=device), table, layout).sum().backward()
    assert torch.equal(table.grad, torch.zeros_like(table))


@pytest.mark.gpu
@pytest.mark.parametrize("n_rays", [4096])
def test_composite_gradients_of_reruns_agree_bit_for_bit_on_the_gpu(n_rays, generator):
    _require_kernels("cuda")
    grid, rays_o, rays_d, jitter = _scene(n_rays, generator, "cuda")
    s = march_rays(rays_o, rays_d, grid, step_size=0.05, jitter=jitter)
    sigma = torch.rand(len(s), generator=generator).cuda().requires_grad_()
    colours = torch.ones(len(s), 3, device="cuda")
    first, second = (
        torch.autograd.grad(composite(sigma, colours, s).values.sin().sum(), sigma)[0]
        for _ in range(2)
    )
    assert torch.equal(first, second)


HASH_TYPES = {
    "Resolutions": "*i32", "Offsets": "*i64", "Hashed": "*i32", "n": "i32", "mask": "i32"
}  # fmt: skip
HASH_CONSTANTS = {"N_OUTPUTS": 32, "F": 2, "POINTS": 256}
RAY_TYPES = {
    "Binary": "*u8", "First": "*i64", "Counts": "*i64", "RayIndices": "*i64", "PackedInfo": "*i64",
    "n_rays": "i32", "resolution": "i32", "radius": "fp32", "near": "fp32", "far": "fp32",
    "step": "fp32", "cells_per_unit": "fp32",
}  # fmt: skip
KERNELS = [
    *[("hashgrid", name, HASH_TYPES, HASH_CONSTANTS)
      for name in ("_forward", "_forward_jacobian", "_backward_table", "_backward_table_jacobian",
                   "_backward_positions")],
    *[("march", "_march", RAY_TYPES, {"WRITE": write, "LANES": 64}) for write in (False, True)],
    *[("march", name, RAY_TYPES, {"C": 3, "C_PADDED": 4, "LANES": 64})
      for name in ("_composite_forward", "_composite_backward")],
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize(("module", "name", "types", "constants"), KERNELS)
def test_kernels_compile_without_a_gpu(module, name, types, constants):
    if (reason := _why_triton_is_unusable()) is not None:
        pytest.skip(reason)
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernels = importlib.import_module(f"renderers.backends.triton_{module}")
    function = getattr(kernels, name)
    signature = {
        argument: "constexpr" if argument in constants else types.get(argument, "*fp32")
        for argument in function.arg_names
    }
    compiled = triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", 80, 32),
        options={"enable_fp_fusion": False},
    )
    assert compiled.asm["cubin"]
    # A fused x * scale + 0.5 would move indices against the other backends.
    assert "fma.rn" not in compiled.asm["ptx"]

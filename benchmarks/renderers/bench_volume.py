"""Speed of hash grid, marching, compositing, the whole renderer and analytic normals.

    python -m benchmarks.renderers.bench_volume                      # minutes, on an idle machine
    python -m benchmarks.renderers.bench_volume --smoke --out /tmp/volume.json    # seconds
    python -m benchmarks.renderers.bench_volume --device cuda        # Triton against PyTorch

Speeds are ratios of variants that take turns in one process; each has a bar of about half of what
was measured when it was set. Both variants of a pair compute the same thing, which is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numba
import torch
from torch import Tensor, nn

from benchmarks.common import Ratio, arguments, interleaved_ratio, write_results
from benchmarks.renderers import volume_baselines as baselines
from renderers.cameras import orbit_cameras
from renderers.configs import HashGridConfig
from renderers.hashgrid import HashGrid
from renderers.marching import RaySamples, composite, march_rays
from renderers.occupancy import OccupancyGrid

SMALL = HashGridConfig(
    n_levels=8, n_features=2, log2_hashmap_size=14, base_resolution=16, finest_resolution=512
)
LARGE = HashGridConfig(
    n_levels=16, n_features=2, log2_hashmap_size=19, base_resolution=16, finest_resolution=2048
)
RADIUS = 1.0
AGREEMENT = 1e-3
"""Largest relative difference between two variants of a pair."""


def describe(config: HashGridConfig) -> str:
    """Short name of a grid size."""
    return f"L{config.n_levels} T2^{config.log2_hashmap_size}"


def check(ours: Tensor, baseline: Tensor) -> None:
    """Refuse to compare the speed of different results."""
    error = float(((ours - baseline).norm() / baseline.norm().clamp(min=1e-12)).detach())
    if not error <= AGREEMENT:
        raise RuntimeError(f"the variants differ by {error:.2g}, at most {AGREEMENT} was expected")


def trained_grid(config: HashGridConfig, device: str) -> HashGrid:
    """A grid with features of ordinary size."""
    grid = HashGrid(config, generator=torch.Generator().manual_seed(0))
    grid.table.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return grid.to(device)


def grid_ratio(config: HashGridConfig, n_points: int, bar: float, device: str) -> Ratio:
    """Features and gradient of the table, against a gather for each level and corner."""
    grid = trained_grid(config, device)
    x = torch.rand(n_points, 3, device=device)
    upstream = torch.randn(n_points, grid.n_outputs, device=device)
    check(grid(x[:500]), baselines.encode_naive(x[:500], grid.table, grid.layout))

    def step(features: Tensor) -> None:
        grid.table.grad = None
        features.backward(upstream)

    return interleaved_ratio(
        f"hash grid {describe(config)}, {n_points} points, forward and backward",
        baseline=lambda: step(baselines.encode_naive(x, grid.table, grid.layout)),
        ours=lambda: step(grid(x)),
        bar=bar,
    )


def gather_bound_ratio(config: HashGridConfig, n_points: int, bar: float) -> Ratio:
    """The forward pass against reading as many rows at random (1 would be the memory's limit)."""
    grid = trained_grid(config, "cpu")
    x = torch.rand(n_points, 3)
    table, offsets = grid.table.detach().numpy(), grid.layout.offsets
    levels = [table[first:stop] for first, stop in pairwise(offsets)]
    indices = [
        torch.randint(len(rows), (8 * n_points,), dtype=torch.int32).numpy() for rows in levels
    ]
    out = torch.empty(8 * n_points // 4096 + 1).numpy()

    def gather() -> None:
        for rows, index in zip(levels, indices, strict=True):
            baselines.gather_rows(rows, index, out)

    with torch.no_grad():
        return interleaved_ratio(
            f"hash grid {describe(config)}, {n_points} points, forward, share of its gather bound",
            baseline=gather,
            ours=lambda: grid(x),
            bar=bar,
        )


def thread_ratios(n_points: int, bar: float) -> list[Ratio]:
    """One thread against two, forward and backward; nothing on a machine with one core."""
    if numba.config.NUMBA_NUM_THREADS < 2:
        print("thread scaling: skipped, numba has one thread here")
        return []
    grid = trained_grid(SMALL, "cpu")
    x = torch.rand(n_points, 3)
    features = grid(x)
    upstream = torch.randn_like(features)

    def with_threads(count: int, function: Callable[[], object]) -> Callable[[], None]:
        def call() -> None:
            numba.set_num_threads(count)
            function()

        return call

    def backward() -> Tensor:
        return torch.autograd.grad(features, grid.table, upstream, retain_graph=True)[0]

    ratios = []
    for name, function in (("forward", lambda: grid(x)), ("backward", backward)):
        pair = {"baseline": with_threads(1, function), "ours": with_threads(2, function)}
        label = f"hash grid {describe(SMALL)}, {name}, two threads against one"
        ratios.append(interleaved_ratio(label, bar=bar, **pair))
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    return ratios


def shell(resolution: int, device: str) -> OccupancyGrid:
    """A converged grid: a tenth of the cells, around a surface, is occupied."""
    grid = OccupancyGrid(resolution, RADIUS)
    grid.update(lambda x: 100.0 * ((x.norm(dim=1) - 0.66).abs() < 0.07), step=0)
    return grid.to(device)


def rays(n_views: int, size: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Origins, directions and jitter of orbit cameras around the box."""
    cameras = orbit_cameras(
        n_views, elevation_deg=15.0, distance=3.2, fovy_deg=45.0, height=size, width=size
    )
    rays_o, rays_d = (part.reshape(-1, 3).contiguous().to(device) for part in cameras.rays())
    jitter = torch.rand(len(rays_o), generator=torch.Generator().manual_seed(0)).to(device)
    return rays_o, rays_d, jitter


def step_of(samples_per_ray: int) -> float:
    """Step that gives as many samples along the box's diagonal."""
    return 2 * 3**0.5 * RADIUS / samples_per_ray


def march_ratio(size: int, samples_per_ray: int, bar: float, device: str) -> Ratio:
    """Marching through the shell, against testing all lattice points at once."""
    grid, step = shell(128, device), step_of(samples_per_ray)
    rays_o, rays_d, jitter = rays(1, size, device)

    def ours() -> RaySamples:
        return march_rays(rays_o, rays_d, grid, step_size=step, jitter=jitter)

    def baseline() -> tuple[Tensor, ...]:
        return baselines.march_lattice(rays_o, rays_d, grid.binary, RADIUS, step, jitter)

    samples, (_, _, _, positions) = ours(), baseline()
    check(samples.positions, positions)
    return interleaved_ratio(
        f"march, {size} px, {samples_per_ray} steps, {len(samples)} samples",
        baseline=baseline,
        ours=ours,
        bar=bar,
    )


def composite_ratio(size: int, samples_per_ray: int, bar: float, device: str) -> Ratio:
    """Compositing of packed samples with its backward pass, against a running sum."""
    rays_o, rays_d, jitter = rays(1, size, device)
    step = step_of(samples_per_ray)
    s = march_rays(rays_o, rays_d, shell(128, device), step_size=step, jitter=jitter)
    sigma = torch.rand(len(s), device=device).mul_(20).requires_grad_()
    colours = torch.rand(len(s), 3, device=device, requires_grad=True)

    def ours() -> Tensor:
        out = composite(sigma, colours, s)
        return torch.cat([out.values, out.depth[:, None], out.opacity[:, None]], dim=1)

    def baseline() -> Tensor:
        spans = (s.t_starts, step, s.ray_indices, s.packed_info)
        return baselines.composite_packed(sigma, colours, *spans)

    def step_with(function: Callable[[], Tensor]) -> Callable[[], None]:
        def call() -> None:
            sigma.grad = colours.grad = None
            function().sum().backward()

        return call

    check(ours(), baseline())
    return interleaved_ratio(
        f"composite, {size} px, {len(s)} samples, forward and backward",
        baseline=step_with(baseline),
        ours=step_with(ours),
        bar=bar,
    )


def mlp(n_inputs: int, device: str) -> nn.Sequential:
    """Two hidden layers of 64: density and colour from features."""
    torch.manual_seed(0)
    layers = [nn.Linear(n_inputs, 64, bias=False), nn.ReLU(), nn.Linear(64, 64, bias=False)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(64, 4, bias=False)).to(device)


class Pictures:
    """The same picture by three renderers: ours, packed PyTorch, and dense without occupancy."""

    def __init__(
        self, config: HashGridConfig, n_views: int, size: int, samples_per_ray: int, device: str
    ) -> None:
        self.grid = trained_grid(config, device)
        self.mlp = mlp(self.grid.n_outputs, device)
        self.occupancy = shell(128, device)
        self.rays_o, self.rays_d, self.jitter = rays(n_views, size, device)
        self.step = step_of(samples_per_ray)
        self.name = f"{n_views} x {size} px, {samples_per_ray} steps, {describe(config)}"

    def ours(self) -> Tensor:
        """Packed samples through our kernels."""
        s = march_rays(
            self.rays_o, self.rays_d, self.occupancy, step_size=self.step, jitter=self.jitter
        )
        sigma, colours = self._heads(self.grid(self._to_unit(s.positions)))
        out = composite(sigma, colours, s)
        return torch.cat([out.values, out.depth[:, None], out.opacity[:, None]], dim=1)

    def packed(self) -> Tensor:
        """Packed samples through plain PyTorch."""
        t, ray, packed_info, positions = baselines.march_lattice(
            self.rays_o, self.rays_d, self.occupancy.binary, RADIUS, self.step, self.jitter
        )
        sigma, colours = self._heads(self._naive(positions))
        return baselines.composite_packed(sigma, colours, t, self.step, ray, packed_info)

    def dense(self) -> Tensor:
        """Every sample of every ray through plain PyTorch."""
        t, positions, inside = baselines.dense_samples(
            self.rays_o, self.rays_d, RADIUS, self.step, self.jitter
        )
        flat = positions.reshape(-1, 3).clamp(-RADIUS, RADIUS)
        sigma, colours = self._heads(self._naive(flat))
        sigma = sigma.view_as(t) * inside
        return baselines.composite_dense(sigma, colours.view(*t.shape, 3), t, self.step)

    def trained(self, picture: Callable[[], Tensor]) -> Callable[[], None]:
        """A picture and its gradients."""

        def call() -> None:
            self.grid.zero_grad()
            self.mlp.zero_grad()
            picture().square().mean().backward()

        return call

    def _heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        out = self.mlp(features)
        return nn.functional.softplus(out[:, 0]) * 5, torch.sigmoid(out[:, 1:])

    def _naive(self, positions: Tensor) -> Tensor:
        return baselines.encode_naive(self._to_unit(positions), self.grid.table, self.grid.layout)

    def _to_unit(self, positions: Tensor) -> Tensor:
        return (positions / RADIUS + 1) * 0.5


def renderer_ratios(pictures: Pictures, packed_bar: float, dense_bar: float) -> list[Ratio]:
    """A picture with its gradients, against packed PyTorch and against dense samples."""
    with torch.no_grad():
        check(pictures.ours(), pictures.packed())
    ours = pictures.trained(pictures.ours)
    return [
        interleaved_ratio(
            f"renderer, {pictures.name}, against {name}",
            baseline=pictures.trained(baseline),
            ours=ours,
            bar=bar,
            warmup=1,
        )
        for name, baseline, bar in (
            ("packed PyTorch", pictures.packed, packed_bar),
            ("dense PyTorch", pictures.dense, dense_bar),
        )
    ]


def normals_ratio(n_points: int, bar: float, device: str) -> Ratio:
    """Density with analytic normals, against three forward differences, forward and backward."""
    grid, net = trained_grid(SMALL, device), mlp(2 * SMALL.n_levels, device)
    first, second, last = (net[i].weight for i in (0, 2, 4))
    x = torch.rand(n_points, 3, device=device) * 0.98 + 0.01
    weigh, weigh_normal = torch.rand(n_points, 4, device=device), torch.rand(3, device=device)
    epsilon = 1e-3

    def analytic() -> tuple[Tensor, Tensor]:
        features, jac = grid.with_jacobian(x)
        hidden = features @ first.T
        deeper = torch.relu(hidden) @ second.T
        by_feature = ((last[0] * (deeper > 0)) @ second * (hidden > 0)) @ first
        slope = (jac * by_feature[:, None, :]).sum(dim=-1)
        return torch.relu(deeper) @ last.T, slope

    def differences() -> tuple[Tensor, Tensor]:
        taps = x + epsilon * torch.eye(3, device=device)[:, None]
        out = net(grid(x))
        around = net(grid(taps.reshape(-1, 3)))[:, 0].view(3, n_points).T
        return out, (around - out[:, :1]) / epsilon

    def trained(function: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], None]:
        def call() -> None:
            grid.zero_grad()
            net.zero_grad()
            out, slope = function()
            ((out * weigh).sum() + (slope * weigh_normal).sum()).backward()

        return call

    return interleaved_ratio(
        f"density and normals of {n_points} points, analytic against finite differences",
        baseline=trained(differences),
        ours=trained(analytic),
        bar=bar,
    )


def adam_ratio(n_parameters: int, bar: float, device: str) -> Ratio:
    """One step of the optimiser, fused against the default."""
    steps = []
    for fused in (False, True):
        parameter = nn.Parameter(torch.zeros(n_parameters, device=device))
        parameter.grad = torch.ones_like(parameter)
        steps.append(torch.optim.Adam([parameter], fused=fused or None).step)
    return interleaved_ratio(
        f"Adam over {n_parameters} numbers, fused against default",
        baseline=steps[0],
        ours=steps[1],
        bar=bar,
    )


def measure(device: str) -> list[Ratio]:
    """All ratios at full size."""
    n_points = 1 << (16 if device == "cpu" else 18)
    ratios = [grid_ratio(config, n_points, 10.0, device) for config in (SMALL, LARGE)]
    if device == "cpu":
        ratios += [gather_bound_ratio(SMALL, n_points, 1 / 2)]
        ratios += [gather_bound_ratio(LARGE, n_points, 1 / 3)]
        ratios += thread_ratios(n_points, 1.6)
    sizes = [(64, 64), (64, 128), (128, 64), (128, 128)]
    ratios += [march_ratio(size, steps, 4.0, device) for size, steps in sizes]
    ratios += [composite_ratio(size, steps, 2.0, device) for size, steps in sizes]
    ratios += renderer_ratios(Pictures(SMALL, 4, 64, 64, device), 5.0, 50.0)
    ratios += renderer_ratios(Pictures(LARGE, 1, 64, 128, device), 5.0, 50.0)
    ratios += [normals_ratio(35_000, 1.5, device), adam_ratio(12_000_000, 2.0, device)]
    return ratios


def measure_smoke(device: str) -> list[Ratio]:
    """The same code at sizes that take seconds; its ratios mean nothing."""
    ratios = [grid_ratio(SMALL, 2000, 0.0, device)]
    if device == "cpu":
        ratios += [gather_bound_ratio(SMALL, 2000, 0.0), *thread_ratios(2000, 0.0)]
    ratios += [march_ratio(16, 32, 0.0, device), composite_ratio(16, 32, 0.0, device)]
    ratios += renderer_ratios(Pictures(SMALL, 1, 16, 16, device), 0.0, 0.0)
    return [*ratios, normals_ratio(1000, 0.0, device), adam_ratio(10_000, 0.0, device)]


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write the results; 1 if a bar is missed."""
    options = arguments(argv, about=__doc__)
    torch.manual_seed(0)
    measured = measure_smoke if options.smoke else measure
    ratios = measured(options.device)
    if options.out or not options.smoke:
        write_results("volume", ratios=ratios, device=options.device, path=options.out)
    return int(any(not ratio.passed for ratio in ratios))


if __name__ == "__main__":
    raise SystemExit(main())

"""Speed of visibility, interpolation and tetrahedra, and the error of silhouette gradients.

    python -m benchmarks.renderers.bench_mesh                  # minutes, on an idle machine
    python -m benchmarks.renderers.bench_mesh --smoke          # seconds, checks that it runs
    python -m benchmarks.renderers.bench_mesh --device cuda    # Triton against PyTorch

Speeds are ratios of variants that take turns in one process; each has a bar of about half of what
was measured when it was set on a CPU. On a GPU the bar of visibility is to be no slower than
PyTorch, and interpolation is plain PyTorch itself, so it has no ratio.

Gradient errors compare the derivative of a weighted silhouette area by place (3) and size (1) with
central finite differences of pictures of 3072 px.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
import trimesh
from torch import Tensor

from benchmarks.common import Ratio, arguments, interleaved_ratio, write_results
from benchmarks.renderers.mesh_baselines import (
    antialias_front_triangle,
    dmtet,
    kuhn_grid,
    opposite_vertices,
)
from renderers.antialias import Topology, antialias
from renderers.backends import numba_raster, torch_raster
from renderers.cameras import orbit_cameras
from renderers.isosurface import GridTets
from renderers.mesh import Mesh
from renderers.raster import RasterBackend, rasterize, to_clip

START = torch.tensor([0.03, 0.02, -0.01, 1.0])
STEP = 4e-3
ERROR_BAR = 0.05
KERNELS: dict[str, RasterBackend] = {"cpu": "numba", "cuda": "triton"}


@dataclass(frozen=True)
class GradientError:
    """How far a silhouette gradient is from finite differences."""

    faces: int
    pixels: int
    edge: float
    """Relative error of the edge-centric rule."""
    front_triangle: float
    """Relative error of the rule that looks at the front pixel's face only."""


def blob(subdivisions: int, device: str) -> Mesh:
    """A dented icosphere of ``20 * 4**subdivisions`` faces."""
    sphere = trimesh.creation.icosphere(subdivisions=subdivisions)
    unit = torch.tensor(sphere.vertices, dtype=torch.float32)
    scale = 0.7 * (1 + 0.15 * torch.sin(7 * unit[:, :1]) * torch.cos(5 * unit[:, 1:2]))
    return Mesh(unit * scale, torch.tensor(sphere.faces, dtype=torch.int64)).to(device)


def clip_positions(v_pos: Tensor, size: int) -> Tensor:
    """Clip positions under one camera, slightly from above."""
    cameras = orbit_cameras(
        1, elevation_deg=15.0, distance=2.6, fovy_deg=40.0, height=size, width=size
    )
    return to_clip(v_pos, cameras.mvp(0.05, 100.0).to(v_pos.device))


def visibility_ratio(subdivisions: int, size: int, bar: float, device: str) -> Ratio:
    """Our kernel against PyTorch: nearest face and weights at every pixel."""
    mesh = blob(subdivisions, device)
    pos = clip_positions(mesh.v_pos, size)
    return interleaved_ratio(
        f"visibility, {mesh.n_faces} faces, {size} px",
        baseline=lambda: rasterize(pos, mesh.t_pos_idx, (size, size), backend="torch"),
        ours=lambda: rasterize(pos, mesh.t_pos_idx, (size, size), backend=KERNELS[device]),
        bar=bar,
    )


def interpolation_ratio(subdivisions: int, size: int, bar: float) -> Ratio:
    """numba against torch: weights and six attributes, forward and backward, for given faces."""
    mesh = blob(subdivisions, "cpu")
    tri = mesh.t_pos_idx
    pos = clip_positions(mesh.v_pos, size).requires_grad_()
    tri_id = rasterize(pos.detach(), tri, (size, size)).tri_id
    attributes = torch.rand(1, mesh.n_vertices, 6, generator=torch.Generator().manual_seed(0))
    attributes.requires_grad_()
    weight = torch.rand(1, size, size, 6, generator=torch.Generator().manual_seed(1))

    def run(kernels: ModuleType) -> None:
        bary = kernels.barycentrics(pos, tri, tri_id)
        value = kernels.interpolate(attributes, tri, tri_id, bary)
        torch.autograd.grad(value, (attributes, pos), weight)

    return interleaved_ratio(
        f"interpolate 6 channels forward and backward, {mesh.n_faces} faces, {size} px",
        baseline=lambda: run(torch_raster),
        ours=lambda: run(numba_raster),
        bar=bar,
    )


def tetrahedra_ratio(resolution: int, bar: float, device: str) -> Ratio:
    """Grid-dense against row-unique marching tetrahedra, forward and backward, same mesh."""
    tets = GridTets(resolution).to(device)
    table = kuhn_grid(resolution).to(device)
    sdf = (tets.points.norm(dim=1) - 0.6).requires_grad_()
    offsets = torch.zeros_like(tets.points, requires_grad=True)

    def run(march: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        v_pos, _ = march(sdf, offsets)
        torch.autograd.grad(v_pos, (sdf, offsets), torch.ones_like(v_pos))

    usual = dmtet(tets.points, sdf, table)
    dense = tets(sdf, offsets)
    if any(a.shape != b.shape for a, b in zip(usual, dense, strict=True)):
        raise RuntimeError("The two marching tetrahedra differ in vertices or faces.")
    return interleaved_ratio(
        f"marching tetrahedra forward and backward, {resolution}^3 cubes",
        baseline=lambda: run(lambda s, o: dmtet(tets.points + o, s, table)),
        ours=lambda: run(tets),
        bar=bar,
    )


def weight_image(size: int, device: str) -> Tensor:
    """A smooth weight, so that moving the silhouette changes the weighted area."""
    s = (torch.arange(size) + 0.5) / size * 2 - 1
    waves = 1.3 * torch.sin(2.5 * s)[:, None] + torch.cos(3 * s + 0.4)[None]
    return (1 + waves + s[None] * s[:, None]).to(device)


def placed(mesh: Mesh, params: Tensor, size: int) -> Tensor:
    """Clip positions of the mesh scaled by ``params[3]`` and moved by ``params[:3]``."""
    return clip_positions(mesh.v_pos * params[3] + params[:3], size)


def finite_difference(mesh: Mesh, size: int, device: str) -> Tensor:
    """Derivative of the weighted area by the four parameters, from pictures without smoothing."""
    weight, start = weight_image(size, device), START.to(device)

    def area(params: Tensor) -> Tensor:
        raster = rasterize(placed(mesh, params, size), mesh.t_pos_idx, (size, size))
        return (raster.mask[0, ..., 0] * weight).double().mean()

    steps = STEP * torch.eye(4, device=device)
    change = torch.stack([area(start + step) - area(start - step) for step in steps])
    return (change / (2 * STEP)).float()


def gradient_errors(
    subdivisions: int, sizes: tuple[int, ...], reference: int, device: str
) -> list[GradientError]:
    """Both rules against finite differences, one entry for each image size."""
    mesh = blob(subdivisions, device)
    tri = mesh.t_pos_idx
    expected = finite_difference(mesh, reference, device)
    topology, opposite = Topology(tri), opposite_vertices(tri)
    errors = []
    for size in sizes:
        found = []
        for rule in ("edge", "front_triangle"):
            params = START.to(device, copy=True).requires_grad_()
            pos = placed(mesh, params, size)
            raster = rasterize(pos, tri, (size, size))
            if rule == "edge":
                mask = antialias(raster.mask, raster, pos, tri, topology)
            else:
                mask = antialias_front_triangle(raster.mask, raster, pos, tri, opposite)
            loss = (mask[0, ..., 0] * weight_image(size, device)).mean()
            gradient = torch.zeros(4, device=device)
            if loss.requires_grad:
                (gradient,) = torch.autograd.grad(loss, params)
            found.append(float((gradient - expected).norm() / expected.norm()))
        errors.append(GradientError(mesh.n_faces, size, *found))
        print(
            f"{mesh.n_faces:6d} faces {size:4d} px: relative gradient error "
            f"edge {found[0]:.4f}, front triangle {found[1]:.3f}",
            flush=True,
        )
    return errors


def measure(device: str) -> tuple[list[Ratio], list[GradientError]]:
    """Ratios and errors at full size."""
    bars = {256: 3.0, 512: 6.0} if device == "cpu" else {256: 1.0, 512: 1.0}
    ratios = [visibility_ratio(5, size, bar, device) for size, bar in bars.items()]
    if device == "cpu":
        ratios.append(interpolation_ratio(5, 256, 4.0))
    ratios.append(tetrahedra_ratio(64, 10.0, device))
    sizes, errors = (64, 256, 512), []
    for subdivisions in (3, 4, 5, 6):
        errors += gradient_errors(subdivisions, sizes, 3072, device)
    return ratios, errors


def measure_smoke(device: str) -> tuple[list[Ratio], list[GradientError]]:
    """The same code at sizes that take seconds; its ratios mean nothing."""
    ratios = [visibility_ratio(3, 64, 0.0, device), tetrahedra_ratio(12, 0.0, device)]
    if device == "cpu":
        ratios.append(interpolation_ratio(3, 64, 0.0))
    return ratios, gradient_errors(3, (64,), 1024, device)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write the results; 1 if a bar is missed."""
    options = arguments(argv, about=__doc__)
    ratios, errors = (measure_smoke if options.smoke else measure)(options.device)
    if options.out or not options.smoke:
        tables = {"silhouette_gradients": errors}
        write_results("mesh", ratios=ratios, tables=tables, device=options.device, path=options.out)
    worst = max(error.edge for error in errors)
    print(f"worst silhouette gradient error {worst:.4f}, bar {ERROR_BAR}")
    return int(worst > ERROR_BAR or any(not ratio.passed for ratio in ratios))


if __name__ == "__main__":
    raise SystemExit(main())

"""Iso-surfaces of density and distance fields.

Two passes: a coarse grid over the scene finds the threshold and the bounding box, a fine grid over
the box is marched by tetrahedra. A radiance field looks smooth because every pixel averages along
its ray, but its level sets are as rough as the noise of its hash grid; so the level function is
first bounded to -1..1 (densities differ by orders of magnitude within a cell) and blurred over
about one cell. Without the blur, linear interpolation would leave stair-steps: then every vertex is
moved along its grid edge to the field's true crossing, by bisection and one secant step. In both
cases the connectivity is that of the signs alone, and the surface is closed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from renderers.errors import EmptyGeometry
from renderers.grid_sampling import evaluate_in_chunks, sample_grid
from renderers.isosurface import GridTets
from renderers.threshold import LevelScore, choose_threshold, describe_range
from studio.errors import Diverged
from studio.export.configs import ExportConfig
from studio.export.triangles import Triangles

__all__ = ["DensityField", "DistanceField", "Surface", "extract_surface"]

BISECTIONS = 4
# Vertices keep this distance from grid points, in edge lengths: no coincident vertices, no slivers.
EDGE_MARGIN = 0.02
# Free cells around the object in the second pass.
BOX_MARGIN_CELLS = 1.5
# A thin object's box is not made thinner than this fraction of its longest side.
MIN_BOX_ASPECT = 0.5


@runtime_checkable
class DensityField(Protocol):
    """A radiance field in ``[-radius, radius]^3``."""

    radius: float

    def density(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Density per world unit."""
        ...

    def albedo(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Display-referred colour in 0..1."""
        ...


@runtime_checkable
class DistanceField(Protocol):
    """A signed distance field in ``[-radius, radius]^3``, negative inside."""

    radius: float

    def sdf(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Signed distance."""
        ...

    def albedo(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Display-referred colour in 0..1."""
        ...


@dataclass(frozen=True)
class Surface:
    """An extracted iso-surface, before clean-up."""

    mesh: Triangles
    """World coordinates, outward faces, closed."""
    cell: float
    """Longest side of a cell of the fine grid, world units."""
    level: LevelScore | None
    """The chosen density and how well it fits; None for distance fields and fixed thresholds."""
    threshold: float
    """The level used: a density, or 0 for a distance field."""


def extract_surface(
    field: DensityField | DistanceField, config: ExportConfig, *, device: torch.device | str = "cpu"
) -> Surface:
    """Extract the surface of a field.

    Raises:
        EmptyGeometry: there is none; the message names the range of the field and what to try.
        Diverged: the field holds NaN or infinity.
    """
    radius = float(field.radius)
    lower, upper = torch.full((3,), -radius), torch.full((3,), radius)
    evaluate = field.sdf if isinstance(field, DistanceField) else field.density
    coarse = sample_grid(evaluate, lower, upper, config.search_resolution, device=device)
    _require_finite(coarse)
    level = None
    if isinstance(field, DistanceField):
        threshold, inside = 0.0, coarse < 0.0
        _require_inside(inside, _no_distance_surface(coarse))
        outside = field.sdf
    else:
        if config.threshold == "auto":
            level = choose_threshold(coarse, radius=radius)
            threshold = level.threshold
        else:
            threshold = float(config.threshold)
            _require_inside(coarse > threshold, _no_density_surface(coarse, threshold))
        inside = coarse > threshold

        def outside(x: Tensor) -> Tensor:
            """Positive outside, clamped so that both ends of a steep edge weigh the same."""
            return ((threshold - field.density(x)) / threshold).clamp(-1.0, 1.0)

    lower, upper = _tight_box(inside, lower, upper)
    mesh = _march(outside, lower, upper, config, device=device)
    cell = float((upper - lower).max()) / config.resolution
    return Surface(mesh, cell, level, threshold)


def _require_finite(values: Float[Tensor, "r r r"]) -> None:
    """Stop at NaN or infinity: every comparison with NaN fails, so it would pass for empty."""
    wrong = int((~torch.isfinite(values)).sum())
    if wrong:
        raise Diverged(
            f"The field is NaN or infinite at {wrong} of {values.numel()} grid points - expected "
            "numbers everywhere. Train again with a lower learning rate or guidance scale."
        )


def _require_inside(inside: Bool[Tensor, "r r r"], message: str) -> None:
    """End with ``message`` when no grid point is inside, or all are."""
    if not inside.any() or inside.all():
        raise EmptyGeometry(message)


def _no_density_surface(density: Tensor, threshold: float) -> str:
    low, high = float(density.min()), float(density.max())
    return (
        f"No surface at threshold {threshold:.4g} ({describe_range(density)}). Expected a "
        "threshold inside that range. "
        f"Try threshold=auto, or a value between {low:.3g} and {high:.3g}: studio export RUN "
        "--threshold auto writes the asset of a run that is optimised."
    )


def _no_distance_surface(sdf: Tensor) -> str:
    side = "everything is outside" if float(sdf.min()) >= 0.0 else "everything is inside"
    return (
        f"No surface: {side} (signed distance min {float(sdf.min()):.3g}, mean "
        f"{float(sdf.mean()):.3g}, max {float(sdf.max()):.3g}). Expected a change of sign. "
        "Train longer, or start the field from a sphere inside the scene."
    )


def _tight_box(
    inside: Bool[Tensor, "r r r"], lower: Float[Tensor, "3"], upper: Float[Tensor, "3"]
) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
    """The object's box with some margin, not thinner than ``MIN_BOX_ASPECT``, inside the scene."""
    n = inside.shape[0] - 1
    cell = (upper - lower) / n
    hit = inside.nonzero()
    low = lower + (hit.amin(dim=0) - BOX_MARGIN_CELLS) * cell
    high = lower + (hit.amax(dim=0) + BOX_MARGIN_CELLS) * cell
    centre, half = 0.5 * (low + high), 0.5 * (high - low)
    half = half.clamp_min(MIN_BOX_ASPECT * float(half.max()))
    return (centre - half).maximum(lower), (centre + half).minimum(upper)


def _march(
    outside: Callable[[Tensor], Tensor],
    lower: Float[Tensor, "3"],
    upper: Float[Tensor, "3"],
    config: ExportConfig,
    *,
    device: torch.device | str,
) -> Triangles:
    """March the sign of the level function, then place every vertex on its edge."""
    n = config.resolution
    values = sample_grid(outside, lower, upper, n, device=device)
    _require_finite(values)
    if config.blur_cells > 0.0:
        from scipy.ndimage import gaussian_filter

        blurred = gaussian_filter(values.numpy(), config.blur_cells, mode="nearest")
        values = torch.from_numpy(blurred)
    for axis in range(3):  # whatever reaches the box's wall is cut and closed there
        values.select(axis, 0).fill_(1.0)
        values.select(axis, -1).fill_(1.0)
    if not (values < 0.0).any():
        raise EmptyGeometry(
            f"The surface is thinner than {config.blur_cells} cells of the {n}^3 grid and vanished "
            "in the blur. Raise export.resolution, or set export.blur_cells=0."
        )
    # On the bare sign every vertex is the midpoint of its edge, which tells the edge's two ends.
    sign = torch.where(values < 0.0, -1.0, 1.0)
    with torch.no_grad():
        vertices, faces = GridTets(n)(sign.reshape(-1))
    edge = _Edges.of(vertices, values, lower, upper)
    if config.blur_cells > 0.0:
        t = edge.f_start / (edge.f_start - edge.f_end)
    else:
        t = _true_crossings(outside, edge, device)
    t = t.clamp(EDGE_MARGIN, 1.0 - EDGE_MARGIN)
    return Triangles.of(
        torch.lerp(edge.start, edge.end, t[:, None]).double().numpy(), faces.numpy()
    )


@dataclass(frozen=True)
class _Edges:
    """The grid edge of every vertex, and the level function at its ends."""

    start: Float[Tensor, "v 3"]
    end: Float[Tensor, "v 3"]
    f_start: Float[Tensor, " v"]
    f_end: Float[Tensor, " v"]

    @classmethod
    def of(
        cls,
        midpoints: Float[Tensor, "v 3"],
        values: Float[Tensor, "r r r"],
        lower: Float[Tensor, "3"],
        upper: Float[Tensor, "3"],
    ) -> _Edges:
        """Edges from their midpoints in ``[-1, 1]^3``: twice a midpoint is the sum of two ends."""
        n = values.shape[0] - 1
        cell = (upper - lower) / n
        twice = ((midpoints + 1.0) * n).round().long()
        start, end = twice // 2, (twice + 1) // 2
        return cls(
            lower + start * cell,
            lower + end * cell,
            values[tuple(start.T)],
            values[tuple(end.T)],
        )


def _true_crossings(
    outside: Callable[[Tensor], Tensor], edge: _Edges, device: torch.device | str
) -> Float[Tensor, " v"]:
    """Where the level function itself changes sign, as a fraction of each edge."""
    f_low, f_high = edge.f_start, edge.f_end
    low, high = torch.zeros_like(f_low), torch.ones_like(f_low)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        points = torch.lerp(edge.start, edge.end, middle[:, None])
        f_middle = evaluate_in_chunks(outside, points, device=device)
        left = (f_middle < 0.0) == (f_low < 0.0)
        low, f_low = torch.where(left, middle, low), torch.where(left, f_middle, f_low)
        high, f_high = torch.where(left, high, middle), torch.where(left, f_high, f_middle)
    return low + (high - low) * f_low / (f_low - f_high).where(f_low != f_high, torch.ones(()))

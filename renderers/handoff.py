"""From a radiance or distance field to a deformable mesh: the start of a mesh stage.

Magic3D (arXiv 2211.10440, section 4.2) starts the mesh's signed distance from the density by
subtracting a constant and clamping. Values made so depend on how dense the field happens to be,
jump from one bound to the other within a cube, and carry the noise of the hash grid.

Deviation: what is taken over is the *set* where the density exceeds the threshold. Its indicator
(+1 outside, -1 inside), averaged over each cube and blurred by a Gaussian, is ``u = erf(d /
(sqrt(2) s))`` at distance d from a plane, where s^2 = smoothing^2 + 1/12 (the variances of the
Gaussian and of the cube). So ``d = sqrt(2) s erfinv(u)`` is the signed distance in cubes, whatever
the density's profile across the surface: right to a few hundredths of a cube beside planes, off
by about s^2 / R cubes where the surface has the radius R. Far from the surface it is bounded,
smoothly, by ``REACH`` cubes.

The search for the object is coarse to fine: a grid over the scene finds the threshold and the
object's box, which grows by a tenth and becomes the cube that the mesh's grid divides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from renderers.errors import EmptyGeometry
from renderers.fields.hash_field import HashField
from renderers.fields.hash_sdf import HashSDFField
from renderers.fields.tet_mesh import TetMeshField
from renderers.grid_sampling import evaluate_in_chunks, sample_grid
from renderers.mesh_configs import GridTetsConfig
from renderers.threshold import Rule, choose_threshold, describe_range, fallback_threshold

__all__ = ["Level", "distance_in_cells", "field_to_tets", "find_level"]

SEARCH_RESOLUTION = 64
# The object's box grows by this factor, as in threestudio's and ProlificDreamer's coarse-to-fine.
BOX_GROWTH = 1.1
# Largest signed distance, in cubes: enough for every value that the surface may reach soon.
REACH = 3.0
# Samples per cube and axis where the surface may pass: positions are right to a sixth of a cube.
SUBSAMPLES = 3
# With less opacity than this along the scene's whole side, even the densest part is nothing.
MIN_OPTICAL_DEPTH = 0.01

InsideTest = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Level:
    """The level set that becomes the mesh."""

    threshold: float
    """A density, or 0 for a distance field."""
    rule: Literal["given", "zero"] | Rule
    """Who chose it."""
    inside: Bool[Tensor, "r r r"]
    """The points of the search grid over the scene that are inside."""


def field_to_tets(
    field: HashField,
    config: GridTetsConfig,
    *,
    threshold: float | Literal["auto"] | None = None,
) -> TetMeshField:
    """The mesh field at a field's surface, with its colours, on the field's device.

    Args:
        field: a density field or a signed distance field.
        config: the grid.
        threshold: density of the surface; that of ``config`` when None.

    Raises:
        EmptyGeometry: there is no surface, or the field is NaN or infinite somewhere; names the
            field's range and what to do.
    """
    device = next(field.parameters()).device
    level = find_level(field, config.threshold if threshold is None else threshold)
    # Floaters must not stretch the grid that they are left out of.
    solid = _solid_parts(level.inside, config.min_component)
    centre, half_size = _bounding_cube(solid, field.radius)
    is_inside = _inside_test(field, level.threshold)
    lower, upper = centre - half_size, centre + half_size
    inside = sample_grid(is_inside, lower, upper, config.resolution, device=device) > 0.5
    inside = _solid_parts(inside, config.min_component)
    cell = 2.0 * half_size / config.resolution
    outsideness = _outsideness(is_inside, inside, lower, cell, device)
    sdf = distance_in_cells(outsideness, config.smoothing)
    if not (sdf < 0).any():
        raise EmptyGeometry(
            f"The surface at {level.threshold:.4g} is thinner than its smoothing of "
            f"{config.smoothing} cubes of {cell:.3g} and vanished. Expected a part at least twice "
            "as thick. Raise field.resolution, or lower field.smoothing."
        )
    tets = TetMeshField(config, field, sdf=sdf.reshape(-1), centre=centre, half_size=half_size)
    return tets.to(device)


def find_level(field: HashField, threshold: float | Literal["auto"]) -> Level:
    """Look for the surface in the whole scene.

    ``auto`` takes the level whose silhouettes agree best with the rendered field; in a scene
    without an opaque ray that with the densest half percent above it; else half the maximum.

    Raises:
        EmptyGeometry: nothing, or everything, is inside, or the field is NaN or infinite somewhere.
    """
    device = next(field.parameters()).device
    corner = torch.full((3,), float(field.radius))
    if isinstance(field, HashSDFField):
        sdf = sample_grid(field.sdf, -corner, corner, SEARCH_RESOLUTION, device=device)
        _require_finite(sdf, "signed distance")
        _require_both_sides(sdf < 0, _no_distance_surface(sdf))
        return Level(0.0, "zero", sdf < 0)
    density = sample_grid(field.density, -corner, corner, SEARCH_RESOLUTION, device=device)
    _require_finite(density, "density")
    if threshold != "auto":
        inside = density > threshold
        _require_both_sides(inside, _no_density_surface(density, float(threshold)))
        return Level(float(threshold), "given", inside)
    if float(density.max()) * 2.0 * field.radius < MIN_OPTICAL_DEPTH:
        raise EmptyGeometry(_no_density_surface(density, MIN_OPTICAL_DEPTH / (2.0 * field.radius)))
    found = _by_silhouettes(density, float(field.radius)) or fallback_threshold(density)
    if found is None:
        raise EmptyGeometry(_no_density_surface(density, 0.5 * float(density.max())))
    rule, level = found
    return Level(level, rule, density > level)


def distance_in_cells(
    outsideness: Float[Tensor, "r r r"], smoothing: float
) -> Float[Tensor, "r r r"]:
    """Signed distance in cells from an indicator averaged over cells, +1 outside and -1 inside.

    Args:
        outsideness: mean of the indicator over the cell around each grid point.
        smoothing: standard deviation of the Gaussian that takes out noise, in cells.
    """
    from scipy.ndimage import gaussian_filter

    blurred = torch.from_numpy(
        gaussian_filter(outsideness.double().numpy(), smoothing, mode="nearest")
    )
    width = math.sqrt(2.0 * (smoothing**2 + 1.0 / 12.0))
    most = math.erf(REACH / width)
    distance = width * torch.erfinv(blurred.clamp(-most, most))
    return (REACH * torch.tanh(distance / REACH)).float()


def _by_silhouettes(density: Tensor, radius: float) -> tuple[Rule, float] | None:
    """The exporter's choice; None when no ray is opaque."""
    try:
        score = choose_threshold(density, radius=radius)
    except EmptyGeometry:
        return None
    return score.rule, score.threshold


def _inside_test(field: HashField, threshold: float) -> InsideTest:
    """1 inside and 0 outside at world points."""

    def is_inside_distance(x: Tensor) -> Tensor:
        sdf = field.sdf(x)
        _require_finite(sdf, "signed distance")
        return (sdf < 0).float()

    def is_inside_density(x: Tensor) -> Tensor:
        density = field.density(x)
        _require_finite(density, "density")
        return (density > threshold).float()

    return is_inside_distance if isinstance(field, HashSDFField) else is_inside_density


def _require_finite(values: Tensor, name: str) -> None:
    """Stop at NaN or infinity: every comparison with NaN fails, so it would pass for empty."""
    wrong = int((~torch.isfinite(values)).sum())
    if wrong:
        raise EmptyGeometry(
            f"No mesh can be made of this field: its {name} is NaN or infinite at {wrong} of "
            f"{values.numel()} points. Expected numbers everywhere. Start again from an earlier "
            "checkpoint, with a lower learning rate or guidance scale."
        )


def _bounding_cube(
    inside: Bool[Tensor, "r r r"], radius: float
) -> tuple[Float[Tensor, "3"], float]:
    """Centre and half side of a cube around the object, with room, inside the scene's box."""
    n = inside.shape[0] - 1
    hit = inside.nonzero()
    # The surface lies up to one search cell beyond the outermost points inside.
    low = (hit.amin(dim=0) - 1).clamp(min=0) * (2.0 * radius / n) - radius
    high = (hit.amax(dim=0) + 1).clamp(max=n) * (2.0 * radius / n) - radius
    half = min(BOX_GROWTH * 0.5 * float((high - low).max()), radius)
    centre = (0.5 * (low + high)).clamp(half - radius, radius - half)
    return centre, half


def _solid_parts(inside: Bool[Tensor, "r r r"], min_component: float) -> Bool[Tensor, "r r r"]:
    """Without floaters, and with cavities filled: nobody sees them, and they cost faces."""
    from scipy import ndimage

    mask = inside.numpy()
    parts, count = ndimage.label(mask)
    if count > 1:
        sizes = ndimage.sum_labels(mask, parts, range(1, count + 1))
        large = (sizes >= min_component * sizes.max()).nonzero()[0] + 1
        mask = torch.isin(torch.from_numpy(parts), torch.from_numpy(large)).numpy()
    return torch.from_numpy(ndimage.binary_fill_holes(mask))


def _outsideness(
    is_inside: InsideTest,
    inside: Bool[Tensor, "r r r"],
    lower: Tensor,
    cell: float,
    device: torch.device,
) -> Float[Tensor, "r r r"]:
    """Mean of the indicator over the cell around each grid point, sampled where it may vary."""
    values = torch.where(inside, -1.0, 1.0)
    grown = F.max_pool3d(values[None, None], 3, 1, 1)[0, 0]
    shrunk = -F.max_pool3d(-values[None, None], 3, 1, 1)[0, 0]
    near = (grown != shrunk).nonzero()
    steps = (torch.arange(SUBSAMPLES) + 0.5) / SUBSAMPLES - 0.5
    offsets = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), -1).view(-1, 3)
    points = lower + (near[:, None] + offsets) * cell  # [n, s, 3]
    covered = evaluate_in_chunks(is_inside, points.reshape(-1, 3), device=device)
    values[tuple(near.T)] = 1.0 - 2.0 * covered.view(len(near), -1).mean(1)
    return values


def _both_sides(inside: Tensor) -> bool:
    return bool(inside.any()) and not bool(inside.all())


def _require_both_sides(inside: Tensor, message: str) -> None:
    if not _both_sides(inside):
        raise EmptyGeometry(message)


def _no_density_surface(density: Tensor, threshold: float) -> str:
    return (
        f"No surface to make a mesh of: at threshold {threshold:.4g} all of the scene is on one "
        f"side ({describe_range(density)}). Expected a density that crosses the threshold. Train "
        "the stage before for more steps, lower its losses.sparsity, or set field.threshold to a "
        "value inside that range."
    )


def _no_distance_surface(sdf: Tensor) -> str:
    side = "outside" if float(sdf.min()) >= 0.0 else "inside"
    return (
        f"No surface to make a mesh of: everything is {side} (signed distance min "
        f"{float(sdf.min()):.3g}, mean {float(sdf.mean()):.3g}, max {float(sdf.max()):.3g}). "
        "Expected a change of sign. Train the stage before for more steps, or start it from a "
        "sphere inside the scene."
    )

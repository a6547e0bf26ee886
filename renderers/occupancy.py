"""Occupancy grid: which cells of the scene's box hold anything worth sampling.

The estimator of Instant-NGP (arXiv 2201.05989, appendix E.2): a decayed running maximum of the
density in each cell, thresholded. The grid starts fully occupied, so nothing is lost before the
first update.

    grid = OccupancyGrid(64, 1.0, step_size=0.03)
    grid.update(field.density, step=0, generator=generator)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

__all__ = ["OccupancyGrid"]

DensityFunction = Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n"]]

STEPS_ACROSS = 512
"""Default step that weighs densities: the box's diagonal in this many steps."""
CHUNK = 1 << 18
"""Positions per call of the density function; bounds its memory."""


class OccupancyGrid(nn.Module):
    """Occupied cells of ``[-radius, radius]^3``; all state is in buffers, so it checkpoints.

    Args:
        resolution: cells along one axis.
        radius: half edge of the box, world units.
        step_size: length that turns a density into an opacity-like value; None is a 512th of the
            box's diagonal.
        ema_decay: factor on the remembered value at each update.
        threshold: a cell is occupied where its value exceeds ``min(threshold, mean value)``.
        warmup_steps: before this step an update visits every cell; later a quarter of all cells
            at random, and as many of the occupied ones (all of them, if they are fewer).
    """

    binary: Bool[Tensor, "r r r"]
    values: Float[Tensor, "r r r"]

    def __init__(
        self,
        resolution: int,
        radius: float,
        *,
        step_size: float | None = None,
        ema_decay: float = 0.95,
        threshold: float = 0.01,
        warmup_steps: int = 256,
    ) -> None:
        super().__init__()
        if resolution < 1 or not radius > 0.0:
            raise ValueError(
                f"occupancy grid: resolution {resolution} must be at least 1 "
                f"and radius {radius} positive."
            )
        self.resolution = resolution
        self.radius = float(radius)
        self.step_size = step_size or 2.0 * 3**0.5 * radius / STEPS_ACROSS
        self.ema_decay = ema_decay
        self.threshold = threshold
        self.warmup_steps = warmup_steps
        shape = (resolution, resolution, resolution)
        self.register_buffer("values", torch.zeros(shape))
        self.register_buffer("binary", torch.ones(shape, dtype=torch.bool))

    @property
    def occupied_fraction(self) -> float:
        """Occupied cells over all cells, 0..1."""
        return float(self.binary.float().mean())

    def cells_within(self, boxes: Float[Tensor, "n 2 3"]) -> Bool[Tensor, "r r r"]:
        """Cells that some box touches; boxes are low and high corners in world units."""
        found = torch.zeros_like(self.binary)
        edge = 2.0 * self.radius / self.resolution
        cells = torch.arange(self.resolution, device=self.binary.device)
        for box in torch.unique_consecutive(boxes, dim=0):
            first, last = ((box.to(cells.device) + self.radius) / edge).floor()
            x, y, z = ((cells >= first[k]) & (cells <= last[k]) for k in range(3))
            found |= x[:, None, None] & y[None, :, None] & z[None, None, :]
        return found

    @torch.no_grad()
    def update(
        self,
        density_fn: DensityFunction,
        *,
        step: int,
        generator: torch.Generator | None = None,
    ) -> None:
        """Look at the field again and renew ``binary``.

        Args:
            density_fn: world positions to densities.
            step: training step, which ends the warm-up.
            generator: chooses cells and positions in them; None looks at every cell's centre.
        """
        cells = self._cells_to_visit(step, generator)
        flat = self.values.reshape(-1)
        seen = torch.cat(
            [
                density_fn(self._positions(part, generator)).to(flat.dtype) * self.step_size
                for part in cells.split(CHUNK)
            ]
        )
        # A NaN or an infinity would outlast all decay; what is seen now takes its place.
        remembered = _finite_or_zero(flat[cells]) * self.ema_decay
        # Cells may be drawn twice: decaying writes the same value, and amax has no order.
        decayed = flat.index_put((cells,), remembered)
        renewed = decayed.scatter_reduce(0, cells, seen.clamp(min=0.0), "amax")
        self.values.copy_(renewed.view_as(self.values))
        mean = float(_finite_or_zero(self.values).mean())
        # A cell of NaN is not below the bound: it stays in the picture, where it is noticed.
        self.binary.copy_(~(self.values <= min(self.threshold, mean)))

    def _cells_to_visit(self, step: int, generator: torch.Generator | None) -> Int[Tensor, "n"]:
        n_cells = self.resolution**3
        device = self.values.device
        if generator is None or step < self.warmup_steps:
            return torch.arange(n_cells, device=device)
        n_drawn = max(n_cells // 4, 1)
        uniform = _draw(n_cells, n_drawn, generator, device)
        occupied = self.binary.reshape(-1).nonzero().squeeze(1)
        if occupied.shape[0] > n_drawn:
            occupied = occupied[_draw(occupied.shape[0], n_drawn, generator, device)]
        return torch.cat([uniform, occupied])

    def _positions(
        self, cells: Int[Tensor, "n"], generator: torch.Generator | None
    ) -> Float[Tensor, "n 3"]:
        r = self.resolution
        corner = torch.stack([cells // (r * r), (cells // r) % r, cells % r], dim=1)
        inside = torch.full((cells.shape[0], 3), 0.5, device=cells.device)
        if generator is not None:
            inside = torch.rand(cells.shape[0], 3, generator=generator, device=generator.device)
        cell_size = 2.0 * self.radius / r
        return (corner + inside.to(cells.device)) * cell_size - self.radius


def _finite_or_zero(values: Tensor) -> Tensor:
    return torch.where(values.isfinite(), values, 0.0)


def _draw(
    limit: int, count: int, generator: torch.Generator, device: torch.device
) -> Int[Tensor, "n"]:
    drawn = torch.randint(limit, (count,), generator=generator, device=generator.device)
    return drawn.to(device)

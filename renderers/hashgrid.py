"""The trainable multiresolution hash grid (Instant-NGP, arXiv 2201.05989) on any backend.

``with_jacobian`` returns the features and their spatial derivatives from one kernel. Both are
linear in the table, so a field can compute analytic normals with an explicit backward pass through
its MLP and still train by ordinary (single) backward: ``grad_x f(y(x)) = jac @ grad_y f``.

    grid = HashGrid(HashGridConfig(), generator=generator)
    features = grid(x)                       # [n, L*F]
    features, jac = grid.with_jacobian(x)    # [n, L*F], [n, 3, L*F]
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from renderers.backends import resolve
from renderers.backends.torch_hashgrid import GridLayout
from renderers.configs import HashGridConfig
from renderers.errors import check_shape

if TYPE_CHECKING:
    from renderers.backends.tinycudann import TinyCudaHashGrid

__all__ = ["HashGrid", "build_hash_grid"]

INITIAL_RANGE = 1e-4
"""Half width of the uniform initial distribution of the table (paper, section 4)."""


class HashGrid(nn.Module):
    """Maps positions in the unit cube to ``L * F`` features.

    Args:
        config: sizes, and the backend that calls use unless they name another.
        generator: source of the initial table; None uses the global generator.
    """

    def __init__(self, config: HashGridConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.layout = GridLayout.from_config(config)
        self.backend: str = config.backend
        table = torch.empty(self.layout.n_entries, self.layout.n_features)
        self.table = nn.Parameter(
            table.uniform_(-INITIAL_RANGE, INITIAL_RANGE, generator=generator)
        )

    @property
    def n_outputs(self) -> int:
        """Features per position, L * F."""
        return self.layout.n_outputs

    def forward(
        self, x: Float[Tensor, "n 3"], *, backend: str | None = None
    ) -> Float[Tensor, "n lf"]:
        """Features at ``x``; positions outside 0..1 are moved to the border.

        Differentiable in the table and in ``x``.

        Raises:
            ShapeError: ``x`` is not [n, 3].
            BackendMissing: ``backend`` is unknown or cannot serve this device.
        """
        check_shape("x", x, "n 3")
        kernels = _kernels(x, self.table, backend or self.backend)
        return kernels.encode(x.clamp(0.0, 1.0), self.table, self.layout)

    def with_jacobian(
        self, x: Float[Tensor, "n 3"], *, backend: str | None = None
    ) -> tuple[Float[Tensor, "n lf"], Float[Tensor, "n 3 lf"]]:
        """Features and ``d features / d x`` (per unit of ``x``), both differentiable in the table.

        Outside 0..1 the derivative is that of the nearest border point.

        Raises:
            ShapeError: ``x`` is not [n, 3].
            BackendMissing: ``backend`` is unknown or cannot serve this device.
        """
        check_shape("x", x, "n 3")
        kernels = _kernels(x, self.table, backend or self.backend)
        return kernels.encode_with_jacobian(x.clamp(0.0, 1.0), self.table, self.layout)

    def level_mask(self, progress: float, *, start_level: int = 1) -> Float[Tensor, "lf"]:
        """Factors on the features for coarse-to-fine training.

        The first ``start_level`` levels are always on; the others fade in one after the other,
        linearly, while ``progress`` goes from 0 to 1.
        """
        return self.layout.level_mask(progress, start_level).to(self.table)


def build_hash_grid(
    config: HashGridConfig, *, generator: torch.Generator | None = None
) -> HashGrid | TinyCudaHashGrid:
    """The hash grid that ``config.backend`` asks for.

    Raises:
        BackendMissing: ``config.backend`` is ``"tinycudann"``, which cannot be used here.
    """
    if config.backend == "tinycudann":
        from renderers.backends.tinycudann import TinyCudaHashGrid

        return TinyCudaHashGrid(config, generator=generator)
    return HashGrid(config, generator=generator)


def _kernels(x: Tensor, table: Tensor, backend: str) -> ModuleType:
    if x.dtype != table.dtype:
        raise TypeError(f"x is {x.dtype} and the table {table.dtype}; cast x to the table's dtype.")
    name = resolve(x.device, dtype=x.dtype, prefer=backend)
    return import_module(f"renderers.backends.{name}_hashgrid")

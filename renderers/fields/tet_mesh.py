"""A triangle mesh as a field: signed distances and offsets on a grid, and a colour field.

Deep Marching Tetrahedra (Shen et al., arXiv 2111.04276, sections 3.1 and 3.2) as Magic3D's second
stage uses it (arXiv 2211.10440, section 4.2), with the colour field of the stage before.

Units are those of the grid: distances are in cubes, negative inside, and offsets in the reach of
one point. A learning rate of 0.01 moves the surface by about 0.01 cubes a step, whatever the
size of the object. Deviation: the grid is a cube around the object and not the scene's box. It is a
cube, not a tight box, so that tetrahedra keep their shape, offsets and regularisers mean the same
on every axis, and a part that the first stage left too thin has room to grow.
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from renderers.errors import EmptyGeometry, check_shape
from renderers.fields.hash_field import HashField
from renderers.isosurface import GridTets
from renderers.mesh import Mesh
from renderers.mesh_configs import GridTetsConfig

__all__ = ["TetMeshField"]

# Signed distance, in cubes, that keeps the grid's border outside, so that the surface is closed.
BORDER_DISTANCE = 0.1


class TetMeshField(nn.Module):
    """A closed mesh with learned geometry and the colours of a field.

    Args:
        config: the grid.
        colour: field whose albedo colours the mesh. It is copied, weights and all, so that the
            mesh and the field it came from train apart.
        sdf: signed distance in cubes at the grid points, x slowest; by default a ball of half the
            grid's size.
        centre: middle of the grid, world units; by default the scene's.
        half_size: half its side, world units; by default the scene's radius.

    Raises:
        ShapeError: if ``sdf`` or ``centre`` has the wrong shape.
    """

    centre: Float[Tensor, "3"]
    """Middle of the grid, world units."""
    half_size: Float[Tensor, ""]
    """Half its side, world units."""

    def __init__(
        self,
        config: GridTetsConfig,
        colour: HashField,
        *,
        sdf: Float[Tensor, " N"] | None = None,
        centre: Float[Tensor, "3"] | None = None,
        half_size: float | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.radius = colour.radius
        self.tets = GridTets(config.resolution)
        points = self.tets.points
        if sdf is None:
            sdf = (points.norm(dim=1) - 0.5) / self.tets.cell_size
        check_shape("sdf", sdf, str(len(points)))
        centre = torch.zeros(3) if centre is None else centre
        check_shape("centre", centre, "3")
        half_size = self.radius if half_size is None else half_size
        self.sdf = nn.Parameter(sdf.detach().clone())
        self.offsets = nn.Parameter(torch.zeros_like(points))
        self.colour = copy.deepcopy(colour)
        # Buffers, so that a checkpoint holds where the mesh is.
        self.register_buffer("centre", centre.detach().clone())
        self.register_buffer("half_size", torch.tensor(float(half_size)))
        border = (points.abs() > 1.0 - 0.5 * self.tets.cell_size).any(1)
        floor = torch.where(border, BORDER_DISTANCE, -torch.inf)
        self.register_buffer("_floor", floor, persistent=False)
        self._frozen: tuple[tuple[object, ...], Mesh] | None = None

    @property
    def cell_size(self) -> float:
        """Side of one cube, world units."""
        return 2.0 * float(self.half_size) / self.config.resolution

    def set_fraction(self, fraction: float) -> None:
        """Nothing: the colour field keeps the levels it had opened, or its colours would change."""

    def freeze_geometry(self) -> None:
        """Train the colours only; the mesh is made once from here on."""
        self.sdf.requires_grad_(False)
        self.offsets.requires_grad_(False)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters: ``geometry``, and the colour field's ``grid`` and ``network``."""
        geometry = [p for p in (self.sdf, self.offsets) if p.requires_grad]
        # Heads that only made density or normals take no part any more.
        head = self.colour.albedo_head
        head = self.colour.potential_head if head is None else head
        return {
            "grid": list(self.colour.grid.parameters()),
            "network": list(head.parameters()),
            "geometry": geometry,
        }

    def mesh(self) -> Mesh:
        """The surface in world units, faces outwards, closed; differentiable.

        Raises:
            EmptyGeometry: every grid point is outside, or a value is not a number.
        """
        if self.sdf.requires_grad:
            return self._marched()
        # Loading a checkpoint or moving to a device makes it anew.
        state = (self.sdf.device, self.sdf._version, self.offsets._version)
        if self._frozen is None or self._frozen[0] != state:
            with torch.no_grad():
                self._frozen = (state, self._marched())
        return self._frozen[1]

    def albedo(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Base colour at world points, 0..1, exactly that of the inherited field."""
        return self.colour.albedo(x)

    def _marched(self) -> Mesh:
        for name, values in (("signed distances", self.sdf), ("offsets", self.offsets)):
            if not torch.isfinite(values.detach().sum()):
                bad = int((~values.detach().isfinite()).sum())
                raise EmptyGeometry(
                    f"The mesh is lost: {bad} of its {values.numel()} {name} are not finite, "
                    "expected numbers. Lower the geometry's learning rate or the guidance scale, "
                    "or start from an earlier checkpoint."
                )
        sdf = torch.maximum(self.sdf, self._floor)
        if not (sdf.detach() < 0).any():
            low, high = (float(value) for value in torch.aminmax(self.sdf.detach()))
            raise EmptyGeometry(
                f"The mesh has vanished: the signed distance at its {len(sdf)} grid points is "
                f"{low:.3g}..{high:.3g} cubes, expected some below 0. Lower the "
                "geometry's learning rate or the guidance scale, or start from an earlier "
                "checkpoint."
            )
        v_pos, faces = self.tets(sdf, self.offsets, reach=self.config.offset_reach)
        return Mesh(self.centre + self.half_size * v_pos, faces)

"""A given triangle mesh as a field: its shape is fixed, a colour field on a hash grid paints it.

The grid spans a cube around the mesh, so that its cells are as fine on a small mesh as on a large
one. A fresh field is grey, 0.5 everywhere. The shape is in buffers whose sizes follow what is
loaded into them, so a checkpoint is all that is needed to go on; until then a tetrahedron stands
in.

    field = PaintedMeshField(MeshFileConfig(), generator)
    field.set_mesh(mesh)
    rgb = field.albedo(mesh.v_pos)
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from renderers.errors import EmptyGeometry
from renderers.fields.mlp import ReluMLP, in_row_chunks
from renderers.hashgrid import build_hash_grid
from renderers.mesh import Mesh
from renderers.mesh_configs import MeshFileConfig

__all__ = ["PaintedMeshField"]

# The cube around the mesh is larger by this, so that no vertex lies on the grid's border.
MARGIN = 1.01
SHAPE = ("v_pos", "t_pos_idx")
TETRAHEDRON = ((0.5, 0.5, 0.5), (-0.5, -0.5, 0.5), (-0.5, 0.5, -0.5), (0.5, -0.5, -0.5))
FACES = ((0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3))


class PaintedMeshField(nn.Module):
    """A fixed mesh with learned colours.

    Args:
        config: the colour field.
        generator: source of its initial values.
    """

    v_pos: Float[Tensor, "V 3"]
    """Vertex positions, world units."""
    t_pos_idx: Int[Tensor, "F 3"]
    """Vertex indices of each face."""

    def __init__(self, config: MeshFileConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.grid = build_hash_grid(config.grid, generator=generator)
        hidden = (config.hidden_width,) * config.hidden_layers
        self.head = ReluMLP((self.grid.n_outputs, *hidden, 3), generator=generator)
        self.register_buffer("v_pos", torch.tensor(TETRAHEDRON))
        self.register_buffer("t_pos_idx", torch.tensor(FACES))
        self.register_buffer("centre", torch.zeros(3))
        self.register_buffer("half_size", torch.tensor(1.0))

    @torch.no_grad()
    def set_mesh(self, mesh: Mesh) -> None:
        """Take a mesh's shape.

        Raises:
            EmptyGeometry: it has no faces.
        """
        if not mesh.n_faces:
            raise EmptyGeometry("The mesh has no faces - expected a surface to paint.")
        device = self.centre.device
        self.v_pos = mesh.v_pos.detach().to(device, torch.float32)
        self.t_pos_idx = mesh.t_pos_idx.detach().to(device)
        used = self.v_pos[self.t_pos_idx.unique()]
        low, high = used.amin(0), used.amax(0)
        self.centre.copy_((low + high) / 2.0)
        self.half_size.copy_(MARGIN * 0.5 * (high - low).max().clamp(min=1e-6))

    def mesh(self) -> Mesh:
        """The mesh, without colours."""
        return Mesh(self.v_pos, self.t_pos_idx)

    def albedo(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Base colour at world points, 0..1."""
        unit = ((x - self.centre) / self.half_size + 1.0) * 0.5
        (raw,) = in_row_chunks(lambda y: (self.head(y),), self.grid(unit))
        return torch.sigmoid(raw)

    def set_fraction(self, fraction: float) -> None:
        """Nothing: all levels of the grid are open from the start."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters by the learning rate they get."""
        return {"grid": list(self.grid.parameters()), "network": list(self.head.parameters())}

    def _load_from_state_dict(self, state_dict, prefix, *others) -> None:
        """Make room for the mesh that is loaded, which has other sizes than the one here."""
        for name in SHAPE:
            loaded = state_dict.get(prefix + name)
            if loaded is not None and loaded.ndim == 2 and loaded.shape[1] == 3:
                setattr(self, name, getattr(self, name).new_empty(loaded.shape))
        super()._load_from_state_dict(state_dict, prefix, *others)

"""A fixed mesh with learned colours: grey at first, shape untouched, checkpoints of any size."""

from __future__ import annotations

import pytest
import torch

from renderers.backgrounds import build_background
from renderers.cameras import orbit_cameras
from renderers.configs import AlbedoMaterialConfig, HashGridConfig, SolidBackgroundConfig
from renderers.errors import EmptyGeometry
from renderers.fields.painted_mesh import PaintedMeshField
from renderers.mesh import Mesh
from renderers.mesh_configs import MeshFileConfig, MeshRendererConfig
from renderers.tet_mesh_renderer import TetMeshRenderer

CONFIG = MeshFileConfig(
    grid=HashGridConfig(n_levels=3, log2_hashmap_size=8, base_resolution=4, finest_resolution=16),
    hidden_width=8,
)


def box(size: float = 1.0, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Mesh:
    """A cube with outward faces."""
    corners = torch.tensor([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]).float()
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [tri for a, b, c, d in quads for tri in ((a, b, c), (a, c, d))]
    return Mesh((corners - 0.5) * size + torch.tensor(centre), torch.tensor(faces))


def field(mesh: Mesh | None = None, seed: int = 0) -> PaintedMeshField:
    """A field that paints ``mesh``."""
    made = PaintedMeshField(CONFIG, torch.Generator().manual_seed(seed))
    if mesh is not None:
        made.set_mesh(mesh)
    return made


def renderer(painted: PaintedMeshField) -> TetMeshRenderer:
    """The renderer of a stage, before white."""
    white = build_background(SolidBackgroundConfig(), torch.Generator())
    return TetMeshRenderer(MeshRendererConfig(), painted, white, AlbedoMaterialConfig())


def cameras(size: int = 24):
    return orbit_cameras(3, elevation_deg=20, distance=3.0, fovy_deg=40, height=size, width=size)


def test_a_fresh_mesh_is_grey():
    painted = field(box())
    assert float((painted.albedo(box().v_pos).detach() - 0.5).abs().max()) < 1e-3


def test_a_stand_in_is_closed_and_faces_outwards():
    assert float(field().mesh().signed_volume()) > 0.0


def test_grid_spans_the_mesh_wherever_and_however_large_it_is():
    """The same place on a copy that is moved and scaled has the same colour."""
    generator = torch.Generator().manual_seed(1)
    near, far = field(box()), field(box(size=5.0, centre=(7.0, -2.0, 1.0)))
    with torch.no_grad():
        for painted in (near, far):
            painted.grid.table.copy_(
                torch.randn(painted.grid.table.shape, generator=generator.manual_seed(1))
            )
    x = torch.rand(20, 3, generator=generator) - 0.5
    moved = x * 5.0 + torch.tensor([7.0, -2.0, 1.0])
    torch.testing.assert_close(near.albedo(x), far.albedo(moved), rtol=1e-4, atol=1e-4)


def test_painting_changes_colours_and_nothing_of_the_silhouette():
    painted = field(box())
    scene = renderer(painted)
    before = scene.render(cameras())
    optimizer = torch.optim.Adam(
        [p for group in painted.parameter_groups().values() for p in group], lr=0.05
    )
    for _ in range(40):
        optimizer.zero_grad()
        output = scene.render(cameras())
        seen = output.opacity > 0.99
        red = torch.tensor([1.0, 0.0, 0.0])
        ((output.comp_rgb - red).square() * seen).mean().backward()
        optimizer.step()
    after = scene.render(cameras())
    assert torch.equal(after.opacity, before.opacity)
    assert torch.equal(after.depth, before.depth)
    inside = (after.opacity > 0.99)[..., 0]
    assert float(after.comp_rgb[inside].mean(0)[0]) > 0.9
    assert float(after.comp_rgb[inside].mean(0)[1:].max()) < 0.1


def test_all_parameters_are_of_colours():
    painted = field(box())
    grouped = {id(p) for group in painted.parameter_groups().values() for p in group}
    assert grouped == {id(p) for p in painted.parameters()}
    assert not {"v_pos", "t_pos_idx"} & {name for name, _ in painted.named_parameters()}


def test_a_checkpoint_brings_its_mesh_along():
    painted, scene = field(box(size=2.0), seed=3), renderer(field())
    scene.load_state_dict(renderer(painted).state_dict(), strict=True)
    assert torch.equal(scene.field.mesh().v_pos, painted.mesh().v_pos)
    assert torch.equal(scene.field.mesh().t_pos_idx, painted.mesh().t_pos_idx)
    expected = renderer(painted).render(cameras())
    assert torch.equal(scene.render(cameras()).comp_rgb, expected.comp_rgb)


def test_a_mesh_without_faces_is_refused():
    with pytest.raises(EmptyGeometry, match="no faces"):
        field(Mesh(torch.zeros(3, 3), torch.zeros(0, 3, dtype=torch.long)))

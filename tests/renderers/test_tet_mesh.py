"""The mesh field and its renderer: closed forms, gradients against finite differences, state."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
import trimesh
from torch import Tensor

from renderers.backgrounds import SolidBackground
from renderers.configs import AlbedoMaterialConfig, DiffuseMaterialConfig, SolidBackgroundConfig
from renderers.errors import EmptyGeometry, ShapeError
from renderers.fields.tet_mesh import TetMeshField
from renderers.materials import Shading
from renderers.mesh_configs import GridTetsConfig, MeshRendererConfig
from renderers.mesh_regularizers import laplacian_loss, normal_consistency_loss
from renderers.tet_mesh_renderer import TetMeshRenderer
from renderers.volume_renderer import VolumeRenderer
from tests.renderers.shapes import views
from tests.renderers.solid_fields import Ball

COLOUR = Ball()


def tet_field(resolution: int = 16, sdf: Tensor | None = None, **options) -> TetMeshField:
    return TetMeshField(GridTetsConfig(resolution=resolution), COLOUR, sdf=sdf, **options)


def noisy(resolution: int = 12) -> TetMeshField:
    """A bumpy ball with displaced points, for gradients."""
    field = tet_field(resolution)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        field.sdf.add_(0.15 * torch.randn(field.sdf.shape, generator=draw))
        field.offsets.copy_(0.5 * torch.randn(field.offsets.shape, generator=draw))
    return field


def renderer(field: TetMeshField, material=None, **options) -> TetMeshRenderer:
    background = SolidBackground(SolidBackgroundConfig(color=(0.2, 0.4, 0.6)))
    material = material or AlbedoMaterialConfig()
    return TetMeshRenderer(MeshRendererConfig(**options), field, background, material)


# --- the field ------------------------------------------------------------------------------------


def test_a_fresh_field_is_a_ball_of_half_the_grid():
    mesh = tet_field(32, half_size=0.6).mesh()
    assert mesh.signed_volume().item() == pytest.approx(4 / 3 * math.pi * 0.3**3, rel=0.03)


def test_the_grid_lies_where_it_is_told():
    centre = torch.tensor([0.3, -0.2, 0.1])
    v_pos = tet_field(16, centre=centre, half_size=0.4).mesh().v_pos.detach()
    torch.testing.assert_close(v_pos.mean(0), centre, atol=0.01, rtol=0)
    assert (v_pos - centre).norm(dim=1).max().item() == pytest.approx(0.2, abs=0.01)


def test_distances_are_in_cubes():
    """Adding one moves the surface of a ball by one cube, at any size of the grid."""
    for half_size in (1.0, 0.3):
        field = tet_field(24, half_size=half_size)
        before = field.mesh().v_pos.detach().norm(dim=1).mean()
        with torch.no_grad():
            field.sdf.sub_(1.0)
        after = field.mesh().v_pos.detach().norm(dim=1).mean()
        assert (after - before).item() / field.cell_size == pytest.approx(1.0, abs=0.02)


def test_offsets_move_points_by_no_more_than_their_reach():
    field = tet_field(16)
    still = field.mesh().v_pos.detach()
    with torch.no_grad():
        field.offsets.fill_(100.0)
    moved = field.mesh().v_pos.detach() - still
    assert moved.abs().max().item() == pytest.approx(0.5 * field.cell_size, rel=1e-4)
    with torch.no_grad():
        field.offsets.normal_(std=10.0, generator=torch.Generator().manual_seed(0))
    limit = field.half_size + 0.5 * field.cell_size
    assert field.mesh().v_pos.abs().max() <= limit


def test_a_surface_that_reaches_the_border_is_closed_there():
    field = tet_field(8, sdf=torch.full((729,), -2.0))
    mesh = field.mesh()
    solid = trimesh.Trimesh(mesh.v_pos.detach().numpy(), mesh.t_pos_idx.numpy(), process=False)
    assert solid.is_watertight
    assert solid.volume == pytest.approx(8.0, rel=0.1)


def test_progress_does_not_change_the_colours():
    field = tet_field()
    x = torch.rand(50, 3) - 0.5
    before = field.albedo(x)
    field.set_fraction(0.0)
    assert torch.equal(field.albedo(x), before)
    assert torch.equal(before, COLOUR.albedo(x))


def test_parameters_come_in_groups_without_the_heads_that_made_density():
    field = tet_field()
    groups = field.parameter_groups()
    assert [len(groups[name]) for name in ("grid", "network", "geometry")] == [1, 2, 2]
    used = {id(p) for group in groups.values() for p in group}
    renderer(field).render(views(1, 16, 16)).comp_rgb.sum().backward()
    assert {id(p) for p in field.parameters() if p.grad is not None} == used


def test_frozen_geometry_gets_no_gradient_and_is_made_once():
    field = tet_field()
    field.freeze_geometry()
    assert field.parameter_groups()["geometry"] == []
    assert field.mesh() is field.mesh()
    output = renderer(field).render(views(2, 16, 16))
    output.comp_rgb.sum().backward()
    assert field.sdf.grad is None
    assert field.colour.grid.table.grad.abs().sum() > 0


def test_a_frozen_mesh_follows_a_loaded_checkpoint():
    smaller = tet_field(half_size=0.5)
    field = tet_field()
    field.freeze_geometry()
    before = field.mesh()
    field.load_state_dict(smaller.state_dict())
    torch.testing.assert_close(field.mesh().v_pos, 0.5 * before.v_pos)


def test_the_state_holds_everything_that_a_render_needs():
    field = noisy()
    copy = tet_field(12, half_size=0.1)
    source, target = renderer(field), renderer(copy)
    target.load_state_dict(source.state_dict())
    cameras = views(2, 24, 24)
    with torch.no_grad():
        assert torch.equal(source.render(cameras).comp_rgb, target.render(cameras).comp_rgb)


def test_a_vanished_mesh_says_so():
    field = tet_field(8, sdf=torch.linspace(0.25, 3.5, 729))
    with pytest.raises(EmptyGeometry, match=r"has vanished: .* 729 grid points is 0\.25\.\.3\.5 c"):
        field.mesh()


@pytest.mark.parametrize(("name", "value"), [("sdf", torch.nan), ("offsets", -torch.inf)])
def test_a_mesh_of_numbers_that_are_none_says_so(name, value):
    """One such point among many is enough: a vertex beside it would be nowhere."""
    field = noisy()
    with torch.no_grad():
        getattr(field, name)[700] = value
    with pytest.raises(EmptyGeometry, match=r"mesh is lost: [13] of its \d+ .* not finite"):
        field.mesh()


def test_distances_of_another_grid_are_refused():
    with pytest.raises(ShapeError, match=r"sdf has shape \(64,\)"):
        tet_field(8, sdf=torch.zeros(64))


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sdf", "offsets"])
def test_the_gradient_of_a_silhouette_is_that_of_finite_differences(name):
    """Along smooth directions; the loss weighs the pixels, so that moving sideways counts too."""
    field = noisy()
    cameras = views(2, 96, 96)
    render = renderer(field)
    ramp = torch.linspace(0.0, 1.0, 96)
    weight = (ramp[:, None] + 2 * ramp.square()[None])[None, :, :, None]

    def loss() -> Tensor:
        return (render.render(cameras).opacity * weight).sum()

    loss().backward()
    parameter = getattr(field, name)
    points = field.tets.points
    direction = torch.cos(2 * points[:, 0]) + points[:, 2]
    if name == "offsets":
        direction = torch.stack([direction, 1 - points[:, 1], points[:, 0]], 1)
    predicted = (parameter.grad * direction).sum().item()
    # Pixels enter and leave one by one: several steps average over them.
    start, slopes = parameter.detach().clone(), []
    with torch.no_grad():
        for step in (0.04, 0.06, 0.08, 0.1):
            ends = []
            for sign in (1, -1):
                parameter.copy_(start + sign * step * direction)
                ends.append(loss().item())
            slopes.append((ends[0] - ends[1]) / (2 * step))
    assert predicted == pytest.approx(sum(slopes) / len(slopes), rel=0.05)


def test_descending_on_silhouettes_makes_an_ellipsoid_of_a_ball():
    target = tet_field(12)
    scaled = target.tets.points * torch.tensor([1.0, 0.7, 1.3])
    with torch.no_grad():
        target.sdf.copy_((scaled.norm(dim=1) - 0.5) / target.tets.cell_size)
    cameras, field = views(4, 24, 24), tet_field(12)
    wanted = renderer(target).render(cameras).opacity.detach()
    fitted = renderer(field)
    adam = torch.optim.Adam(field.parameter_groups()["geometry"], lr=0.1)
    errors = []
    for _ in range(25):
        output = fitted.render(cameras)
        smooth = normal_consistency_loss(output.mesh.vertex_normals(), output.topology)
        error = (output.opacity - wanted).square().mean()
        adam.zero_grad()
        (error + 0.01 * smooth).backward()
        adam.step()
        errors.append(error.item())
    assert errors[-1] < 0.1 * errors[0]


def test_mesh_penalties_reach_distances_and_offsets():
    for penalty in (
        lambda out: normal_consistency_loss(out.mesh.vertex_normals(), out.topology),
        lambda out: laplacian_loss(out.mesh.v_pos, out.topology),
    ):
        field = noisy()
        penalty(renderer(field).render(views(1, 16, 16))).backward()
        for parameter in (field.sdf, field.offsets):
            assert torch.isfinite(parameter.grad).all()
            assert parameter.grad.abs().sum() > 0


# --- the renderer ---------------------------------------------------------------------------------


def test_it_is_called_like_the_volume_renderer():
    for name in ("render", "set_fraction", "update_occupancy"):
        mine = inspect.signature(getattr(TetMeshRenderer, name)).parameters
        theirs = inspect.signature(getattr(VolumeRenderer, name)).parameters
        assert [(p.name, p.kind, p.default) for p in mine.values()] == [
            (p.name, p.kind, p.default) for p in theirs.values()
        ]


def test_normals_are_smooth():
    """Those of the sphere, not of its faces."""
    field = tet_field(24)
    output = renderer(field).render(views(1, 64, 64), with_normals=True)
    rays_o, rays_d = views(1, 64, 64).rays()
    inside = output.opacity[..., 0] == 1
    point = (rays_o + output.depth * rays_d)[inside]
    agreement = (output.normal[inside] * torch.nn.functional.normalize(point, dim=-1)).sum(-1)
    assert agreement.min() > math.cos(math.radians(8))
    assert agreement.mean() > math.cos(math.radians(3))


def test_shading_and_supersampling_go_through():
    field = tet_field()
    lit = renderer(field, DiffuseMaterialConfig(eval_shading="diffuse"), supersample=2)
    output = lit.render(views(1, 24, 28), shading=Shading("textureless", 0.2, 0.8))
    assert output.comp_rgb.shape == (1, 24, 28, 3)
    assert output.normal is not None
    assert output.mesh.n_faces == output.topology.n_faces


def test_rendering_and_its_gradient_are_bit_identical_from_run_to_run():
    def run() -> tuple[Tensor, Tensor]:
        field = noisy()
        rgb = renderer(field).render(views(2, 48, 48)).comp_rgb
        rgb.square().sum().backward()
        return rgb.detach(), field.sdf.grad

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))

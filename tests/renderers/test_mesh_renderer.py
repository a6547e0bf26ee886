"""Rendered meshes against closed forms of a sphere, and gradients through the whole renderer."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from renderers.backgrounds import RandomBackground, SolidBackground
from renderers.configs import (
    AlbedoMaterialConfig,
    DiffuseMaterialConfig,
    RandomBackgroundConfig,
    SolidBackgroundConfig,
)
from renderers.errors import BackendMissing, ShapeError
from renderers.isosurface import GridTets
from renderers.materials import Shading
from renderers.mesh import Mesh
from renderers.mesh_configs import MeshRendererConfig
from renderers.mesh_renderer import FieldAlbedo, MeshRenderer, TextureAlbedo, VertexAlbedo
from tests.renderers.shapes import blob, icosphere, views

GREY = (0.2, 0.4, 0.6)


class PositionField:
    """Albedo that names the place: ``x / 2 + 0.5``."""

    def albedo(self, x: Tensor) -> Tensor:
        return x / 2 + 0.5


def renderer(**options) -> MeshRenderer:
    background = SolidBackground(SolidBackgroundConfig(color=GREY))
    return MeshRenderer(MeshRendererConfig(**options), background, AlbedoMaterialConfig())


def inside_and_outside(opacity: Tensor) -> tuple[Tensor, Tensor]:
    return opacity[..., 0] == 1, opacity[..., 0] == 0


def test_a_sphere_has_the_right_coverage_depth_and_normals():
    mesh, cameras = icosphere(5), views(3, 64, 72)
    output = renderer().render(mesh, cameras, FieldAlbedo(PositionField()), with_normals=True)
    rays_o, rays_d = cameras.rays()
    middle = -(rays_o * rays_d).sum(-1)
    closest = (rays_o + middle[..., None] * rays_d).norm(dim=-1)
    hit = closest < 0.47  # a pixel is 0.03 wide there
    distance = middle - (0.25 - closest.square()).clamp(min=0).sqrt()
    point = rays_o + distance[..., None] * rays_d
    assert (output.opacity[hit] == 1).all()
    assert (output.opacity[closest > 0.53] == 0).all()
    torch.testing.assert_close(output.depth[hit][:, 0], distance[hit], atol=3e-3, rtol=0)
    assert ((output.normal[hit] * point[hit] / 0.5).sum(-1) > 0.999).all()
    torch.testing.assert_close(output.comp_rgb[hit], point[hit] / 2 + 0.5, atol=3e-3, rtol=0)


def test_coverage_of_a_sphere_is_that_of_its_cone():
    mesh, cameras = icosphere(5), views(1, 96, 96)
    opacity = renderer().render(mesh, cameras, FieldAlbedo(PositionField())).opacity
    radius_px = 48 * math.tan(math.asin(0.5 / 2.6)) / math.tan(math.radians(20))
    assert opacity.sum().item() == pytest.approx(math.pi * radius_px**2, rel=2e-3)


def test_the_background_fills_what_the_mesh_leaves_free():
    output = renderer().render(icosphere(2), views(2, 32, 32), FieldAlbedo(PositionField()))
    free = output.opacity[..., 0] == 0
    torch.testing.assert_close(
        output.comp_rgb[free], torch.tensor(GREY).expand(int(free.sum()), 3), atol=1e-6, rtol=0
    )
    assert (output.depth[free] == 0).all()


def test_edge_pixels_mix_object_and_background_by_coverage():
    mesh = replace(blob(3), v_rgb=torch.ones(blob(3).n_vertices, 3))
    output = renderer().render(mesh, views(1, 48, 48), VertexAlbedo())
    expected = output.opacity + (1 - output.opacity) * torch.tensor(GREY)
    torch.testing.assert_close(output.comp_rgb, expected, atol=1e-5, rtol=0)
    assert ((output.opacity > 0.05) & (output.opacity < 0.95)).sum() > 50


def test_field_vertex_and_texture_colours_agree_on_a_linear_colouring():
    mesh, cameras = icosphere(3), views(2, 48, 48)
    ramp = (torch.arange(256) + 0.5) / 256
    image = torch.stack(
        [ramp[None].expand(256, 256), ramp[:, None].expand(256, 256), torch.zeros(256, 256)], -1
    )
    uv = mesh.v_pos[:, :2] / 2 + 0.5
    colour = torch.cat([uv, torch.zeros(len(uv), 1)], 1)
    full = replace(mesh, v_rgb=colour, v_tex=uv, t_tex_idx=mesh.t_pos_idx, texture=image)

    class FlatField:
        def albedo(self, x: Tensor) -> Tensor:
            return torch.cat([x[:, :2] / 2 + 0.5, torch.zeros_like(x[:, :1])], 1)

    sources = [VertexAlbedo(), TextureAlbedo(), TextureAlbedo("mip"), FieldAlbedo(FlatField())]
    images = [renderer().render(full, cameras, source).comp_rgb for source in sources]
    for other in images[1:]:
        torch.testing.assert_close(images[0], other, atol=2e-3, rtol=0)
    assert images[0].std() > 0.05


def test_lambertian_shading_follows_the_light():
    cameras = views(1, 48, 48)
    mesh = replace(icosphere(5), v_rgb=torch.full((icosphere(5).n_vertices, 3), 0.8))
    lit = Shading("diffuse", ambient=0.1, diffuse=0.9)
    output = renderer().render(mesh, cameras, VertexAlbedo(), shading=lit)
    inside, _ = inside_and_outside(output.opacity)
    rays_o, rays_d = cameras.rays()
    point = rays_o + output.depth * rays_d
    to_light = torch.nn.functional.normalize(cameras.light_position - point, dim=-1)
    facing = (torch.nn.functional.normalize(point, dim=-1) * to_light).sum(-1).clamp(min=0)
    expected = 0.8 * (0.1 + 0.9 * facing)
    torch.testing.assert_close(
        output.comp_rgb[inside], expected[inside][:, None].expand(-1, 3), atol=0.02, rtol=0
    )


def test_the_material_decides_how_evaluation_renders_are_lit():
    mesh = replace(icosphere(3), v_rgb=torch.ones(icosphere(3).n_vertices, 3))
    dark = MeshRenderer(
        MeshRendererConfig(),
        SolidBackground(SolidBackgroundConfig()),
        DiffuseMaterialConfig(eval_shading="diffuse"),
    )
    shaded = dark.render(mesh, views(1, 32, 32), VertexAlbedo())
    assert shaded.normal is not None
    assert renderer().render(mesh, views(1, 32, 32), VertexAlbedo()).normal is None
    inside, _ = inside_and_outside(shaded.opacity)
    assert shaded.comp_rgb[inside].std() > 0.01


def test_descending_on_the_silhouette_fits_size_and_place():
    mesh, cameras = icosphere(2), views(3, 32, 32)
    white = replace(mesh, v_rgb=torch.ones(mesh.n_vertices, 3))
    target_mesh = replace(white, v_pos=mesh.v_pos * 1.2 + torch.tensor([0.1, -0.05, 0.08]))
    target = renderer().render(target_mesh, cameras, VertexAlbedo()).opacity
    params = torch.tensor([0.0, 0.0, 0.0, 1.0], requires_grad=True)
    adam = torch.optim.Adam([params], lr=0.03)
    fitted = renderer()
    for _ in range(30):
        moved = replace(white, v_pos=mesh.v_pos * params[3] + params[:3])
        loss = (fitted.render(moved, cameras, VertexAlbedo()).opacity - target).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    torch.testing.assert_close(
        params.detach(), torch.tensor([0.1, -0.05, 0.08, 1.2]), atol=0.02, rtol=0
    )


def test_gradients_reach_distances_offsets_and_the_texture_field():
    tets, cameras = GridTets(12), views(2, 32, 32)
    sdf = (tets.points.norm(dim=1) - 0.55).requires_grad_()
    raw = torch.zeros_like(tets.points, requires_grad=True)
    tint = torch.tensor(0.5, requires_grad=True)

    class Tinted:
        def albedo(self, x: Tensor) -> Tensor:
            return tint * torch.sigmoid(3 * x)

    v_pos, faces = tets(sdf, tets.bounded_offsets(raw))
    output = renderer().render(Mesh(v_pos, faces), cameras, FieldAlbedo(Tinted()))
    output.comp_rgb.square().sum().backward()
    for leaf in (sdf, raw, tint):
        assert torch.isfinite(leaf.grad).all()
        assert leaf.grad.abs().sum() > 0


def test_supersampling_keeps_the_area_of_parts_thinner_than_a_pixel():
    # A plate 0.4 pixels thick, seen edge on by a camera in its plane.
    thickness = 0.4 * 2 * 2.6 * math.tan(math.radians(20)) / 48
    corners = torch.tensor([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)])
    v_pos = corners * torch.tensor([0.02, 0.4, thickness / 2]) + torch.tensor([0.0, 0.0, 0.013])
    tri = torch.tensor(
        [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
         [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]
    )  # fmt: skip
    plate = Mesh(v_pos, tri, v_rgb=torch.ones(8, 3))
    cameras = replace(views(1, 48, 48))
    level = type(cameras)(
        c2w=torch.tensor([[[0.0, 0, 1, 2.6], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]]),
        fovy=cameras.fovy,
        azimuth_deg=cameras.azimuth_deg,
        elevation_deg=torch.zeros(1),
        camera_distance=cameras.camera_distance,
        light_position=cameras.light_position,
        height=48,
        width=48,
    )
    reference = renderer(supersample=16).render(plate, level, VertexAlbedo()).opacity.sum()
    errors = [
        (renderer(supersample=s).render(plate, level, VertexAlbedo()).opacity.sum() - reference)
        .abs()
        .div(reference)
        .item()
        for s in (1, 4)
    ]
    assert errors[1] < 0.15
    assert errors[1] < errors[0] / 3


def test_supersampled_renders_keep_size_range_and_unit_normals():
    output = renderer(supersample=2).render(
        icosphere(3), views(2, 24, 28), FieldAlbedo(PositionField()), with_normals=True
    )
    assert output.comp_rgb.shape == (2, 24, 28, 3)
    assert output.comp_rgb_bg.shape == (2, 24, 28, 3)
    inside, _ = inside_and_outside(output.opacity)
    length = output.normal[inside].norm(dim=-1)
    torch.testing.assert_close(length, torch.ones_like(length))


def test_a_generator_draws_the_background_and_nothing_else_is_random(generator):
    background = RandomBackground(RandomBackgroundConfig())
    render = MeshRenderer(MeshRendererConfig(), background, AlbedoMaterialConfig()).render
    mesh, cameras, source = icosphere(2), views(2, 24, 24), FieldAlbedo(PositionField())
    first, again = (render(mesh, cameras, source) for _ in range(2))
    assert torch.equal(first.comp_rgb, again.comp_rgb)
    drawn = render(mesh, cameras, source, generator=generator)
    assert not torch.equal(drawn.comp_rgb_bg, first.comp_rgb_bg)
    assert torch.equal(drawn.opacity, first.opacity)


def test_the_edge_table_is_made_anew_only_when_the_faces_change():
    mesh, render = icosphere(2), renderer()
    first = render.topology(mesh.t_pos_idx)
    assert render.topology(mesh.t_pos_idx.clone()) is first
    faces = mesh.t_pos_idx.clone()
    faces[0] = faces[0].flip(0)
    assert render.topology(faces) is not first
    assert render.state_dict() == {}


def test_a_mesh_outside_the_view_gives_the_background():
    mesh = replace(icosphere(1), v_pos=icosphere(1).v_pos + 50.0)
    output = renderer().render(mesh, views(1, 16, 16), FieldAlbedo(PositionField()))
    assert torch.equal(output.comp_rgb, output.comp_rgb_bg)
    assert (output.opacity == 0).all()


def test_rendering_backwards_is_bit_identical_from_run_to_run():
    mesh, cameras = blob(3), views(2, 64, 64)

    def gradient():
        v_pos = mesh.v_pos.clone().requires_grad_()
        output = renderer().render(
            Mesh(v_pos, mesh.t_pos_idx),
            cameras,
            FieldAlbedo(PositionField()),
            shading=Shading("diffuse", 0.3, 0.7),
        )
        return torch.autograd.grad(output.comp_rgb.square().sum(), v_pos)[0]

    assert torch.equal(gradient(), gradient())


def test_torch_and_numba_render_the_same_picture():
    mesh, cameras, source = blob(3), views(2, 40, 40), FieldAlbedo(PositionField())
    numba = renderer(backend="numba").render(mesh, cameras, source)
    reference = renderer(backend="torch").render(mesh, cameras, source)
    torch.testing.assert_close(numba.comp_rgb, reference.comp_rgb, atol=1e-5, rtol=0)


def test_a_mesh_without_texture_is_refused_by_a_texture():
    with pytest.raises(ShapeError, match="The mesh has no texture or no texture coordinates"):
        renderer().render(icosphere(0), views(1, 8, 8), TextureAlbedo())


def test_a_mesh_without_vertex_colours_is_refused_by_vertex_colours():
    with pytest.raises(ShapeError, match="The mesh has no vertex colours"):
        renderer().render(icosphere(0), views(1, 8, 8), VertexAlbedo())


def test_cameras_that_see_a_part_alone_are_refused():
    box = torch.tensor([[-0.1, -0.1, -0.1], [0.1, 0.1, 0.1]])
    part = views(1, 8, 8).around(torch.zeros(3), 1.0, box)
    with pytest.raises(ShapeError, match="a mesh is drawn whole"):
        renderer().render(icosphere(0), part, FieldAlbedo(PositionField()))


def test_a_supersampling_of_zero_is_refused():
    with pytest.raises(ValueError, match="supersample is 0, expected at least 1"):
        renderer(supersample=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the message is for machines without CUDA")
def test_nvdiffrast_without_a_gpu_says_how_to_get_it():
    with pytest.raises(BackendMissing, match=r"'nvdiffrast' was asked for .*requirements-cuda"):
        renderer(backend="nvdiffrast").render(icosphere(0), views(1, 8, 8), VertexAlbedo())


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["auto", "torch", "nvdiffrast"])
def test_a_gpu_renders_the_same_picture(backend):
    if backend == "nvdiffrast":
        pytest.importorskip("nvdiffrast")
    mesh, cameras, source = blob(4), views(2, 64, 64), FieldAlbedo(PositionField())
    expected = renderer().render(mesh, cameras, source)
    on_gpu = renderer(backend=backend).render(mesh.to("cuda"), cameras.to("cuda"), source)
    different = (on_gpu.comp_rgb.cpu() - expected.comp_rgb).abs().amax(-1) > 0.01
    assert different.float().mean() < 0.005

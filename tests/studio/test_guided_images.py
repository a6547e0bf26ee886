"""What the guidance sees: colours as they are, normals as colours with the same outline; and what
it moves opacity by."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from renderers.backgrounds import SolidBackground
from renderers.configs import (
    AlbedoMaterialConfig,
    RandomBackgroundConfig,
    SolidBackgroundConfig,
)
from renderers.mesh_configs import MeshRendererConfig
from renderers.mesh_renderer import FieldAlbedo, MeshRenderer
from renderers.outputs import RenderOutput
from studio.guided_images import guided_images, opacity_by_background
from tests.renderers.shapes import icosphere, views


class NormalColours:
    """Albedo of a ball that is its normal as a colour."""

    def albedo(self, x: Tensor) -> Tensor:
        return 0.5 * F.normalize(x, dim=-1) + 0.5


def test_normals_of_a_ball_are_the_image_of_a_ball_painted_with_them():
    background = SolidBackground(SolidBackgroundConfig(color=(0.2, 0.4, 0.6)))
    for supersample in (1, 2):
        config = MeshRendererConfig(supersample=supersample)
        renderer = MeshRenderer(config, background, AlbedoMaterialConfig())
        output = renderer.render(
            icosphere(4), views(2, 40, 40), FieldAlbedo(NormalColours()), with_normals=True
        )
        shown = guided_images(output, "normals")
        torch.testing.assert_close(shown, guided_images(output, "color"), atol=5e-3, rtol=0)


def test_outlines_of_normals_pull_at_the_vertices():
    background = SolidBackground(SolidBackgroundConfig(color=(1.0, 1.0, 1.0)))
    renderer = MeshRenderer(MeshRendererConfig(), background, AlbedoMaterialConfig())
    ball = icosphere(3)
    scale = torch.ones((), requires_grad=True)
    larger = type(ball)(ball.v_pos * scale, ball.t_pos_idx)
    output = renderer.render(
        larger, views(1, 32, 32), FieldAlbedo(NormalColours()), with_normals=True
    )
    guided_images(output, "normals").sum().backward()
    assert float(scale.grad) < -10.0  # growing covers white with darker colours


def test_normals_of_a_volume_fade_with_its_opacity():
    normal = F.normalize(torch.randn(1, 2, 2, 3, generator=torch.Generator().manual_seed(0)), dim=3)
    opacity = torch.tensor([0.0, 0.25, 0.5, 1.0]).view(1, 2, 2, 1)
    white = torch.ones(1, 2, 2, 3)
    output = RenderOutput(white * 0.3, opacity, opacity, white, normal=normal)
    shown = guided_images(output, "normals").view(4, 3)
    colour = (0.5 * normal + 0.5).view(4, 3)
    expected = torch.stack([torch.ones(3), *(a * colour[i] + 1 - a for i, a in
                            ((1, 0.25), (2, 0.5), (3, 1.0)))])  # fmt: skip
    torch.testing.assert_close(shown, expected)
    assert torch.equal(guided_images(output, "color"), output.comp_rgb)


MEAN_HALF = RandomBackgroundConfig(probability=1.0)


def pixels(alpha: Tensor, color: Tensor, background: Tensor) -> RenderOutput:
    """Pixels in a row, [n, 1] and [n, 3], over their backgrounds."""
    rgb = alpha * color + (1.0 - alpha) * background
    row = alpha.view(1, 1, -1, 1)
    return RenderOutput(rgb.view(1, 1, -1, 3), row, row, background.view(1, 1, -1, 3))


def test_opacity_by_background_shows_the_same_and_moves_colours_alike(generator):
    alpha = 0.1 + 0.8 * torch.rand(6, 1, generator=generator)
    color, background = (torch.rand(6, 3, generator=generator) for _ in range(2))
    slope = torch.randn(1, 1, 6, 3, generator=generator)
    config = RandomBackgroundConfig(probability=0.8, color=(1.0, 0.5, 0.0))
    alpha.requires_grad_()
    color.requires_grad_()
    output = pixels(alpha, color, background)
    images = opacity_by_background(output.comp_rgb, output, config)
    assert torch.equal(images, output.comp_rgb)
    of_alpha, of_color = torch.autograd.grad((images * slope).sum(), [alpha, color])
    g, mean = slope.view(6, 3), torch.tensor([0.6, 0.5, 0.4])
    torch.testing.assert_close(of_alpha, ((mean - background) * g).sum(1, keepdim=True))
    torch.testing.assert_close(of_color, alpha.detach() * g)


@pytest.mark.parametrize("wanted", [(1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.1, 0.3, 1.0)])
def test_a_wanted_colour_makes_solid_by_background_and_a_hole_by_colour(wanted):
    """All corners of the colour cube as backgrounds: mean 1/2, variance 3/4."""
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    alpha = torch.full((8, 1), 0.9, requires_grad=True)
    output = pixels(alpha, torch.tensor([1.0, 0.5, 0.0]).expand(8, 3), corners)
    target = torch.tensor(wanted).expand_as(output.comp_rgb)

    def pull(images: Tensor) -> float:
        loss = 0.5 * (images - target).square().sum()
        return float(torch.autograd.grad(loss, alpha, retain_graph=True)[0].mean())

    assert pull(opacity_by_background(output.comp_rgb, output, MEAN_HALF)) == pytest.approx(
        -0.1 * 0.75
    )
    assert pull(output.comp_rgb) > 0.2, "descent makes it less"


def test_a_wanted_background_makes_transparent():
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    alpha = torch.full((8, 1), 0.3, requires_grad=True)
    output = pixels(alpha, torch.tensor([1.0, 0.5, 0.0]).expand(8, 3), corners)
    images = opacity_by_background(output.comp_rgb, output, MEAN_HALF)
    loss = 0.5 * (images - output.comp_rgb_bg).square().sum()
    (slope,) = torch.autograd.grad(loss, alpha)
    assert float(slope.mean()) == pytest.approx(0.3 * 0.75)

"""What the guidance sees: colours as they are, normals as colours with the same outline."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from renderers.backgrounds import SolidBackground
from renderers.configs import AlbedoMaterialConfig, SolidBackgroundConfig
from renderers.mesh_configs import MeshRendererConfig
from renderers.mesh_renderer import FieldAlbedo, MeshRenderer
from renderers.outputs import RenderOutput
from studio.guided_images import guided_images
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

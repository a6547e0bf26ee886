"""The reconstruction loss: closed forms, its gradient, and what it compares when."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from renderers.cameras import orbit_cameras
from renderers.outputs import RenderOutput
from studio.subject.configs import ReconstructionConfig
from studio.subject.reconstruction import Reconstruction, view_distance
from studio.subject.views import PseudoViews, widened

CONFIG = ReconstructionConfig(size=16, scales=3, gradient_weight=0.5)


def images(count: int = 2, *, size: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, size, size, 3, generator=generator, dtype=torch.float64)


def ones(count: int = 2, *, size: int = 16) -> torch.Tensor:
    return torch.ones(count, size, size, 1, dtype=torch.float64)


def test_equal_images_have_no_distance():
    assert float(view_distance(images(), images(), ones(), CONFIG)) == 0.0


def test_a_constant_offset_counts_at_every_scale_and_has_no_edges():
    loss = view_distance(images() + 0.25, images(), ones(), CONFIG)
    assert float(loss) == pytest.approx(0.25, abs=1e-12)


def test_a_step_is_an_edge_at_every_scale():
    """A half that is off by h: colours h / 2, edges h on one of n - 1 columns."""
    views, h = images(1), 0.4
    renders = views.clone()
    renders[:, :, 8:] += h
    edges = [0.5 * CONFIG.gradient_weight * h / (n - 1) for n in (16, 8, 4)]
    expected = 0.5 * h + sum(edges) / 3
    assert float(view_distance(renders, views, ones(1), CONFIG)) == pytest.approx(expected)


def test_gradient_agrees_with_finite_differences():
    renders = images(seed=1).requires_grad_(True)
    masks = widened(images(seed=2)[..., :1], 0.0)
    assert torch.autograd.gradcheck(
        lambda x: view_distance(x, images(), masks, CONFIG), (renders,), eps=1e-7, atol=1e-6
    )


def test_masked_pixels_get_no_gradient_and_do_not_dilute_the_others():
    renders, masks = (images() + 0.25).requires_grad_(True), ones()
    masks[:, :, 8:] = 0.0
    loss = view_distance(renders, images(), masks, CONFIG)
    (gradient,) = torch.autograd.grad(loss, renders)
    assert float(loss.detach()) == pytest.approx(0.25)
    assert gradient[:, :, :8].abs().min() > 0.0
    assert gradient[:, :, 8:].abs().max() == 0.0


def test_masks_are_widened_by_a_share_of_the_image():
    masks = torch.zeros(1, 20, 20, 1)
    masks[:, 10, 10] = 0.9
    masks[:, 0, 0] = 0.4
    grown = widened(masks, 0.1)
    assert grown.sum() == 25.0
    assert grown[0, 8:13, 8:13].min() == 1.0


class Painted:
    """Stands where a renderer stands: its image is a parameter."""

    def __init__(self) -> None:
        self.pixels = torch.full((16, 16, 3), 0.5, requires_grad=True)
        self.asked: list[float] = []

    def render(self, cameras, *, shading):
        """The same image for every camera; notes which were asked for."""
        from types import SimpleNamespace

        self.asked += cameras.azimuth_deg.tolist()
        return SimpleNamespace(comp_rgb=self.pixels.expand(len(cameras), -1, -1, -1))


def views_of(count: int) -> PseudoViews:
    cameras = orbit_cameras(
        count, elevation_deg=0.0, distance=3.0, fovy_deg=40.0, height=32, width=32
    )
    image = images(1, size=32).float().expand(count, -1, -1, -1)
    return PseudoViews(image, ones(count, size=32).float(), cameras)


def test_all_views_come_once_before_one_comes_again():
    loss = Reconstruction(CONFIG, views_of(6), seed=3, device=torch.device("cpu"))
    renderer = Painted()
    for step in range(3):
        loss(renderer, step)
    assert sorted(renderer.asked) == [0.0, 60.0, 120.0, 180.0, 240.0, 300.0]
    again = Painted()
    for step in range(3):
        loss(again, step)
    assert again.asked == renderer.asked


def test_descending_it_paints_the_view():
    loss, renderer = (
        Reconstruction(CONFIG, views_of(2), seed=0, device=torch.device("cpu")),
        Painted(),
    )
    optimizer = torch.optim.Adam([renderer.pixels], lr=0.02)
    values = []
    for step in range(60):
        optimizer.zero_grad()
        value = loss(renderer, step)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.2 * values[0]
    assert (renderer.pixels - loss.images[0]).abs().mean() < 0.05


def test_renders_are_compared_before_the_grounds_of_the_views():
    """A half-covered render is at no distance from a view on any ground, and white would be."""
    half = torch.full((2, 16, 16, 1), 0.5)
    red, white = torch.tensor([1.0, 0.0, 0.0]), torch.ones(3)

    class Half:
        """Stands where a renderer stands: half red before white."""

        def render(self, cameras, *, shading):
            return RenderOutput(0.5 * red + half * white, half, half, half * 0 + white)

    grounds = torch.tensor([[0.1, 0.4, 0.9], [0.7, 0.6, 0.1]])
    views = (0.5 * red + 0.5 * grounds)[:, None, None].expand(2, 16, 16, 3)
    seen = replace(views_of(2), images=views, masks=ones(2).float(), grounds=grounds)
    known, unknown = (
        Reconstruction(CONFIG, views, seed=0, device=torch.device("cpu"))(Half(), 0)
        for views in (seen, replace(seen, grounds=None))
    )
    assert float(known) == pytest.approx(0.0, abs=1e-6)
    assert float(unknown) > 0.1

"""What renderers return, before another background."""

from __future__ import annotations

import torch

from renderers.outputs import RenderOutput


def rendered(background: torch.Tensor) -> RenderOutput:
    """A red thing that covers a quarter, half, all and none of four pixels."""
    opacity = torch.tensor([0.25, 0.5, 1.0, 0.0], dtype=torch.float64).view(1, 1, 4, 1)
    red, normal = (torch.tensor(c, dtype=torch.float64) for c in ([1, 0, 0], [0.5, 1, 0.5]))
    background = background.double().expand(1, 1, 4, 3)
    return RenderOutput(
        comp_rgb=opacity * red + (1 - opacity) * background,
        opacity=opacity,
        depth=opacity,
        comp_rgb_bg=background,
        comp_normal=opacity * normal + (1 - opacity) * background,
    )


def test_another_background_shows_as_much_as_the_thing_lets_through():
    white, blue = torch.ones(3), torch.tensor([0.1, 0.2, 0.9], dtype=torch.float64)
    moved, drawn = rendered(white).over(blue), rendered(blue)
    torch.testing.assert_close(moved.comp_rgb, drawn.comp_rgb)
    torch.testing.assert_close(moved.comp_normal, drawn.comp_normal)
    torch.testing.assert_close(moved.comp_rgb_bg, drawn.comp_rgb_bg)


def test_the_same_background_changes_nothing_bit_for_bit():
    output = rendered(torch.tensor([0.3, 0.7, 0.11]))
    again = output.over(output.comp_rgb_bg)
    assert torch.equal(again.comp_rgb, output.comp_rgb)
    assert torch.equal(again.comp_normal, output.comp_normal)

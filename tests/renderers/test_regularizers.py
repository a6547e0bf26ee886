"""Each penalty has its closed form on small scenes, and a gradient in the right direction."""

from __future__ import annotations

import math

import pytest
import torch

from renderers.outputs import RenderOutput
from renderers.regularizers import (
    REGULARIZERS,
    border_loss,
    compute_regularizers,
    eikonal_loss,
    needs_normals,
    opacity_smoothness_loss,
    opaque_loss,
    orientation_loss,
    sparsity_loss,
    z_variance_loss,
)


def constant(value: float, size: int = 4) -> torch.Tensor:
    return torch.full((2, size, size, 1), value, dtype=torch.float64)


def scene(**changes) -> RenderOutput:
    image = torch.zeros(2, 4, 4, 3)
    settings = {
        "comp_rgb": image,
        "comp_rgb_bg": image,
        "opacity": torch.zeros(2, 4, 4, 1),
        "depth": torch.zeros(2, 4, 4, 1),
    }
    return RenderOutput(**{**settings, **changes})


def test_orientation_is_zero_for_normals_that_face_the_camera():
    dirs = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    loss = orientation_loss(torch.ones(2), -dirs, dirs, torch.tensor([0, 1]))
    assert loss == 0.0


def test_orientation_counts_rays_and_not_samples():
    dirs = torch.tensor([[1.0, 0, 0]]).expand(3, 3)
    normals = torch.tensor([[0.6, 0.8, 0], [1.0, 0, 0], [-1.0, 0, 0]])
    weights = torch.tensor([0.5, 0.25, 0.25])
    # Two rays: (0.5 * 0.36 + 0.25 * 1 + 0) / 2.
    loss = orientation_loss(weights, normals, dirs, torch.tensor([4, 4, 9]))
    assert float(loss) == pytest.approx((0.5 * 0.36 + 0.25) / 2)


def test_orientation_skips_rays_that_hit_nothing():
    dirs = torch.tensor([[1.0, 0, 0]]).expand(2, 3)
    loss = orientation_loss(torch.tensor([1.0, 0.0]), dirs, dirs, torch.tensor([0, 1]))
    assert float(loss) == pytest.approx(1.0)


def test_orientation_turns_normals_and_leaves_weights_alone():
    dirs = torch.tensor([[1.0, 0, 0]])
    normals = torch.tensor([[0.6, 0.8, 0]], requires_grad=True)
    weights = torch.tensor([0.5], requires_grad=True)
    orientation_loss(weights, normals, dirs, torch.tensor([0])).backward()
    assert weights.grad is None
    assert normals.grad[0, 0] > 0


@pytest.mark.parametrize("opacity", [0.0, 0.3, 1.0])
def test_sparsity_of_constant_opacity(opacity):
    expected = math.sqrt(opacity**2 + 0.01)
    assert sparsity_loss(constant(opacity)).item() == pytest.approx(expected)


@pytest.mark.parametrize("opacity", [0.0, 0.2, 0.5, 1.0])
def test_opaque_is_the_clamped_binary_entropy(opacity):
    p = min(max(opacity, 1e-3), 1 - 1e-3)
    expected = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    assert opaque_loss(constant(opacity)).item() == pytest.approx(expected)


def test_opaque_pushes_to_the_nearer_end():
    opacity = torch.tensor([0.2, 0.8]).view(1, 1, 2, 1).requires_grad_()
    opaque_loss(opacity).backward()
    assert opacity.grad.flatten()[0] > 0 > opacity.grad.flatten()[1]


def test_z_variance_averages_solid_pixels_only():
    variance = torch.tensor([0.4, 0.2, 9.0]).view(1, 1, 3, 1)
    opacity = torch.tensor([0.9, 0.6, 0.4]).view(1, 1, 3, 1)
    assert float(z_variance_loss(variance, opacity)) == pytest.approx(0.3)
    assert float(z_variance_loss(variance, torch.zeros(1, 1, 3, 1))) == 0.0


@pytest.mark.parametrize("side", [4, 128])
def test_the_border_is_charged_and_nothing_within(side):
    width = max(1, side // 64)
    opacity = constant(0.25, side)
    opacity[:, width:-width, width:-width] = 1.0
    assert float(border_loss(opacity)) == pytest.approx(0.25)
    opacity.requires_grad_(True)
    (gradient,) = torch.autograd.grad(border_loss(opacity), opacity)
    assert gradient[:, width:-width, width:-width].abs().max() == 0.0
    count = 2 * (side**2 - (side - 2 * width) ** 2)
    torch.testing.assert_close(gradient[:, 0], torch.full_like(gradient[:, 0], 1 / count))


def test_opacity_smoothness_charges_outline_and_not_area():
    square, scattered = torch.zeros(1, 8, 8, 1), torch.zeros(1, 8, 8, 1)
    square[:, 2:6, 2:6] = 1.0
    scattered[:, 1::2, 1::2] = 1.0
    assert square.sum() == scattered.sum()
    assert float(opacity_smoothness_loss(square)) == pytest.approx(16 / 64)
    assert opacity_smoothness_loss(scattered) > 3 * opacity_smoothness_loss(square)
    assert opacity_smoothness_loss(torch.ones(1, 8, 8, 1)) == 0.0


def test_eikonal_is_zero_for_unit_gradients():
    unit = torch.nn.functional.normalize(torch.randn(50, 3), dim=-1)
    assert float(eikonal_loss(unit)) == pytest.approx(0.0, abs=1e-10)
    assert float(eikonal_loss(3.0 * unit)) == pytest.approx(4.0, rel=1e-5)
    assert float(eikonal_loss(torch.zeros(0, 3))) == 0.0


def test_every_penalty_is_finite_with_a_finite_gradient_on_an_empty_image():
    opacity = torch.zeros(2, 4, 4, 1, requires_grad=True)
    none = torch.zeros(0, 3, requires_grad=True)
    output = scene(
        opacity=opacity,
        z_variance=torch.zeros(2, 4, 4, 1),
        weights=none[:, 0],
        ray_indices=torch.zeros(0, dtype=torch.long),
        sample_dirs=none,
        sample_normals=none,
        sample_gradients=none,
    )
    losses = compute_regularizers(output, REGULARIZERS)
    assert set(losses) == set(REGULARIZERS)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert opacity.grad.isfinite().all()


def test_normals_are_asked_for_only_when_needed():
    assert needs_normals(["sparsity", "orient"])
    assert needs_normals(["eikonal"])
    assert not needs_normals(["sparsity", "opaque", "z_variance", "opacity_smoothness"])


def test_unknown_and_impossible_penalties_are_named():
    with pytest.raises(ValueError, match=r"losses\.sparsty: unknown penalty, expected one of"):
        compute_regularizers(scene(), ["sparsty"])
    with pytest.raises(ValueError, match=r"losses\.orient: this render has no samples"):
        compute_regularizers(scene(), ["orient"])

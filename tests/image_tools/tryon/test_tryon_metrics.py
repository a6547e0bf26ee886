"""Metrics in cases whose value is known."""

from __future__ import annotations

import math

import pytest
import torch

from image_tools.tryon.metrics import (
    color_error,
    outside_change,
    patch_error,
    psnr,
    ssim,
    stripe_frequency,
)

SIZE = (32, 24)


def noise(seed: int = 0, rows: int = 2) -> torch.Tensor:
    return torch.rand(rows, *SIZE, 3, generator=torch.Generator().manual_seed(seed))


def box() -> torch.Tensor:
    mask = torch.zeros(2, *SIZE, 1)
    mask[:, 8:24, 6:18] = 1.0
    return mask


def test_equal_pictures_are_alike() -> None:
    assert torch.allclose(ssim(noise(), noise()), torch.ones(2), atol=1e-5)
    assert ssim(noise(), noise(1)).max() < 0.2


def test_ssim_of_constants_is_the_term_of_light() -> None:
    a, b = torch.full((1, *SIZE, 3), 0.2), torch.full((1, *SIZE, 3), 0.6)
    wanted = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert float(ssim(a, b)) == pytest.approx(wanted, abs=1e-4)


def test_ssim_equals_its_definition_in_one_window() -> None:
    x, y = noise(2, 1)[:, :11, :11], noise(3, 1)[:, :11, :11]
    weights = [math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / 4.5) for i in range(11) for j in range(11)]
    w = torch.tensor(weights) / sum(weights)
    a, b = x.reshape(121, 3), y.reshape(121, 3)
    mean_a, mean_b = w @ a, w @ b
    var_a, var_b = w @ (a - mean_a) ** 2, w @ (b - mean_b) ** 2
    both = w @ ((a - mean_a) * (b - mean_b))
    value = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
    value /= (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
    assert float(ssim(x, y)) == pytest.approx(float(value.mean()), abs=1e-5)


def test_psnr_is_its_formula_inside_the_mask() -> None:
    a = torch.zeros(2, *SIZE, 3)
    b = a + 0.1 * box()
    assert torch.allclose(psnr(b, a, box()), torch.full((2,), 20.0), atol=1e-3)
    share = float(box().mean())
    wanted = 20.0 - 10.0 * math.log10(share)
    assert float(psnr(b, a)[0]) == pytest.approx(wanted, abs=1e-3)


def test_colour_error_compares_means() -> None:
    worn = torch.full((2, *SIZE, 3), 0.9)
    worn = torch.where(box() > 0, torch.tensor([0.5, 0.3, 0.1]), worn)
    flat = torch.full((2, 10, 8, 3), 0.4)
    found = color_error(worn, box(), flat, torch.ones(2, 10, 8, 1))
    assert torch.allclose(found, torch.full((2,), (0.1 + 0.1 + 0.3) / 3), atol=1e-5)


def test_only_changes_outside_count() -> None:
    person = noise()
    changed = person + 0.3 * box()
    assert torch.equal(outside_change(changed, person, box()), torch.zeros(2))
    changed[1, 0, 0, 2] += 0.25
    found = outside_change(changed, person, box())
    assert found[0] == 0.0
    assert float(found[1]) == pytest.approx(0.25, abs=1e-6)


def identity_places() -> torch.Tensor:
    """Each pixel of the garment comes from the same place of a product view of the same size."""
    height, width = SIZE
    y = (torch.arange(height) + 0.5) / height * 2 - 1
    x = (torch.arange(width) + 0.5) / width * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).expand(2, -1, -1, -1)
    return torch.where(box() > 0, grid, torch.nan)


def test_the_true_picture_has_no_patch_error_and_a_wrong_print_has() -> None:
    stripes = (torch.arange(SIZE[0]) // 4 % 2).float()[None, :, None, None].expand(2, *SIZE, 3)
    dimmed = 0.8 * stripes  # light
    wrong = 0.8 * (1.0 - stripes)  # the same colours on average
    places = identity_places()
    assert torch.equal(patch_error(dimmed, dimmed, places, stripes), torch.zeros(2))
    assert patch_error(wrong, dimmed, places, stripes).min() > 0.5
    blurred = torch.full_like(stripes, 0.4)
    middle = patch_error(blurred, dimmed, places, stripes)
    assert bool((middle > 0.2).all() and (middle < 0.5).all())


@pytest.mark.parametrize(("down", "across"), [(6, 0), (0, 5), (4, 3)])
def test_stripes_are_found_at_their_frequency(down: int, across: int) -> None:
    y = torch.arange(64) / 64
    x = torch.arange(48) / 48
    wave = (2 * math.pi * (down * y[:, None] + across * x[None])).sin()
    image = (0.5 + 0.3 * wave.sign() * (wave.abs() > 0.1))[None, ..., None].expand(1, -1, -1, 3)
    assert stripe_frequency(image)[0].tolist() == [down, across]


def test_a_plain_garment_has_no_stripes() -> None:
    image = torch.full((1, 64, 48, 3), 0.7)
    assert stripe_frequency(image)[0].tolist() == [0.0, 0.0]
    mask = torch.zeros(1, 64, 48, 1)
    mask[:, 16:48, 12:36] = 1.0
    assert stripe_frequency(image, mask)[0].tolist() == [0.0, 0.0]


def test_stripes_inside_a_mask_are_not_those_around_it() -> None:
    y = torch.arange(64) / 64
    inner = 0.5 + 0.4 * (2 * math.pi * 8 * y).sin()
    outer = 0.5 + 0.4 * (2 * math.pi * 3 * y).sin()
    mask = torch.zeros(1, 64, 48, 1)
    mask[:, 16:48, 12:36] = 1.0
    pair = (part[None, :, None, None].expand(1, 64, 48, 3) for part in (inner, outer))
    image = torch.where(mask > 0, *pair)
    assert stripe_frequency(image, mask)[0, 0].item() == pytest.approx(8.0, abs=1.0)

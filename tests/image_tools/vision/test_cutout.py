"""Cutting a thing out of photos that have it in common."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from image_tools.vision.cutout import _opponent, _Walker, cut_out
from image_tools.vision.cutout_configs import CutoutConfig

SIZE = 48
CONFIG = CutoutConfig()
GROUNDS = ((0.2, 0.5, 0.8), (0.85, 0.8, 0.3), (0.5, 0.2, 0.5))


def disc(center: tuple[float, float] = (0.0, 0.0), radius: float = 0.5) -> torch.Tensor:
    """Where a disc lies in the square from -1 to 1."""
    steps = torch.linspace(-1, 1, SIZE)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return (y - center[0]) ** 2 + (x - center[1]) ** 2 < radius**2


def photos(masks: list[torch.Tensor]) -> torch.Tensor:
    """A thing, red above and white below, on grounds of their own, with noise."""
    generator = torch.Generator().manual_seed(0)
    upper = (torch.arange(SIZE) < SIZE // 2)[:, None, None]
    thing = torch.where(upper, torch.tensor([0.8, 0.1, 0.1]), torch.tensor([0.95, 0.95, 0.95]))
    found = []
    for mask, ground in zip(masks, GROUNDS, strict=False):
        clean = torch.where(mask[..., None], thing, torch.tensor(ground))
        found.append(clean + 0.02 * torch.randn(clean.shape, generator=generator))
    return torch.stack(found).clamp(0, 1)


def overlap(found: torch.Tensor, truth: torch.Tensor) -> float:
    found = found > 0.5
    return float((found & truth).sum() / (found | truth).sum())


def test_what_all_photos_share_is_found_to_the_pixel_border() -> None:
    truths = [disc(), disc((0.1, -0.2)), disc((-0.1, 0.15), 0.4)]
    masks = cut_out(photos(truths), CONFIG)
    assert masks.shape == (3, SIZE, SIZE)
    assert float(masks.min()) >= 0.0
    assert float(masks.max()) <= 1.0
    assert min(overlap(m, t) for m, t in zip(masks, truths, strict=True)) > 0.93


def test_one_photo_will_do_where_the_ground_has_colours_of_its_own() -> None:
    assert overlap(cut_out(photos([disc()]), CONFIG)[0], disc()) > 0.93


def test_where_thing_and_surroundings_look_alike_nothing_is_found() -> None:
    noise = torch.rand(2, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(1))
    assert float(cut_out(0.5 + 0.1 * noise, CONFIG).max()) == 0.0


def test_a_large_hole_stays_and_a_glint_is_filled() -> None:
    ring = disc() & ~disc(radius=0.25)
    assert overlap(cut_out(photos([ring] * 3), CONFIG)[0], ring) > 0.85
    images = photos([disc()] * 3)
    spot = disc((0.25, 0.0), 0.06)
    images[0] = torch.where(spot[..., None], torch.tensor(GROUNDS[0]), images[0])
    assert bool((cut_out(images, CONFIG)[0][spot] == 1.0).all())


def test_the_same_photos_give_the_same_masks_at_any_size() -> None:
    images = photos([disc()] * 3)
    assert torch.equal(cut_out(images, CONFIG), cut_out(images, CONFIG))
    large = torch.nn.functional.interpolate(images.movedim(-1, 1), scale_factor=4).movedim(1, -1)
    masks = cut_out(large, CutoutConfig(size=SIZE))
    assert masks.shape == (3, 4 * SIZE, 4 * SIZE)
    assert overlap(masks[0, 2::4, 2::4], disc()) > 0.93


def test_the_walker_is_the_minimum_of_its_energy() -> None:
    """Against the energy itself: no change of any pixel lowers it."""
    rng = np.random.default_rng(3)
    walker = _Walker(_opponent(rng.random((1, 5, 6, 3)))[0], CONFIG)
    posterior = rng.random((5, 6))
    solved = walker.solve(posterior).ravel()
    laplacian = walker.matrix.toarray() - CONFIG.data * np.eye(30)
    assert np.allclose(laplacian.sum(1), 0.0, atol=1e-12)
    assert np.linalg.eigvalsh(laplacian).min() > -1e-12

    def energy(x: np.ndarray) -> float:
        own = posterior.ravel()
        terms = own * (1 - x) ** 2 + (1 - own) * x**2
        return float(x @ laplacian @ x + CONFIG.data * terms.sum())

    changes = np.concatenate([np.eye(30), -np.eye(30)]) * 1e-3
    assert all(energy(solved + change) > energy(solved) for change in changes)


def test_a_walker_keeps_what_everyone_says() -> None:
    walker = _Walker(np.random.default_rng(0).random((7, 4, 3)), CONFIG)
    assert np.allclose(walker.solve(np.full((7, 4), 0.3)), 0.3)


@pytest.mark.parametrize("fill", [0.0, 1.5])
def test_a_thing_larger_than_its_image_is_refused(fill: float) -> None:
    with pytest.raises(ValueError, match=r"expected 0\.1 to 1, or nothing"):
        CutoutConfig(fill=fill)

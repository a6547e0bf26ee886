"""Recoloured images: what turns, and what stays."""

from __future__ import annotations

from dataclasses import replace

import torch

from studio.training.recoloring import RecolorConfig, recolor, recolor_some

EVEN = RecolorConfig(saturation=(1.0, 1.0), brightness=(1.0, 1.0))


def colors(*rgb: tuple[float, float, float]) -> torch.Tensor:
    """One flat image per colour, given in 0..1."""
    return (torch.tensor(rgb) * 2 - 1)[:, :, None, None].expand(-1, -1, 2, 2)


def test_greys_stay_grey_and_keep_their_brightness():
    grey = colors((0.2, 0.2, 0.2), (1.0, 1.0, 1.0))
    turned = recolor(grey, EVEN, torch.Generator().manual_seed(0))
    torch.testing.assert_close(turned, grey, atol=1e-5, rtol=0)


def test_turning_hues_keeps_mean_and_colourfulness():
    start = colors(*[(0.5, 0.4, 0.6)] * 32)
    turned = recolor(start, EVEN, torch.Generator().manual_seed(0))
    torch.testing.assert_close(turned.mean(1), start.mean(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(turned.std(1), start.std(1), atol=1e-5, rtol=0)
    hues = {tuple(image[:, 0, 0].argsort().tolist()) for image in turned}
    assert len(hues) == 6, "every order of the channels is reached"


def test_without_saturation_all_is_grey_and_nothing_leaves_the_range():
    images = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    grey = recolor(images, replace(EVEN, saturation=(0.0, 0.0)), torch.Generator().manual_seed(0))
    assert float((grey - grey.mean(1, keepdim=True)).abs().max()) < 1e-5
    bright = replace(EVEN, saturation=(3.0, 3.0), brightness=(2.0, 2.0))
    loud = recolor(images, bright, torch.Generator().manual_seed(0))
    assert loud.min() >= -1.0
    assert loud.max() <= 1.0


def test_a_share_of_a_batch_changes_and_the_others_stay_in_their_places():
    images = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(2)) * 2 - 1
    changed = torch.zeros(12)
    for seed in range(20):
        mixed = recolor_some(images, RecolorConfig(), torch.Generator().manual_seed(seed))
        moved = (mixed - images).abs().flatten(1).amax(1) > 0
        assert int(moved.sum()) == 4
        changed += moved
    assert (changed > 0).all(), "any image may be recoloured"
    none = recolor_some(images, RecolorConfig(share=0.0), torch.Generator())
    assert torch.equal(none, images)

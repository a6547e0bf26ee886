"""Widening an autoencoder: recoloured images, and latents that stay."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from studio.training.image_cache import ImageCache
from studio.training.loop import LoopConfig
from studio.training.vae import VAEConfig, build_vae, image_batch
from studio.training.vae_widening import WideningConfig, recolor, widen_vae

CPU = torch.device("cpu")
EVEN = WideningConfig(saturation=(1.0, 1.0), brightness=(1.0, 1.0))


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


def write_cache(folder: Path, color: tuple[float, float, float], count: int = 12) -> ImageCache:
    """Noisy images of about one colour."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = np.array(color) * 255 + rng.normal(0, 20, (count, 16, 16, 3))
    np.save(folder / "images.npy", images.clip(0, 255).astype(np.uint8))
    state = {"done": count, "captions": ["a toy"] * count, "key": "k"}
    (folder / "state.json").write_text(json.dumps(state))
    return ImageCache(folder)


def moved(keep_weight: float, folder: Path) -> tuple[float, float]:
    """How far a short training moves the latents of toys, and the change of its weights."""
    torch.manual_seed(0)
    vae = build_vae(VAEConfig(widths=(8, 8)))
    before = copy.deepcopy(vae).eval()
    toys = write_cache(folder / "toys", (0.8, 0.2, 0.2))
    objects = write_cache(folder / "objects", (0.9, 0.3, 0.9))
    loop = LoopConfig(steps=20, learning_rate=3e-3, warmup=1, ema_decay=0.0, weight_decay=0.0)
    config = WideningConfig(toys=4, objects=2, recolored=2, keep_weight=keep_weight, loop=loop)
    widen_vae(config, vae, toys, objects, folder / "run", seed=0, log=lambda *_: None)
    images = image_batch(toys, np.arange(12), CPU)
    with torch.no_grad():
        kept = [it.encode(images).latent_dist.mean for it in (vae, before)]
    weights = [it.decoder.conv_out.weight.detach() for it in (vae, before)]
    return float((kept[0] - kept[1]).square().mean()), float((weights[0] - weights[1]).abs().max())


def test_latents_of_toys_stay_while_the_rest_learns(tmp_path: Path):
    free, _ = moved(0.0, tmp_path / "free")
    held, learned = moved(100.0, tmp_path / "held")
    assert held < 0.1 * free
    assert learned > 1e-3

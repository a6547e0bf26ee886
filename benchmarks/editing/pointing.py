"""The gate: does attention to a word lie on the thing that the word names?

Images are noised to several timesteps and shown to the denoiser with their prompt, unguided. The
place of a word's largest attention, averaged over heads and over encoder and decoder layers of a
resolution, should show the thing: at least a quarter of the pixels of that place. The baseline is
a place drawn at random. True renders have exact masks; of samples, silhouettes are taken.

Where this fails, no tool that edits attention can work, and the other rows mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.editing.bench import Bench, Found
from benchmarks.editing.cases import Case, pair_cases, render, single_cases
from benchmarks.editing.oracles import read_images, silhouette
from image_tools.diffusion.attention import attention_operations
from image_tools.diffusion.conditions import as_condition
from image_tools.diffusion.parametrization import add_noise, alpha_sigma
from image_tools.editing.align import tokenize_prompt, word_tokens
from image_tools.editing.local_blend import WordMapRecorder

__all__ = ["Shown", "maps_at", "measure_gate"]

NOISE = (0.2, 0.4, 0.6, 0.8)
"""Timesteps as shares of the training length."""
COARSE_NOISE = 0.4
LEVELS = (0, 1)
PICTURES = 4
HIT = 0.25
"""A place shows a thing if this share of its pixels does."""


@dataclass(frozen=True)
class Shown:
    """An image, its prompt, a word of it, and where what it names is seen."""

    kind: str
    image: Float[Tensor, "h w 3"]
    case: Case
    words: tuple[str, ...]
    mask: Bool[Tensor, "h w"]


def measure_gate(bench: Bench, count: int) -> Found:
    """Hits of nouns and colours on single objects, on pairs and on samples."""
    found = Found(
        ("image", *(f"16 x 16, t {share:g}" for share in NOISE), f"8 x 8, t {COARSE_NOISE:g}")
    )
    shown = _shown(bench, count)
    maps = {
        (level, share): torch.cat(
            [
                maps_at(bench, shown[k : k + bench.batch_size], level, share)
                for k in range(0, len(shown), bench.batch_size)
            ]
        )
        for level in LEVELS
        for share in (NOISE if level == 0 else (COARSE_NOISE,))
    }
    for index, one in enumerate(shown):
        hits = {key: _hit(stack[index], one.mask) for key, stack in maps.items()}
        fine = [hits[0, share] for share in NOISE]
        if one.kind == "noun":
            found.add({f"noun_16_t{share:g}": hits[0, share] for share in NOISE})
        else:
            ours, drawn = zip(*fine, strict=True)
            found.add({f"{one.kind}_16": (sum(ours) / len(ours), sum(drawn) / len(drawn))})
        found.add({f"{one.kind}_8": hits[1, COARSE_NOISE]})
    single = [k for k, one in enumerate(shown) if one.kind == "noun"][:PICTURES]
    paired = [k for k, one in enumerate(shown) if one.kind in ("left", "right")][:PICTURES]
    for index in (*single, *paired):
        one = shown[index]
        views = [_picture(stack[index], one.image) for stack in maps.values()]
        hits = [_hit(stack[index], one.mask)[0] for stack in maps.values()]
        label = f"{one.case.prompt}: {' '.join(one.words)}"
        found.show(label, [one.image, *views], *map(bool, hits))
    _read_samples(bench, shown, found)
    return found


def maps_at(
    bench: Bench, shown: Sequence[Shown], level: int, share: float
) -> Float[Tensor, "n h w"]:
    """Attention to one word of each image, noised to a share of the timesteps."""
    prior = bench.prior
    tokenizer = prior.text.towers[0].tokenizer
    factors = []
    for one in shown:
        prompt = tokenize_prompt(tokenizer, one.case.prompt)
        factor = torch.zeros(prompt.length)
        factor[list(word_tokens(prompt, " ".join(one.words)))] = 1.0
        factors.append(factor)
    recorder = WordMapRecorder(factors, level)
    latents = prior.encode_images(torch.stack([one.image for one in shown]))
    generators = bench.generators([one.case.number for one in shown])
    noise = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in generators])
    t = torch.full((len(shown),), round(share * prior.num_train_timesteps))
    alpha, sigma = alpha_sigma(prior.alphas_cumprod, t, latents)
    told = as_condition(prior.encode_prompt([one.case.prompt for one in shown]))
    told = replace(told, roles=tuple(f"cond:{row}" for row in range(len(shown))))
    with torch.no_grad(), attention_operations(prior.unet, [recorder], step=0):
        prior.predict_output(add_noise(latents, noise, alpha, sigma), t, told)
    return recorder.sum_until(0)[:, 0]


def _shown(bench: Bench, count: int) -> list[Shown]:
    singles, pairs = single_cases(count, seed=bench.seed), pair_cases(count, seed=bench.seed)
    size = bench.prior.image_size
    shown = []
    for case in singles:
        drawn = render(case, size=size)
        shown.append(Shown("noun", drawn.rgb, case, case.words(), drawn.instances[0]))
        shown.append(Shown("color", drawn.rgb, case, (case.spec.color,), drawn.instances[0]))
    for case in pairs:
        drawn = render(case, size=size)
        shown.append(Shown("left", drawn.rgb, case, case.words(0), drawn.instances[0]))
        shown.append(Shown("right", drawn.rgb, case, case.words(1), drawn.instances[1]))
    images = bench.images([case.prompt for case in singles], [case.number for case in singles])
    for case, image in zip(singles, images, strict=True):
        shown.append(Shown("sample", image, case, case.words(), silhouette(image)))
    return shown


def _hit(word_map: Float[Tensor, "h w"], mask: Bool[Tensor, "h w"]) -> tuple[float, float]:
    """Whether the largest attention shows the thing, and the share of places that do."""
    places = F.adaptive_avg_pool2d(mask[None].float(), word_map.shape)[0] >= HIT
    return float(places.flatten()[word_map.argmax()]), float(places.float().mean())


def _picture(
    word_map: Float[Tensor, "h w"], image: Float[Tensor, "height width 3"]
) -> Float[Tensor, "height width 3"]:
    """Attention as brightness over a faint image."""
    bright = word_map / word_map.max().clamp(min=1e-8)
    large = F.interpolate(bright[None, None], image.shape[:2], mode="nearest")[0, 0, ..., None]
    return 0.3 * image + 0.7 * large


def _read_samples(bench: Bench, shown: Sequence[Shown], found: Found) -> None:
    """How often samples of single objects show what their prompt says."""
    samples = [one for one in shown if one.kind == "sample"]
    seen = read_images(bench.judge, torch.stack([one.image for one in samples]))
    for one, read in zip(samples, seen, strict=True):
        spec = one.case.spec
        found.add({"kind_of_samples": read.kind == spec.kind})
        found.add({"color_of_samples": read.color == spec.color})

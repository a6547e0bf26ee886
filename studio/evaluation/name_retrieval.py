"""Whether an image of a name is told from images of other names: of priors, and true renders.

The names are nouns of the object pack: those that no training shows (its held-out split), and as
many trained ones. For each noun images are drawn, and the image-text score ranks the nouns of the
set by how well they fit each image. A figure is the share of images whose own noun comes first, or
among the first five (R-precision as in DreamFusion, arXiv 2209.14988, section 4). Images of a noun
are found or missed together, so intervals are over nouns. True renders of the nouns' objects from
the same sides say what the score reaches at best; chance is one in so many.

    figures = name_figures(draw, load_image_text(), images=2, seed=5)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from renderers.cameras import orbit_cameras
from scenes.objects.captions import plain_caption
from scenes.objects.pack import ObjectPack, default_pack
from scenes.objects.render import ObjectGeometry, render_rgb
from scenes.objects.splits import Split
from studio.evaluation.image_text import ImageTextScorer
from studio.evaluation.intervals import SHARE, Estimate, mean_estimate

__all__ = [
    "SETS",
    "TOP",
    "drawn_ranks",
    "name_figures",
    "names_of",
    "ranks",
    "true_images",
    "true_ranks",
]

SIDES: dict[str, float] = {"front view": 0.0, "left side view": 90.0}
"""View words of the prompts in turn, and the azimuth in degrees that each means."""
SPREAD_DEG = 30.0
ELEVATION_DEG, DISTANCE, FOVY_DEG, IMAGE_SIZE = 15.0, 2.6, 40.0, 64
TOP = (1, 5)
Draw = Callable[[list[str]], Float[Tensor, "b h w 3"]]
SETS: dict[str, Split] = {"held": "held_out", "train": "train"}


def names_of(split: Split, pack: ObjectPack) -> list[str]:
    """The nouns of a set: all held-out ones, or as many of another split, by a hash."""
    nouns = {pack.info(name).noun for name in pack.names(split)}
    count = len({pack.info(name).noun for name in pack.names("held_out")})
    ordered = sorted(nouns, key=lambda noun: hashlib.sha256(f"names/{noun}".encode()).digest())
    return sorted(ordered[:count])


def ranks(similarity: Float[Tensor, "b n"], own: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Place of each image's own name among all names, 0 for the first; a tie counts against it."""
    score = similarity.gather(1, own[:, None])
    return (similarity >= score).sum(1) - 1


def drawn_ranks(draw: Draw, scorer: ImageTextScorer, split: Split, *, images: int) -> Tensor:
    """Ranks of images that ``draw`` makes of prompts, ``images`` of each name in turn."""
    nouns, words = names_of(split, default_pack()), list(SIDES)
    prompts = [
        f"{plain_caption(noun)}, {words[k % len(words)]}" for noun in nouns for k in range(images)
    ]
    return _ranked(scorer, draw(prompts), nouns)


def true_ranks(scorer: ImageTextScorer, split: Split, *, images: int, seed: int) -> Tensor:
    """Ranks of renders of the objects themselves, likewise."""
    nouns = names_of(split, default_pack())
    return _ranked(scorer, true_images(nouns, split, images, seed=seed), nouns)


def _ranked(scorer: ImageTextScorer, shown: Tensor, nouns: list[str]) -> Tensor:
    own = torch.arange(len(nouns)).repeat_interleave(len(shown) // len(nouns))
    return ranks(scorer.similarity(shown, [plain_caption(noun) for noun in nouns]), own)


def name_figures(
    draw: Draw, scorer: ImageTextScorer, *, images: int, seed: int
) -> dict[str, Estimate]:
    """Shares of drawn and of true images whose name is found, of held-out and of trained names.

    Args:
        draw: images of prompts.
        scorer: ranks the names.
        images: of each name.
        seed: of the true renders.
    """
    figures = {}
    for label, split in SETS.items():
        found = {
            f"{label}_name": drawn_ranks(draw, scorer, split, images=images),
            f"{label}_true": true_ranks(scorer, split, images=images, seed=seed),
        }
        for name, places in found.items():
            for top in TOP:
                by_noun = (places < top).float().unflatten(0, (-1, images)).mean(1)
                figures[f"{name}_top{top}"] = mean_estimate(by_noun.tolist(), within=SHARE)
    count = len(names_of("held_out", default_pack()))
    for top in TOP:
        chance = top / count
        figures[f"name_chance_top{top}"] = Estimate(chance, chance, chance, count)
    return figures


def true_images(
    nouns: list[str], split: Split, images: int, *, seed: int
) -> Float[Tensor, "b h w 3"]:
    """Renders of the nouns' objects over white, from the sides that prompts name."""
    pack = default_pack()
    objects: dict[str, list[str]] = {noun: [] for noun in nouns}
    for name in pack.names(split):
        if pack.info(name).noun in objects:
            objects[pack.info(name).noun].append(name)
    found = []
    for k, noun in enumerate(nouns):
        rng = np.random.default_rng([seed, k])
        for i in range(images):
            middle = list(SIDES.values())[i % len(SIDES)]
            cameras = orbit_cameras(
                1,
                elevation_deg=ELEVATION_DEG,
                distance=DISTANCE,
                fovy_deg=FOVY_DEG,
                height=IMAGE_SIZE,
                width=IMAGE_SIZE,
                azimuth_start_deg=middle + rng.uniform(-SPREAD_DEG, SPREAD_DEG),
            )
            mesh = pack.load(objects[noun][i % len(objects[noun])])
            rgb, _ = render_rgb(ObjectGeometry(mesh), cameras, background=np.ones(3))
            found.append(torch.from_numpy(rgb[0]).float())
    return torch.stack(found)

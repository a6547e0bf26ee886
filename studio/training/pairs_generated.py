"""Pairs for InstructPix2Pix that the prior itself draws, as the authors make theirs.

Captions are those of one toybox object before and after an edit; images come from the prior with
shared attention (:mod:`image_tools.editing.edit_training_pairs`). The filter's space is not CLIP's:
it is the judge's. An image is the probabilities of kind, colour and pattern that the judge sees, a
caption the ones of the object that it names; so the directional similarity asks that what changes
is what the words change, and the similarity of images that the rest stays.

Two thirds of a recoloured object's probabilities stay the same, so pairs that are perfect have an
image similarity of 2/3, and the threshold is below it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.editing.edit_training_configs import PairFilterConfig, PairGenerationConfig
from image_tools.editing.edit_training_pairs import draw_pairs, kept_pairs, score_pairs
from scenes.toybox.captions import plain_caption
from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES, PATTERNS
from scenes.toybox.scene import SceneSpec
from scenes.toybox.splits import combinations, sample_object
from studio.evaluation.judge import Judge
from studio.evaluation.prompt_parsing import parse_prompt
from studio.training.pair_cache import PairCache, PairWriter
from studio.training.pairs import EDITS, change_object, instruct

__all__ = ["GeneratedPairConfig", "JudgeScorer", "generate_pairs"]

NAMES = ("recolor", "pattern", "replace")
VIEWS = ("front view", "left side view", "right side view", "back view")
CHUNK = 5  # edits between two saves


@dataclass(frozen=True)
class GeneratedPairConfig:
    """What the prior is asked for, and what is kept of it."""

    edits: int = 30
    """Pairs of captions; 0 for none."""
    seed: int = 42
    """Seed of captions, words and noise."""
    generation: PairGenerationConfig = field(
        default_factory=lambda: PairGenerationConfig(
            samples=4, steps=25, guidance_scale=(4.0, 7.0), sharing="words_and_pixels"
        )
    )
    """How pairs are drawn; fewer and weaker than published, as the pocket prior wants it."""
    filter: PairFilterConfig = field(
        default_factory=lambda: PairFilterConfig(image=0.5, text=0.6, direction=0.5, keep=2)
    )
    """Which are kept, in the judge's space."""


class JudgeScorer:
    """Images and captions as probabilities of kind, colour and pattern."""

    def __init__(self, judge: Judge) -> None:
        """Score with ``judge``."""
        self.judge = judge

    def embed_images(self, images: Float[Tensor, "n h w 3"]) -> Float[Tensor, "n d"]:
        """What the judge sees."""
        seen = self.judge(images)
        return torch.cat([seen.kind, seen.color, seen.pattern], 1)

    def embed_texts(self, texts: list[str]) -> Float[Tensor, "n d"]:
        """What captions name.

        Raises:
            ValueError: a caption names no single object.
        """
        rows = []
        for text in texts:
            spec = parse_prompt(text)
            if spec is None:
                raise ValueError(f"{text!r} names no single toybox object, which the judge needs.")
            parts = (
                (KIND_NAMES, spec.kind),
                (COLOR_NAMES, spec.color),
                (PATTERNS, spec.pattern),
            )
            row = [float(name == own) for names, own in parts for name in names]
            rows.append(torch.tensor(row))
        return torch.stack(rows)


def generate_pairs(
    folder: Path,
    config: GeneratedPairConfig,
    prior: DiffusionPrior,
    judge: Judge,
    *,
    log: Callable[[str], None],
) -> PairCache:
    """Draw and filter pairs into ``folder``, continuing where an earlier call stopped.

    Args:
        folder: created if absent.
        config: how many, and how.
        prior: draws the images.
        judge: filters them.
        log: called after each chunk, with how many were kept.

    Raises:
        ConfigError: ``folder`` holds pairs of other settings or of another prior.
    """
    scorer, generation = JudgeScorer(judge), config.generation
    room = config.edits * min(config.filter.keep, generation.samples)
    key = [asdict(config), prior.fingerprint]
    writer = PairWriter(folder, pairs=room, size=prior.image_size, key=key)
    while writer.drawn < config.edits:
        rows = range(writer.drawn, min(writer.drawn + CHUNK, config.edits))
        for k in rows:
            rng = np.random.default_rng([config.seed, k])
            name = _draw_name(rng)
            old = sample_object(rng, combinations(held_out=False), individual_parity=0)
            new, words = change_object(name, old, rng, individual_parity=0)
            view = VIEWS[int(rng.integers(len(VIEWS)))]
            said = [f"{plain_caption(SceneSpec((spec,)))}, {view}" for spec in (old, new)]
            drawn = draw_pairs(prior, *said, generation, seed=config.seed * 1_000_003 + k)
            for row in kept_pairs(score_pairs(scorer, drawn, *said), config.filter).tolist():
                instruction = instruct(words, SceneSpec((old,)), 0, rng)
                writer.add(drawn[row].numpy(), instruction, name, (old, new))
        writer.save(rows.stop)
        kept = len(writer.state["names"])
        log(f"generated {rows.stop}/{config.edits} edits, kept {kept} pairs")
    return PairCache(folder)


def _draw_name(rng: np.random.Generator) -> str:
    shares = np.array([EDITS[name] for name in NAMES])
    return NAMES[int(rng.choice(len(NAMES), p=shares / shares.sum()))]

"""Prompts with images among their words from the toybox, for KOSMOS-G's instruction tuning.

The authors caption pictures, find what the nouns mean, cut it out, and put the cut-out after the
noun or in its place (arXiv 2310.02992). Here the renderer knows all of that: each noun of a caption
gets the square around its object's visible pixels, with or without its surroundings.

    a red mug left of a blue house    ->    a red mug <i> left of a blue <i>

An object of which too little is seen keeps its word alone. Sample k of a batch depends on the
batch's generator only.

    batches = instruction_batches(InterleavedSampler(InterleavedConfig()), batch_size=8)
    train_instructions(prior, model, batches, InstructionTuningConfig(), folder, identity="toybox")
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from image_tools.personalization.kosmos_g_training import InstructionBatch, InstructionBatches
from image_tools.personalization.kosmos_g_words import IMAGE_MARK
from scenes.toybox.catalog import KINDS
from scenes.toybox.samples import SampleConfig, ToySampler
from scenes.toybox.scene import SceneSpec
from studio.training.buffer_views import draw_view

__all__ = [
    "InterleavedConfig",
    "InterleavedSample",
    "InterleavedSampler",
    "cut_out",
    "instruction_batches",
    "noun_spans",
]

MANY_PAIRS = SampleConfig(pairs=0.5)
MARGIN = 1.1


@dataclass(frozen=True)
class InterleavedConfig:
    """What the samples are made of."""

    samples: SampleConfig = field(default_factory=lambda: MANY_PAIRS)
    """Pictures and captions; half of the scenes have two objects, so that images must be told
    apart."""
    image_size: int = 64
    """Rows and columns of the images in prompts."""
    cut_out: float = 0.5
    """Share of images whose surroundings are white."""
    drop_noun: float = 0.5
    """Share of images that stand in the place of their noun; the others follow it."""
    drop_caption: float = 0.5
    """Share of prompts that are their images alone."""
    min_pixels: int = 40
    """Visible pixels below which an object has no image."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("cut_out", "drop_noun", "drop_caption"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)} - expected 0 to 1.")
        for name in ("image_size", "min_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} - expected at least 1.")


@dataclass(frozen=True)
class InterleavedSample:
    """One picture and a prompt for it."""

    rgb: np.ndarray
    """``[h, w, 3]`` in 0..1."""
    prompt: str
    images: np.ndarray
    """``[n, s, s, 3]`` in 0..1, one for each ``<i>`` of the prompt."""
    caption: str
    """The prompt before images came into it."""


class InterleavedSampler:
    """An endless source of samples; the same generator state gives the same sample."""

    def __init__(self, config: InterleavedConfig) -> None:
        """Fix the distribution."""
        self.config = config
        self._views = ToySampler(config.samples)

    def sample(self, rng: np.random.Generator) -> InterleavedSample:
        """Draw one picture with its prompt."""
        config = self.config
        scene, said, view = draw_view(self._views, rng)
        rgb, instance = view.rgb[0], view.instance[0]
        seen = [int((instance == k + 1).sum()) for k in range(len(scene.objects))]
        shown = [k for k, count in enumerate(seen) if count >= config.min_pixels]
        images = [self._image(rgb, instance == k + 1, rng) for k in shown]
        spans = noun_spans(said, scene)
        prompt = self._prompt(said, [spans[k] for k in shown], rng)
        size = config.image_size
        stacked = np.stack(images) if images else np.zeros((0, size, size, 3), np.float32)
        return InterleavedSample(rgb, prompt, stacked, said)

    def _image(self, rgb: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        is_cut = rng.random() < self.config.cut_out
        shown = np.where(mask[..., None], rgb, 1.0) if is_cut else rgb
        return cut_out(shown, mask, self.config.image_size)

    def _prompt(self, said: str, spans: list[tuple[int, int]], rng: np.random.Generator) -> str:
        """The caption with a mark for each span."""
        if spans and rng.random() < self.config.drop_caption:
            return " ".join([IMAGE_MARK] * len(spans))
        prompt, done = "", 0
        for begin, end in spans:
            kept = begin if rng.random() < self.config.drop_noun else end
            before = said[done:kept].rstrip()
            prompt += f"{before} {IMAGE_MARK}" if before else IMAGE_MARK
            done = end
        return prompt + said[done:]


def instruction_batches(sampler: InterleavedSampler, batch_size: int) -> InstructionBatches:
    """Batches for ``train_instructions``."""

    def batch(_: int, generator: torch.Generator) -> InstructionBatch:
        seed = int(torch.randint(2**62, (1,), generator=generator))
        rng = np.random.default_rng(seed)
        samples = [sampler.sample(rng) for _ in range(batch_size)]
        return InstructionBatch(
            torch.from_numpy(np.stack([sample.rgb for sample in samples])).float(),
            tuple(sample.prompt for sample in samples),
            tuple(torch.from_numpy(sample.images).float() for sample in samples),
        )

    return batch


def noun_spans(said: str, scene: SceneSpec) -> list[tuple[int, int]]:
    """Where a caption names each object of its scene: begin and end of the noun.

    Raises:
        ValueError: an object's noun is not in the caption.
    """
    spans: list[tuple[int, int]] = []
    for one in scene.objects:
        nouns = sorted((KINDS[one.kind].noun, *KINDS[one.kind].synonyms), key=len, reverse=True)
        begin = spans[-1][1] if spans else 0
        found = re.compile(rf"\b({'|'.join(map(re.escape, nouns))})\b").search(said, begin)
        if found is None:
            raise ValueError(
                f"the caption '{said}' does not name its {one.kind}. Expected one of "
                f"{', '.join(nouns)}, in the order of the scene's objects."
            )
        spans.append(found.span())
    return spans


def cut_out(rgb: np.ndarray, mask: np.ndarray, size: int) -> np.ndarray:
    """The square around a mask ``[h, w]``, a little larger, as ``[size, size, 3]``; white outside
    of the picture."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    side = int(np.ceil(MARGIN * max(bottom - top, right - left)))
    first = np.array([(top + bottom - side) // 2, (left + right - side) // 2])
    padded = np.pad(rgb, ((side, side), (side, side), (0, 0)), constant_values=1.0)
    row, column = first + side
    square = torch.from_numpy(padded[row : row + side, column : column + side].astype(np.float32))
    pixels = square.movedim(-1, 0)[None]
    resized = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return resized[0].movedim(0, -1).numpy()

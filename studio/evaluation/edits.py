"""How well an edit model follows instructions: edited renders against the judge and the true edit.

Of each edit that changes one object:

    done     the judge sees the new colour, pattern or kind
    kept     it sees the old value of what should stay: the kind, or of another kind the colour
    shape    overlap of the silhouettes before and after; of recolouring and patterns alone
    outside  mean absolute change of pixels that neither the image before nor the true one after
             covers, in 0..1; outside_db is their peak signal-to-noise ratio

``true_done`` and ``true_kept`` are what the judge sees in the true images after the edit, the most
that can be reached; ``source_done`` is what it sees before it, the baseline.

    report = evaluate_edits(prior, unet, load_judge(), cases, EditEvalConfig())
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.configs import DdimConfig
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.sampling import sample_images
from image_tools.editing.instruct_pix2pix import InstructPix2PixPrior
from studio.evaluation.controls import silhouette_iou
from studio.evaluation.intervals import (
    SHARE,
    Estimate,
    json_values,
    mean_estimate,
    wilson,
)
from studio.evaluation.judge import Judge
from studio.evaluation.view_sets import foreground

__all__ = ["CHANGED", "HEADS", "EditCases", "EditEvalConfig", "EditReport", "evaluate_edits"]

HEADS = ("kind", "color", "pattern")
CHANGED = {"recolor": "color", "pattern": "pattern", "replace": "kind"}
KEPT = {"recolor": "kind", "pattern": "kind", "replace": "color"}
KEEPS_SHAPE = ("recolor", "pattern")
LEAST_ERROR = 1e-6
"""Mean squared error that counts as none: 60 dB."""
Log = Callable[[str], None]


@dataclass(frozen=True)
class EditEvalConfig:
    """How many edits, and how they are made."""

    samples: int = 96
    """Edits."""
    steps: int = 25
    """Denoising steps."""
    guidance_scale: float = 5.0
    """s_T, how much the instruction counts."""
    image_scale: float = 1.5
    """s_I, how much the image counts."""
    batch_size: int = 16
    """Edits at a time."""
    seed: int = 5
    """Seed of edits and noise."""


@dataclass(frozen=True)
class EditCases:
    """What is asked for, and what is true of it."""

    sources: Float[Tensor, "n h w 3"]
    targets: Float[Tensor, "n h w 3"]
    """The true images after the edit."""
    instructions: tuple[str, ...]
    names: tuple[str, ...]
    """Which edit, one of :data:`CHANGED`."""
    labels: np.ndarray
    """``[n, 2, 3]`` index of kind, colour and pattern, before and after."""

    def __len__(self) -> int:
        return len(self.instructions)


@dataclass(frozen=True)
class EditReport:
    """Figures with confidence intervals, and the edited images."""

    figures: dict[str, Estimate]
    images: Float[Tensor, "n h w 3"]
    config: EditEvalConfig

    def as_dict(self) -> dict:
        """Plain JSON values without the images."""
        figures = {name: json_values(figure) for name, figure in self.figures.items()}
        return {"figures": figures, "config": asdict(self.config)}


def evaluate_edits(
    prior: DiffusionPrior,
    unet: nn.Module,
    judge: Judge,
    cases: EditCases,
    config: EditEvalConfig,
    *,
    log: Log = lambda _: None,
) -> EditReport:
    """Edit the sources and measure."""
    images = _edited(prior, unet, cases, config, log)
    names, figures = np.array(cases.names), {}
    seen = {
        who: _seen(judge, shown)
        for who, shown in (("", images), ("true_", cases.targets), ("source_", cases.sources))
    }
    for name in CHANGED:
        among = names == name
        if not among.any():
            continue
        for who, values in seen.items():
            figures[f"{name}_{who}done"] = _share(values, cases, CHANGED[name], among)
            if who != "source_":
                figures[f"{name}_{who}kept"] = _share(values, cases, KEPT[name], among)
        if name in KEEPS_SHAPE:
            before = foreground(cases.sources[among]).numpy()
            overlaps = silhouette_iou(images[among], before)
            figures[f"{name}_shape"] = mean_estimate(overlaps, within=SHARE)
    covered = foreground(cases.sources) | foreground(cases.targets)
    free = (~covered).sum((1, 2)).clamp(min=1)

    def outside(change: Float[Tensor, "n h w 3"]) -> Float[Tensor, " n"]:
        return change.mean(-1).masked_fill(covered, 0.0).sum((1, 2)) / free

    change = images - cases.sources
    figures["outside"] = mean_estimate(outside(change.abs()).tolist(), within=SHARE)
    errors = outside(change.square()).clamp(min=LEAST_ERROR)
    figures["outside_db"] = mean_estimate((-10.0 * errors.log10()).tolist())
    return EditReport(figures, images, config)


def _seen(judge: Judge, images: Float[Tensor, "n h w 3"]) -> np.ndarray:
    """``[n, 3]`` index of kind, colour and pattern that the judge sees."""
    verdicts = judge(images)
    return torch.stack([getattr(verdicts, head).argmax(1) for head in HEADS], 1).numpy()


def _share(seen: np.ndarray, cases: EditCases, head: str, among: np.ndarray) -> Estimate:
    """How often the judge sees what the true edit has."""
    column = HEADS.index(head)
    right = (seen[:, column] == cases.labels[:, 1, column])[among]
    return wilson(int(right.sum()), len(right))


def _edited(
    prior: DiffusionPrior, unet: nn.Module, cases: EditCases, config: EditEvalConfig, log: Log
) -> Float[Tensor, "n h w 3"]:
    ddim = DdimConfig(steps=config.steps, guidance_scale=config.guidance_scale)
    editor = InstructPix2PixPrior(prior, unet, image_scale=config.image_scale)
    images = []
    for first in range(0, len(cases), config.batch_size):
        rows = slice(first, min(first + config.batch_size, len(cases)))
        generators = [
            torch.Generator().manual_seed(config.seed * 1_000_003 + k)
            for k in range(rows.start, rows.stop)
        ]
        editor.show(cases.sources[rows].to(prior.device))
        instructions = cases.instructions[rows]
        images.append(sample_images(editor, instructions, generators=generators, config=ddim).cpu())
        log(f"edited {rows.stop}/{len(cases)}")
    return torch.cat(images)

"""How well controlled priors obey: samples against the buffers that they were asked to follow.

Nothing is estimated by a network where a plain measure will do:

    silhouette   overlap of what differs from the border's colour with the object's true mask
    edge_f1      Canny edges of a sample against the geometry's, one pixel apart at most
    kind, color  what the judge sees, because control must not cost the prompt

Figures are named after the control, such as ``depth_silhouette``; ``plain_silhouette`` is that of
the same prompts and noise without control, the baseline, and ``true_silhouette`` that of the true
renders, the most that the measure can say. ``depth_gain`` is the paired difference of silhouettes
to the baseline.

    report = evaluate_controls(prior, {"depth": controlled}, load_judge(), cases, config)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from image_tools.configs import DdimConfig
from image_tools.control.annotators import canny_edges
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.sampling import sample_images
from studio.evaluation.intervals import (
    SHARE,
    Estimate,
    difference_estimate,
    json_values,
    mean_estimate,
    wilson,
)
from studio.evaluation.judge import Judge
from studio.evaluation.view_sets import foreground

__all__ = [
    "ControlCases",
    "ControlEvalConfig",
    "ControlReport",
    "color_transfer",
    "edge_f1",
    "evaluate_controls",
    "silhouette_iou",
]

CANNY_LOW, CANNY_HIGH = 100.0, 200.0
NEAR = np.ones((3, 3), dtype=bool)
Log = Callable[[str], None]
Controlled = Callable[[slice], NoisePrior]
"""The prior that follows the conditions of some cases."""


@dataclass(frozen=True)
class ControlEvalConfig:
    """How many samples, and how they are drawn."""

    samples: int = 64
    """Cases, each sampled with and without control."""
    steps: int = 25
    """Denoising steps."""
    guidance_scale: float = 5.0
    """s in eps_u + s (eps_c - eps_u)."""
    batch_size: int = 16
    """Samples at a time."""
    seed: int = 5
    """Seed of cases and noise."""


@dataclass(frozen=True)
class ControlCases:
    """What is asked for, and what is true of it."""

    prompts: tuple[str, ...]
    masks: np.ndarray
    """``[n, h, w]`` bool, the objects."""
    edges: np.ndarray
    """``[n, h, w]`` bool, outlines and creases."""
    labels: np.ndarray
    """``[n, 2]`` index of kind and colour."""
    renders: Float[Tensor, "n h w 3"]
    """The true images."""

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class ControlReport:
    """Figures with confidence intervals, and the images behind them."""

    figures: dict[str, Estimate]
    images: dict[str, Float[Tensor, "n h w 3"]]
    """Samples by control; "plain" and "true" among them."""
    config: ControlEvalConfig

    def as_dict(self) -> dict:
        """Plain JSON values without the images."""
        figures = {name: json_values(figure) for name, figure in self.figures.items()}
        return {"figures": figures, "config": asdict(self.config)}


def evaluate_controls(
    prior: NoisePrior,
    controlled: Mapping[str, Controlled],
    judge: Judge,
    cases: ControlCases,
    config: ControlEvalConfig,
    *,
    log: Log = lambda _: None,
) -> ControlReport:
    """Sample with each control and without any, from the same noise, and measure."""
    images = {"plain": _sample(lambda _: prior, cases, config, log)}
    images |= {name: _sample(one, cases, config, log) for name, one in controlled.items()}
    images["true"] = cases.renders
    figures: dict[str, Estimate] = {}
    overlaps = {name: silhouette_iou(drawn, cases.masks) for name, drawn in images.items()}
    for name, drawn in images.items():
        figures[f"{name}_silhouette"] = mean_estimate(overlaps[name], within=SHARE)
        figures[f"{name}_edge_f1"] = mean_estimate(edge_f1(drawn, cases.edges), within=SHARE)
        verdicts = judge(drawn)
        for column, head in enumerate(("kind", "color")):
            seen = getattr(verdicts, head).argmax(1).numpy()
            right = int((seen == cases.labels[:, column]).sum())
            figures[f"{name}_{head}"] = wilson(right, len(cases))
    for name in controlled:
        pairs = (overlaps[name], overlaps["plain"])
        figures[f"{name}_gain"] = difference_estimate(*pairs, within=SHARE)
    return ControlReport(figures, images, config)


def color_transfer(
    controlled: Controlled,
    judge: Judge,
    cases: ControlCases,
    wanted: np.ndarray,
    config: ControlEvalConfig,
    *,
    log: Log = lambda _: None,
) -> Estimate:
    """Share of samples in which the judge sees the colour ``wanted`` [n], which no prompt names."""
    seen = judge(_sample(controlled, cases, config, log)).color.argmax(1).numpy()
    return wilson(int((seen == wanted).sum()), len(cases))


def silhouette_iou(images: Float[Tensor, "n h w 3"], masks: np.ndarray) -> list[float]:
    """Overlap of each image's foreground with its true mask, 0 to 1."""
    seen = foreground(images).numpy()
    union = (seen | masks).sum((1, 2))
    return ((seen & masks).sum((1, 2)) / np.maximum(union, 1)).tolist()


def edge_f1(images: Float[Tensor, "n h w 3"], edges: np.ndarray) -> list[float]:
    """Agreement of each image's Canny edges with the true ones, 0 to 1."""
    scores = []
    for image, true in zip(images, edges, strict=True):
        found = canny_edges(image.numpy() * 255.0, low=CANNY_LOW, high=CANNY_HIGH)
        near_true = ndimage.binary_dilation(true, NEAR)
        near_found = ndimage.binary_dilation(found, NEAR)
        right, met = (found & near_true).sum(), (true & near_found).sum()
        precision, recall = right / max(found.sum(), 1), met / max(true.sum(), 1)
        scores.append(float(2.0 * precision * recall / max(precision + recall, 1e-9)))
    return scores


def _sample(
    controlled: Controlled, cases: ControlCases, config: ControlEvalConfig, log: Log
) -> Float[Tensor, "n h w 3"]:
    ddim = DdimConfig(steps=config.steps, guidance_scale=config.guidance_scale)
    images = []
    for first in range(0, len(cases), config.batch_size):
        rows = slice(first, min(first + config.batch_size, len(cases)))
        generators = [
            torch.Generator().manual_seed(config.seed * 1_000_003 + k)
            for k in range(rows.start, rows.stop)
        ]
        prior, prompts = controlled(rows), cases.prompts[rows]
        images.append(sample_images(prior, prompts, generators=generators, config=ddim).cpu())
        log(f"sampled {rows.stop}/{len(cases)}")
    return torch.cat(images)

"""What the rows of the editing benchmark share: the prior, its sampler, and figures with intervals.

A row measures one tool over paired cases: the tool and a named baseline start from the same noise.
Each figure is a mean over cases with a 95 % interval (:mod:`studio.evaluation.intervals`), beside
the baseline's and the paired difference of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.configs import DdimConfig
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.sampling import sample_images
from studio.evaluation.intervals import (
    SHARE,
    Estimate,
    Range,
    difference_estimate,
    mean_estimate,
    without_interval,
)
from studio.evaluation.judge import Judge

__all__ = [
    "BYTES",
    "CASES",
    "CORRELATION",
    "Bench",
    "Figure",
    "Found",
    "Row",
    "Target",
    "figures_of",
    "with_targets",
]

CASES = 64
"""Cases of a common row when no number is asked for."""
BYTES, CORRELATION = (0.0, 255.0), (-1.0, 1.0)
"""What values differences of colours, and correlations and cosines, can have."""
SHOWN = 8
"""Cases of a row that its picture shows."""


@dataclass(frozen=True)
class Bench:
    """What tools are measured with."""

    prior: DiffusionPrior
    judge: Judge
    sampler: DdimConfig
    seed: int = 0
    batch_size: int = 8

    def generators(self, numbers: Sequence[int]) -> list[torch.Generator]:
        """The noise of cases by their numbers; the same for a tool and for its baseline."""
        return [torch.Generator().manual_seed(self.seed * 1_000_003 + k) for k in numbers]

    def images(
        self, prompts: Sequence[str], numbers: Sequence[int]
    ) -> Float[Tensor, "n height width 3"]:
        """Plain samples, the baseline of most rows."""
        images = []
        for start in range(0, len(prompts), self.batch_size):
            part = slice(start, start + self.batch_size)
            generators = self.generators(numbers[part])
            images.append(
                sample_images(self.prior, prompts[part], generators=generators, config=self.sampler)
            )
        return torch.cat(images)


@dataclass(frozen=True)
class Target:
    """What a figure should reach."""

    bar: float
    is_least: bool = True
    """Whether the bar is the least that passes, not the most."""

    def passed(self, value: float) -> bool:
        """Whether a value reaches the bar."""
        return value >= self.bar if self.is_least else value <= self.bar

    @property
    def text(self) -> str:
        """Such as "at least 0.8"."""
        return f"at {'least' if self.is_least else 'most'} {self.bar:g}"


@dataclass(frozen=True)
class Figure:
    """One measured quantity."""

    name: str
    ours: Estimate
    baseline: Estimate | None = None
    difference: Estimate | None = None
    """Paired, ours less the baseline's."""
    target: str | None = None
    passed: bool | None = None


@dataclass
class Found:
    """Values by case, and pictures of the first cases."""

    columns: tuple[str, ...]
    """What the pictures of a case show."""
    known: Mapping[str, float] = field(default_factory=dict)
    """Baselines that need no measuring, such as the way that a thing goes which nothing moves."""
    ours: dict[str, list[float]] = field(default_factory=dict)
    baseline: dict[str, list[float]] = field(default_factory=dict)
    within: dict[str, Range] = field(default_factory=dict)
    """What values are possible."""
    figures: list[Figure] = field(default_factory=list)
    """Figures that come ready from an evaluation of its own."""
    labels: list[str] = field(default_factory=list)
    good: list[list[bool]] = field(default_factory=list)
    pictures: list[list[Float[Tensor, "h w 3"]]] = field(default_factory=list)

    def add(
        self, values: Mapping[str, float | tuple[float, float]], *, within: Range = SHARE
    ) -> None:
        """A case's values; a pair is ours and the baseline's.

        Args:
            values: by the names of figures.
            within: what values are possible.
        """
        for name, value in values.items():
            self.within[name] = within
            ours, *other = value if isinstance(value, tuple) else (value,)
            self.ours.setdefault(name, []).append(float(ours))
            if other:
                self.baseline.setdefault(name, []).append(float(other[0]))

    def show(self, label: str, images: Sequence[Float[Tensor, "h w 3"]], *good: bool) -> None:
        """A case's pictures, if it is among the first ones; ``good`` marks the last of them."""
        if len(self.pictures) < SHOWN:
            self.labels.append(label)
            self.good.append([True] * (len(images) - len(good)) + list(good))
            self.pictures.append([image.clamp(0.0, 1.0) for image in images])


@dataclass(frozen=True)
class Row:
    """One tool on one task."""

    name: str
    about: str
    """What is done, in a sentence."""
    baseline: str
    """What stands beside it."""
    measure: Callable[[Bench, int], Found]
    """From the bench and the number of cases."""
    targets: Mapping[str, Target] = field(default_factory=dict)
    share: float = 1.0
    """Share of ``CASES`` that is measured when no number is asked for; rows that cost much."""
    weights: Path | None = None
    """Trained weights that it needs beside the prior."""

    def cases(self, asked: int | None) -> int:
        """As many cases as are asked for; by itself a share of ``CASES``."""
        return round(self.share * CASES) if asked is None else asked

    @property
    def missing(self) -> str | None:
        """Why it cannot be measured, if it cannot."""
        if self.weights is None or self.weights.exists():
            return None
        return f"the weights {self.weights.name} are not trained yet"


def figures_of(found: Found) -> list[Figure]:
    """The figures of a row, in the order in which its values were added."""
    return [*found.figures, *(_figure(found, name) for name in found.ours)]


def _figure(found: Found, name: str) -> Figure:
    values, within = found.ours[name], found.within[name]
    ours = mean_estimate(values, within=within)
    if name in found.known:
        known = found.known[name]
        return Figure(name, ours, without_interval(known, ours.n), ours.less(known))
    if name not in found.baseline:
        return Figure(name, ours)
    others = found.baseline[name]
    difference = difference_estimate(values, others, within=within)
    return Figure(name, ours, mean_estimate(others, within=within), difference)


def with_targets(figures: Iterable[Figure], targets: Mapping[str, Target]) -> tuple[Figure, ...]:
    """Figures and whether they reach the bars of now, whatever the bars were before."""
    marked = []
    for figure in figures:
        target = targets.get(figure.name)
        passed = target and target.passed(figure.ours.value)
        marked.append(replace(figure, target=target and target.text, passed=passed))
    return tuple(marked)

"""The fixed prompts on which methods are compared, and the table that compares them.

One prompt for each kind of the toybox: 24 in a colour that training shows it in, 8 in a colour that
no training image shows it in. Assets are independent draws, their views are not, so intervals are
bootstrapped over assets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from scenes.toybox.captions import plain_caption
from scenes.toybox.objects import ObjectSpec
from scenes.toybox.scene import SceneSpec
from scenes.toybox.splits import is_held_out
from studio.evaluation.assets import AssetMetrics
from studio.evaluation.intervals import Estimate, bootstrap_mean

__all__ = ["METRICS", "SUITE", "SuitePrompt", "markdown", "plain_summary", "summary"]


@dataclass(frozen=True)
class SuitePrompt:
    """One prompt of the suite."""

    kind: str
    color: str

    @property
    def prompt(self) -> str:
        """Such as "a purple duck"."""
        return plain_caption(SceneSpec((ObjectSpec(self.kind, self.color),)))

    @property
    def held_out(self) -> bool:
        """Whether training never shows this combination."""
        return is_held_out(self.kind, self.color)


_SEEN = (
    ("fish", "orange"),
    ("rabbit", "brown"),
    ("turtle", "green"),
    ("car", "red"),
    ("train", "black"),
    ("airplane", "yellow"),
    ("sailboat", "blue"),
    ("apple", "red"),
    ("donut", "pink"),
    ("ice_cream", "white"),
    ("hamburger", "brown"),
    ("cupcake", "purple"),
    ("table", "black"),
    ("lamp", "yellow"),
    ("sofa", "purple"),
    ("castle", "white"),
    ("lighthouse", "red"),
    ("tree", "green"),
    ("cactus", "yellow"),
    ("teapot", "blue"),
    ("umbrella", "orange"),
    ("robot", "green"),
    ("snowman", "white"),
    ("teddy_bear", "pink"),
)
_HELD_OUT = (
    ("duck", "purple"),
    ("penguin", "orange"),
    ("rocket", "red"),
    ("mushroom", "red"),
    ("chair", "green"),
    ("house", "pink"),
    ("flower", "purple"),
    ("mug", "orange"),
)
SUITE: tuple[SuitePrompt, ...] = tuple(SuitePrompt(*pair) for pair in _SEEN + _HELD_OUT)
"""The 32 prompts, seen combinations first."""

METRICS: dict[str, str] = {
    "kind_accuracy": "kind",
    "color_accuracy": "colour",
    "both_accuracy": "both",
    "janus": "Janus",
    "silhouette_iou": "IoU",
    "chamfer": "Chamfer",
    "view_consistency": "consistency",
    "saturation_error": "saturation",
}
"""Metrics of the table with their headings."""
GROUPS = ("seen", "held out", "all")


def summary(results: Mapping[str, AssetMetrics | None]) -> dict[str, dict[str, Estimate]]:
    """Means with 95 % intervals by group ("seen", "held out", "all") and metric.

    Args:
        results: metrics by prompt; None for a run that failed. A failed run counts as 0 in the
            accuracies and as absent elsewhere.
    """
    held_out = {item.prompt: item.held_out for item in SUITE}
    found: dict[str, dict[str, Estimate]] = {}
    for group in GROUPS:
        members = [m for p, m in results.items() if group == "all" or _group(held_out[p]) == group]
        figures = {}
        for name in METRICS:
            values = [_value(metrics, name) for metrics in members]
            present = [value for value in values if value is not None]
            if present:
                figures[name] = bootstrap_mean(present)
        found[group] = figures
    return found


def _group(held_out: bool) -> str:
    return GROUPS[int(held_out)]


def _value(metrics: AssetMetrics | None, name: str) -> float | None:
    if metrics is None:
        return 0.0 if name.endswith("accuracy") else None
    return getattr(metrics, name)


def markdown(results: Mapping[str, AssetMetrics | None]) -> str:
    """The summary and one line for each prompt, as a Markdown table."""
    heading = "| | n | " + " | ".join(METRICS.values()) + " |"
    lines = [heading, "|---|---|" + "---|" * len(METRICS)]
    for group, figures in summary(results).items():
        if figures:
            n = max(figure.n for figure in figures.values())
            cells = [str(figures[name]) if name in figures else "–" for name in METRICS]
            lines.append(f"| **{group}** | {n} | " + " | ".join(cells) + " |")
    held_out = {item.prompt: item.held_out for item in SUITE}
    for prompt, metrics in results.items():
        values = [_value(metrics, name) for name in METRICS]
        cells = ["–" if value is None else f"{value:.2f}" for value in values]
        mark = " (held out)" if held_out[prompt] else ""
        state = " (failed)" if metrics is None else ""
        lines.append(f"| {prompt}{mark}{state} | 1 | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plain_summary(results: Mapping[str, AssetMetrics | None]) -> dict[str, dict[str, dict]]:
    """:func:`summary` as JSON values."""
    return {
        group: {name: asdict(figure) for name, figure in figures.items()}
        for group, figures in summary(results).items()
    }

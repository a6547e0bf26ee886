"""Trained adapters of the pocket prior: instructed edits, ControlNets, Uni-ControlNet.

Each is measured by the evaluation that ends its own training, on individuals that no training saw,
with as many cases as the other rows have. The baseline of controls is the same prompt from the same
noise without control, that of edits what the judge says of the image before. Rows whose weights are
not there are skipped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.editing.bench import Bench, Figure, Found, Row, Target
from image_tools.pocket.paths import POCKET_FOLDER
from studio.evaluation.controls import ControlEvalConfig
from studio.evaluation.edits import EditEvalConfig
from studio.evaluation.intervals import Estimate
from studio.progress import say
from studio.training.adapters_control import measure_control
from studio.training.adapters_edit import measure_edits
from studio.training.adapters_uni import FILE_NAME, measure_uni

__all__ = ["ADAPTER_ROWS", "edit_eval_config", "paired_figures"]

WEIGHTS = POCKET_FOLDER.parent
CONTROLS = ("depth", "normal", "edge", "seg")


def paired_figures(
    estimates: Mapping[str, Estimate], baseline_of: Callable[[str], str]
) -> list[Figure]:
    """Figures of an evaluation, each beside the one that is its baseline.

    Args:
        estimates: by name.
        baseline_of: name of a figure's baseline, there or not; its own name for none.
    """
    others = {name: baseline_of(name) for name in estimates}
    baselines = {other for name, other in others.items() if other != name}
    return [
        Figure(name, estimate, estimates.get(others[name]) if others[name] != name else None)
        for name, estimate in estimates.items()
        if name not in baselines
    ]


def edit_eval_config(bench: Bench, count: int) -> EditEvalConfig:
    """How instructed edits are evaluated: with the sampler of the bench."""
    return EditEvalConfig(
        samples=count,
        steps=bench.sampler.steps,
        guidance_scale=bench.sampler.guidance_scale,
        batch_size=bench.batch_size,
    )


def _measure_edits(bench: Bench, count: int) -> Found:
    config = edit_eval_config(bench, count)
    with tempfile.TemporaryDirectory() as work:
        report = measure_edits(config, bench.prior, WEIGHTS / "pocket-ip2p", Path(work), log=say)
    figures = paired_figures(report.figures, lambda name: name.replace("_done", "_source_done"))
    return _shown(figures, {"edited": report.images})


@dataclass(frozen=True)
class _Control:
    """One ControlNet."""

    name: str

    def measure(self, bench: Bench, count: int) -> Found:
        """Obedience beside the uncontrolled prior."""
        with tempfile.TemporaryDirectory() as work:
            report = measure_control(
                self.name,
                _control_config(bench, count),
                bench.prior,
                WEIGHTS / f"pocket-control-{self.name}",
                Path(work),
                log=say,
            )
        figures = paired_figures(report.figures, _without_control)
        return _shown(figures, report.images)


def _measure_uni(bench: Bench, count: int) -> Found:
    with tempfile.TemporaryDirectory() as work:
        report = measure_uni(
            _control_config(bench, count),
            bench.prior,
            WEIGHTS / "pocket-uni" / FILE_NAME,
            Path(work),
            log=say,
        )
    figures = paired_figures(report.figures, _without_control)
    return _shown(figures, report.images)


def _control_config(bench: Bench, count: int) -> ControlEvalConfig:
    return ControlEvalConfig(
        samples=count,
        steps=bench.sampler.steps,
        guidance_scale=bench.sampler.guidance_scale,
        batch_size=bench.batch_size,
    )


def _without_control(name: str) -> str:
    """plain_silhouette for depth_silhouette, and plain_look_color for look_color."""
    if name == "look_color":
        return "plain_look_color"
    return f"plain_{name.partition('_')[2]}"


def _shown(figures: list[Figure], images: Mapping[str, Float[Tensor, "n h w 3"]]) -> Found:
    found = Found(tuple(images), figures=figures)
    for number, pictures in enumerate(zip(*images.values(), strict=True)):
        found.show(f"case {number}", [torch.as_tensor(picture) for picture in pictures])
    return found


def _obeyed(name: str) -> dict[str, Target]:
    targets = {f"{name}_silhouette": Target(0.8), f"{name}_color": Target(0.9)}
    return {**targets, f"{name}_edge_f1": Target(0.6)} if name == "edge" else targets


_EDITED = {
    "recolor_done": Target(0.8),
    "recolor_shape": Target(0.8),
    "outside_db": Target(25.0),
}
_UNI = {"all_silhouette": Target(0.8), "look_color": Target(0.7)}
_UNCONTROLLED = "the same prompt from the same noise without control"

ADAPTER_ROWS = (
    Row(
        "instruct-pix2pix",
        "Renders are edited by instructions.",
        "the image before",
        _measure_edits,
        _EDITED,
        weights=WEIGHTS / "pocket-ip2p",
    ),
    *(
        Row(
            f"controlnet-{name}",
            f"Samples follow the condition {name} of unseen individuals.",
            _UNCONTROLLED,
            _Control(name).measure,
            _obeyed(name),
            weights=WEIGHTS / f"pocket-control-{name}",
        )
        for name in CONTROLS
    ),
    Row(
        "uni-controlnet",
        "Samples follow one map, all maps, and the colour of another image.",
        _UNCONTROLLED,
        _measure_uni,
        _UNI,
        weights=WEIGHTS / "pocket-uni",
    ),
)

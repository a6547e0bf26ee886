"""Systems side by side: their figures with intervals, differences by prompt, and tables of them.

Two assets of one prompt are no independent draws, and neither are the views of one asset. So seeds
are averaged for each prompt first, and intervals are over prompts (:mod:`intervals`). Systems are
compared by the differences on the prompts that both have, which cancels how hard a prompt is.
Nothing here needs torch: everything is read from `run.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from studio.evaluation.intervals import (
    ANY,
    LEAST,
    POSITIVE,
    SHARE,
    Estimate,
    Range,
    difference_estimate,
    json_values,
    mean_estimate,
)
from studio.run_folder import RunFolder

__all__ = [
    "BIASES",
    "COSTS",
    "METRICS",
    "RANGES",
    "Pair",
    "Result",
    "comparison_markdown",
    "differences",
    "estimate",
    "own_count",
    "pair_differences",
    "plain_summary",
    "result_of",
    "systems_of",
]

METRICS: dict[str, str] = {
    "kind_accuracy": "kind ↑",
    "color_accuracy": "colour ↑",
    "both_accuracy": "both ↑",
    "janus": "Janus ↓",
    "silhouette_iou": "IoU ↑",
    "chamfer": "Chamfer ↓",
    "view_consistency": "consistency ↑",
    "saturation_abs": "saturation ↓",
}
"""What systems are compared by, measured on the asset, with headings that say what is better."""
BIASES: dict[str, str] = {"saturation_error": "saturation bias"}
"""Signed errors of the asset: 0 is best, so their means and differences rank nothing."""
COSTS: dict[str, str] = {
    "seconds": "seconds",
    "peak_memory_gib": "GiB",
    "denoiser_evaluations": "evaluations",
}
"""What it cost: optimisation time, highest memory of the process, rows sent through denoisers."""
RANGES: dict[str, Range] = {
    **dict.fromkeys(("kind_accuracy", "color_accuracy", "both_accuracy"), SHARE),
    **dict.fromkeys(("janus", "silhouette_iou", "view_consistency"), SHARE),
    **dict.fromkeys(("chamfer", "saturation_abs", *COSTS), POSITIVE),
}
"""What values a figure can have; any where it is not named."""
DECIMALS = {"chamfer": 3}
"""Decimals of a figure in tables, where they are not 2: good surfaces are within 0.05."""
MIN_PROMPTS = 6
"""Fewer prompts give no interval to rely on: six coins fall alike in 3 % of throws."""
FAILURES = ("failed", "diverged")
"""States of a run that was tried and gave nothing: it counts as wrong."""
GROUPS = ("seen", "held out", "all")
OWN_COUNT = (
    "A figure that has an n of its own is the mean of fewer assets than its row: kinds without a "
    "front have no Janus score, and what failed has no shape."
)
NO_INTERVAL = (
    f"Fewer than {LEAST} prompts give no interval, and neither do equal values: they tell nothing "
    "of how prompts differ. A share that is 0 or 1 of every prompt has the interval of as many "
    "outcomes, for 1.00 of few prompts is not certain."
)


@dataclass(frozen=True)
class Result:
    """One asset of a comparison, or one that could not be made."""

    system: str
    """What made it: the name of a preset."""
    prompt: str
    """What was asked for."""
    seed: int
    """Seed of the run."""
    status: str
    """As in `run.json`, such as ``done``; ``waiting`` for one that never had its turn."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """Those of METRICS and BIASES that apply."""
    costs: Mapping[str, float | None] = field(default_factory=dict)
    """Those of COSTS that are known."""
    run: str | None = None
    """The run folder."""
    prior: str | None = None
    """Fingerprint of the prior's weights."""

    @property
    def measured(self) -> bool:
        """Whether there was something to measure."""
        return any(value is not None for value in self.metrics.values())

    @property
    def failed(self) -> bool:
        """Whether it was tried in vain, unlike what was never begun, stopped or not measured."""
        return self.status in FAILURES and not self.measured

    def value(self, name: str) -> float | None:
        """A metric or a cost; what failed counts as 0 in accuracies and as absent elsewhere."""
        if name.endswith("accuracy") and self.failed:
            return 0.0
        return self.metrics.get(name, self.costs.get(name))


@dataclass(frozen=True)
class Pair:
    """Two systems whose difference answers a question."""

    question: str
    """What the difference tells."""
    system: str
    """One of them."""
    to: str
    """The one it is compared with."""


def result_of(run: RunFolder, *, system: str | None = None) -> Result:
    """The result that stands in a run's `run.json`.

    Raises:
        ConfigError: this is no run folder.
    """
    info = run.read_info()
    found = info.get("evaluation") or {}
    seconds, memory = info.get("seconds") or {}, info.get("peak_memory_bytes")
    return Result(
        system=system or str(info.get("method", "run")),
        prompt=str(info.get("prompt", "")),
        seed=int(info.get("seed", 0)),
        status=str(info.get("status")),
        metrics={name: _figure_of(found, name) for name in (*METRICS, *BIASES)},
        costs={
            "seconds": seconds.get("optimise"),
            "peak_memory_gib": round(memory / 2**30, 3) if memory else None,
            "denoiser_evaluations": info.get("denoiser_evaluations"),
        },
        run=str(run.path),
        prior=_prior_of(info.get("weights") or {}),
    )


def _prior_of(weights: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The scene's prior or else the first stage's; a subject's weights differ from run to run."""
    shared = [found for found in weights.values() if not found.get("subject")]
    first = weights.get("prior") or (shared[0] if shared else {})
    return first.get("fingerprint")


def _figure_of(found: Mapping[str, float | None], name: str) -> float | None:
    """A figure of an evaluation; older ones have the signed saturation error only."""
    if name == "saturation_abs" and name not in found:
        signed = found.get("saturation_error")
        return None if signed is None else abs(signed)
    return found.get(name)


def systems_of(results: Sequence[Result]) -> list[str]:
    """The systems, in the order in which they first appear."""
    return list(dict.fromkeys(result.system for result in results))


def _by_prompt(results: Sequence[Result], name: str) -> dict[str, float]:
    """The mean over seeds for each prompt that has the metric."""
    values: dict[str, list[float]] = {}
    for result in results:
        value = result.value(name)
        if value is not None:
            values.setdefault(result.prompt, []).append(float(value))
    return {prompt: sum(found) / len(found) for prompt, found in values.items()}


def estimate(
    results: Sequence[Result], name: str, *, ranges: Mapping[str, Range] = RANGES
) -> Estimate | None:
    """Mean and 95 % interval of a metric; None where no result has it.

    Args:
        results: of one system.
        name: of the metric.
        ranges: what values metrics can have, if not any.
    """
    means = list(_by_prompt(results, name).values())
    return mean_estimate(means, within=ranges.get(name, ANY)) if means else None


def differences(
    results: Sequence[Result], name: str, *, to: str, ranges: Mapping[str, Range] = RANGES
) -> dict[str, Estimate]:
    """What each other system has more of a metric than ``to``, paired over prompts."""
    base = _by_prompt([r for r in results if r.system == to], name)
    within, found = ranges.get(name, ANY), {}
    for system in systems_of(results):
        own = _by_prompt([r for r in results if r.system == system], name)
        pairs = [(value, base[prompt]) for prompt, value in own.items() if prompt in base]
        if system != to and pairs:
            found[system] = difference_estimate(*zip(*pairs, strict=True), within=within)
    return found


def pair_differences(results: Sequence[Result], pair: Pair) -> dict[str, Estimate]:
    """What ``pair.system`` has more of each metric than ``pair.to``; empty if one is absent."""
    both = [r for r in results if r.system in (pair.system, pair.to)]
    found = {name: differences(both, name, to=pair.to).get(pair.system) for name in METRICS}
    return {name: figure for name, figure in found.items() if figure is not None}


def _members(results: Sequence[Result], group: str, held_out: Callable[[str], bool]) -> list:
    if group == "all":
        return list(results)
    return [r for r in results if held_out(r.prompt) == (group == "held out")]


def plain_summary(results: Sequence[Result], held_out: Callable[[str], bool]) -> dict:
    """Means with intervals by system, group of prompts and metric, as JSON values."""
    found: dict[str, dict] = {}
    for system in systems_of(results):
        own = [r for r in results if r.system == system]
        found[system] = {}
        for group in GROUPS:
            members = _members(own, group, held_out)
            figures = {name: estimate(members, name) for name in (*METRICS, *BIASES, *COSTS)}
            found[system][group] = {name: json_values(f) for name, f in figures.items() if f}
    return found


# --- tables ---------------------------------------------------------------------------------------


def comparison_markdown(
    results: Sequence[Result], held_out: Callable[[str], bool], pairs: Sequence[Pair] = ()
) -> str:
    """Figures, paired differences to the first system and of pairs, and a line for each prompt.

    Args:
        results: of all systems.
        held_out: whether a prompt is one that training never showed.
        pairs: further comparisons; those of which a system is absent are left out.
    """
    systems = systems_of(results)
    figures = _figures_table(results, held_out)
    parts = [OWN_COUNT] if "(n " in figures else []
    parts += [NO_INTERVAL, figures]
    if len(systems) > 1:
        count = len(METRICS) * (len(systems) - 1)
        parts += [
            f"## Difference to {systems[0]}\n\nPaired over the prompts that both have, n where "
            "those are fewer than in another column; bold where the 95 % interval leaves out 0 "
            f"over at least {MIN_PROMPTS} prompts: by chance alone in about {0.05 * count:.1f} of "
            f"these {count} figures. An arrow says whether more or less is better.",
            _difference_table(results, systems[0]),
        ]
    shown = [pair for pair in pairs if pair_differences(results, pair)]
    if shown:
        parts += ["## Questions\n\nPaired and marked as above.", _pair_table(results, shown)]
    parts += [
        "## Prompts\n\nKind and colour accuracy over 8 views, means over seeds.",
        _prompt_table(results, systems, held_out),
    ]
    return "\n\n".join(parts) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _heading(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


def _figures_table(results: Sequence[Result], held_out: Callable[[str], bool]) -> str:
    figures = METRICS | BIASES
    lines = _heading(["system", "prompts", "n", *figures.values(), *COSTS.values()])
    for system in systems_of(results):
        own = [r for r in results if r.system == system]
        for group in GROUPS:
            members = _members(own, group, held_out)
            if not members:
                continue
            failed = sum(r.failed for r in members)
            count = f"{len(members)}" + (f" ({failed} failed)" if failed else "")
            cells = [_figure(estimate(members, name), name) for name in figures]
            cells += [_amount(estimate(members, name)) for name in COSTS]
            counts = [own_count(members, name) for name in (*figures, *COSTS)]
            cells = [cell + own for cell, own in zip(cells, counts, strict=True)]
            lines.append(_line([f"**{system}**", group, count, *cells]))
    return "\n".join(lines)


def _figure(found: Estimate | None, name: str) -> str:
    return "–" if found is None else found.text(DECIMALS.get(name, 2))


def own_count(members: Sequence[Result], name: str) -> str:
    """Such as `` (n 5)`` where only some of a row's assets have the figure."""
    own = sum(result.value(name) is not None for result in members)
    return "" if own in (0, len(members)) else f" (n {own})"


def _amount(found: Estimate | None) -> str:
    if found is None:
        return "–"
    return f"{found.value:,.0f}" if found.value >= 100 else f"{found.value:.2f}"


def _difference_table(results: Sequence[Result], first: str) -> str:
    lines = _heading(["system", *METRICS.values()])
    columns = {name: differences(results, name, to=first) for name in METRICS}
    for system in systems_of(results)[1:]:
        found = {name: columns[name][system] for name in METRICS if system in columns[name]}
        lines.append(_line([f"**{system}**", *_difference_cells(found)]))
    return "\n".join(lines)


def _pair_table(results: Sequence[Result], pairs: Sequence[Pair]) -> str:
    lines = _heading(["question", "systems", COSTS["denoiser_evaluations"], *METRICS.values()])
    for pair in pairs:
        cells = _difference_cells(pair_differences(results, pair))
        costs = [
            _amount(estimate([r for r in results if r.system == one], "denoiser_evaluations"))
            for one in (pair.system, pair.to)
        ]
        names = f"**{pair.system}** minus {pair.to}"
        lines.append(_line([pair.question, names, " / ".join(costs), *cells]))
    return "\n".join(lines)


def _difference_cells(found: Mapping[str, Estimate]) -> list[str]:
    """One for each metric, with its own n where it rests on fewer prompts than others."""
    most = max((figure.n for figure in found.values()), default=0)
    cells = []
    for name in METRICS:
        figure = found.get(name)
        own = f" (n {figure.n})" if figure and figure.n < most else ""
        cells.append(_difference(figure, name) + own)
    return cells


def _difference(found: Estimate | None, name: str) -> str:
    """Such as ``+0.12 [-0.03, +0.20]``, bold where it is certain."""
    if found is None:
        return "–"
    text = found.text(DECIMALS.get(name, 2), sign="+")
    certain = found.n >= MIN_PROMPTS and (found.low > 0 or found.high < 0)
    return f"**{text}**" if certain else text


def _prompt_table(
    results: Sequence[Result], systems: Sequence[str], held_out: Callable[[str], bool]
) -> str:
    lines = _heading(["prompt", *systems])
    for prompt in dict.fromkeys(r.prompt for r in results):
        cells = []
        for system in systems:
            own = [r for r in results if (r.system, r.prompt) == (system, prompt)]
            kind, color = estimate(own, "kind_accuracy"), estimate(own, "color_accuracy")
            failed = own and all(r.failed for r in own)
            cells.append(
                "failed" if failed
                else f"{kind.value:.2f} · {color.value:.2f}" if kind and color
                else "–"
            )  # fmt: skip
        lines.append(_line([prompt + (" (held out)" if held_out(prompt) else ""), *cells]))
    return "\n".join(lines)

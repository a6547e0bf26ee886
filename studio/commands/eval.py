"""`studio eval`: figures of finished runs, or of a text-to-image prior.

A run whose prompt names one toybox object is compared with that object; of any other run is said
what can be said without the truth. A prior is sampled and its gates are printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from studio.errors import ConfigError
from studio.evaluation.comparison import result_of
from studio.evaluation.tables import runs_table
from studio.progress import say
from studio.run_folder import RunFolder, glb_command, open_run

if TYPE_CHECKING:
    import torch

    from studio.evaluation.assets import AssetMetrics
    from studio.evaluation.intervals import Estimate
    from studio.evaluation.judge import Judge
    from studio.evaluation.priors import PriorReport, Request

__all__ = ["evaluate_and_note", "run"]

LEGEND = (
    "kind, color, both: share of 8 views in which the judge agrees with the prompt; janus: fronts "
    "too many, 0 to 1;\niou, chamfer: silhouettes and surfaces against true objects at the best "
    "turn; same: neighbouring views read alike;\nsatur.: how far colourfulness is from the true "
    "object's, bias: with its sign;\nmin, GiB, evals: time and memory of the optimisation, rows "
    "through denoisers."
)


def run(
    runs: Sequence[Path] = (),
    *,
    prior: Path | None = None,
    samples: int = 256,
    out: Path | None = None,
    as_json: bool = False,
) -> None:
    """Evaluate run folders, or a prior.

    Args:
        runs: run folders; their figures are also written to `run.json` under "evaluation".
        prior: folder of a prior in stock diffusers layout, or of a multi-view denoiser as
            `studio train pocket-mv` writes, instead of runs.
        samples: samples of training combinations, four to a set of views; half as many held-out
            ones come on top.
        out: where the samples and figures of a prior are written; `runs/prior-evaluation`.
        as_json: print JSON instead of tables.

    Raises:
        ConfigError: neither or both were given, or a folder is no run.
    """
    if bool(runs) == (prior is not None):
        raise ConfigError(
            "studio eval got "
            + ("both runs and a prior" if runs else "nothing to evaluate")
            + " - expected run folders, or --prior with the folder of a model."
        )
    if prior is not None:
        _evaluate_prior(prior, samples, out or Path("runs") / "prior-evaluation", as_json)
    else:
        _evaluate_runs([Path(path) for path in runs], as_json)


# --- runs -----------------------------------------------------------------------------------------


def _evaluate_runs(paths: list[Path], as_json: bool) -> None:
    folders = [open_run(path) for path in paths]  # refuse a wrong one before the work begins
    from studio.evaluation.judge import load_judge

    judge, found = load_judge(), []
    for folder in folders:
        say(f"Evaluating {folder.path}")
        found.append(evaluate_and_note(folder, judge))
    results = [result_of(folder) for folder in folders]
    if as_json:
        rows = [
            {"run": r.run, "method": r.system, "seed": r.seed, **m.as_dict(), **r.costs}
            for r, m in zip(results, found, strict=True)
        ]
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    sys.stdout.write(runs_table(results) + "\n" + LEGEND + "\n")
    for folder, metrics in zip(folders, found, strict=True):
        if metrics.source == "field" and metrics.kind is not None:
            sys.stdout.write(_without_asset(folder))
    for metrics in found:
        if metrics.kind is None:
            sys.stdout.write("\n" + _without_truth(metrics) + "\n")


def evaluate_and_note(run: RunFolder, judge: Judge) -> AssetMetrics:
    """Measure the asset of a run, note the figures in `run.json` and show them in its report.

    Raises:
        CheckpointError: there is neither an asset nor a checkpoint.
        StorageError: the run folder cannot be written.
    """
    from studio.evaluation.assets import evaluate_run
    from studio.report import write_report

    metrics = evaluate_run(run, judge)
    run.update_info({"evaluation": metrics.as_dict()})
    if run.report_path.is_file():
        write_report(run)
    return metrics


def _without_asset(run: RunFolder) -> str:
    """Why figures of the shape are absent, and how they are had."""
    return (
        f"no iou, no chamfer: {run.path} has no GLB, whose surface they compare; write it with: "
        f"{glb_command(run)}\n"
    )


def _without_truth(metrics: AssetMetrics) -> str:
    def votes(counts: dict[str, int]) -> str:
        return ", ".join(f"{name} {count}" for name, count in list(counts.items())[:3])

    return (
        f"{metrics.prompt!r} names no single toybox object, so it has no true object to compare "
        f"with.\n  The judge, which knows the toybox only, reads: {votes(metrics.seen_kinds)}; "
        f"{votes(metrics.seen_colors)}.\n  Neighbouring views read alike: "
        f"{metrics.view_consistency:.2f}; colourfulness {metrics.chroma:.2f}; it covers "
        f"{metrics.coverage:.0%} of the image."
    )


# --- priors ---------------------------------------------------------------------------------------


def _evaluate_prior(path: Path, samples: int, out: Path, as_json: bool) -> None:
    if samples < 1:
        raise ConfigError(f"--samples is {samples} - expected at least 1; the gates ask for 256.")
    import torch

    from studio.evaluation.judge import load_judge
    from studio.previews import save_png
    from studio.run_folder import storage_errors, write_atomic

    judge = load_judge()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    is_denoiser = (path / "unet").is_dir() and not (path / "model_index.json").exists()
    measure = _measure_view_sets if is_denoiser else _measure_images
    fingerprint, figures, text, sheet = measure(path, samples, judge, device)
    sheet_path, json_path = out / "samples.png", out / "evaluation.json"
    values = {"prior": str(path), "fingerprint": fingerprint, **figures}
    with storage_errors(out, "write"):
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(json_path, json.dumps(values, indent=2) + "\n")
    save_png(sheet_path, sheet, {"prior": str(path)})
    if as_json:
        sys.stdout.write(json.dumps({**values, "sheet": str(sheet_path)}) + "\n")
        return
    sys.stdout.write(text + f"sheet      {sheet_path}\nfigures    {json_path}\n")


def _measure_images(
    path: Path, samples: int, judge: Judge, device: torch.device
) -> tuple[str, dict, str, torch.Tensor]:
    """Fingerprint, figures, table and contact sheet of a text-to-image prior."""
    from image_tools.diffusion.loading import load_folder
    from studio.evaluation.image_text import IMAGE_TEXT_WEIGHTS, load_image_text, training_command
    from studio.evaluation.priors import PriorEvalConfig, evaluate_prior

    scorer = load_image_text() if IMAGE_TEXT_WEIGHTS.exists() else None
    if scorer is None:
        say(f"Names of real objects are not ranked: make the score with {training_command()}")
    prior = load_folder(path, device)
    config = PriorEvalConfig(samples=samples)
    report = evaluate_prior(prior, judge, config, scorer=scorer, log=say)
    return prior.fingerprint, report.as_dict(), prior_table(report), _sheet(report)


def _measure_view_sets(
    path: Path, samples: int, judge: Judge, device: torch.device
) -> tuple[str, dict, str, torch.Tensor]:
    """The same of a multi-view prior, four samples to a set."""
    from image_tools.configs import PocketMultiViewPriorConfig
    from image_tools.diffusion.loading import load_prior
    from studio.evaluation.sheets import judged_sheet
    from studio.evaluation.view_sets import ViewSetEvalConfig, evaluate_view_sets

    prior = load_prior(PocketMultiViewPriorConfig(path=str(path)), device)
    config = ViewSetEvalConfig(sets=max(1, samples // 4))
    report = evaluate_view_sets(prior, judge, config, log=say)
    chosen = range(0, len(report.requests), max(1, len(report.requests) // 32))
    sheet = judged_sheet(
        [image for k in chosen for image in report.images[k]],
        [seen.replace("_", " ").replace(", ", "\n") for k in chosen for seen in report.seen[k]],
        [right for k in chosen for right in report.right[k]],
        columns=8,
    )
    return prior.fingerprint, report.as_dict(), figures_table(report.figures), sheet


def _sheet(report: PriorReport):
    from studio.evaluation.sheets import judged_sheet

    step = max(1, len(report.images) // 96)
    chosen = range(0, len(report.images), step)
    return judged_sheet(
        [report.images[k] for k in chosen],
        [sample_label(report.requests[k], report.seen[k]) for k in chosen],
        [report.right[k] for k in chosen],
    )


def sample_label(request: Request, seen: str) -> str:
    """What was asked for, from where, and what the judge sees instead if it disagrees."""
    asked = f"{request.spec.color} {request.spec.kind}"
    things = [asked] if seen == asked else [asked, f"?{seen}"]
    # Colour and kind on lines of their own: together they are wider than an image of 64 px.
    first, *other = (thing.replace(" ", "\n", 1).replace("_", " ") for thing in things)
    return "\n".join([first, f"{request.view}{' *' if request.held_out else ''}", *other])


def prior_table(report: PriorReport) -> str:
    """Figures, intervals and gates."""
    from studio.evaluation.priors import GATES

    return figures_table(report.figures, GATES)


def figures_table(figures: Mapping[str, Estimate], gates: Mapping[str, float] | None = None) -> str:
    """Figures with their intervals, and what some of them must reach."""
    gates = gates or {}
    heading = f"{'figure':<18}{'value':>8}{'95 % interval':>20}{'n':>6}"
    lines = [heading + (f"{'gate':>8}" if gates else "")]
    for name, figure in figures.items():
        interval = f"{figure.low:.3f} .. {figure.high:.3f}" if figure.has_interval else "-"
        line = f"{name:<18}{figure.value:>8.3f}{interval:>20}{figure.n:>6}"
        if name in gates:
            verdict = "pass" if figure.value >= gates[name] else "MISSED"
            line += f"{gates[name]:>8.2f}  {verdict}"
        lines.append(line)
    return "\n".join(lines) + "\n"

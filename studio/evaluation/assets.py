"""All metrics of one asset: those that need its true object, and those that do not.

metrics = evaluate_run(open_run("runs/a-red-mushroom/demo-s0-..."), load_judge())
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from renderers.mesh import Mesh
from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES
from scenes.toybox.objects import OBJECT_RADIUS
from studio.errors import ConfigError
from studio.evaluation.judge import Judge, Verdicts
from studio.evaluation.metrics import (
    chroma,
    janus,
    prompt_agreement,
    saturation_error,
    view_consistency,
)
from studio.evaluation.metrics_geometry import best_yaw_iou, chamfer, visible_points
from studio.evaluation.prompt_parsing import parse_prompt
from studio.evaluation.truth import N_POINTS, TrueObject, true_object
from studio.evaluation.views import (
    Views,
    eval_cameras,
    normalized,
    render_field,
    render_mesh,
)
from studio.export.read import load_asset
from studio.run_folder import RunFolder

__all__ = ["AssetMetrics", "asset_glb", "evaluate_mesh", "evaluate_run", "evaluate_views"]

N_VIEWS = 8


@dataclass(frozen=True)
class AssetMetrics:
    """Figures of one asset over 8 views at elevation 15; None where they do not apply."""

    prompt: str
    """What was asked for."""
    source: str
    """``glb``, or ``field`` for a run without an exported asset."""
    kind: str | None
    """Kind that the prompt names, None if it names no single toybox object."""
    color: str | None
    """Colour that the prompt names."""
    seen_kinds: dict[str, int]
    """The judge's first choice, with the number of views."""
    seen_colors: dict[str, int]
    """The same for colours."""
    view_consistency: float
    """Whether neighbouring views read alike, 0 to 1."""
    chroma: float
    """Mean of max(rgb) - min(rgb) over the object."""
    coverage: float
    """Share of the image that the object covers."""
    kind_accuracy: float | None = None
    """Share of views in which the judge names the kind of the prompt."""
    color_accuracy: float | None = None
    """Share of views in which it names the colour of the prompt."""
    both_accuracy: float | None = None
    """Share of views in which it names both."""
    janus: float | None = None
    """Fronts too many, 0 to 1; None for kinds without a face."""
    silhouette_iou: float | None = None
    """Agreement of silhouettes at the best turn, 0 to 1."""
    yaw_deg: float | None = None
    """That turn; 0 faces the front."""
    chamfer: float | None = None
    """Distance of the surfaces at the best turn, in radii of the object."""
    saturation_error: float | None = None
    """Chroma minus the true object's; positive is over-saturated."""
    saturation_abs: float | None = None
    """Its amount, which means over assets may be compared by: there + and - do not cancel."""

    def as_dict(self) -> dict:
        """Plain JSON values, rounded."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


def _counts(chosen: torch.Tensor, names: tuple[str, ...]) -> dict[str, int]:
    return dict(Counter(names[i] for i in chosen.tolist()).most_common())


def evaluate_views(views: Views, prompt: str, source: str, verdicts: Verdicts) -> AssetMetrics:
    """What can be said without a true object."""
    spec = parse_prompt(prompt)
    return AssetMetrics(
        prompt=prompt,
        source=source,
        kind=spec.kind if spec else None,
        color=spec.color if spec else None,
        seen_kinds=_counts(verdicts.kind.argmax(1), KIND_NAMES),
        seen_colors=_counts(verdicts.color.argmax(1), COLOR_NAMES),
        view_consistency=view_consistency(verdicts),
        chroma=chroma(views.rgb, views.mask),
        coverage=float(views.mask.mean()),
    )


def _with_prompt(
    metrics: AssetMetrics, views: Views, verdicts: Verdicts, truth: TrueObject
) -> AssetMetrics:
    """Add what the judge says about prompt and fronts."""
    agreement = prompt_agreement(verdicts, truth.spec)
    saturation = saturation_error(views.rgb, views.mask, truth.views.rgb, truth.views.mask)
    return replace(
        metrics,
        kind_accuracy=float(agreement.kind.float().mean()),
        color_accuracy=float(agreement.color.float().mean()),
        both_accuracy=float(agreement.both.float().mean()),
        janus=None if truth.front is None else janus(verdicts.front, truth.front).score,
        saturation_error=saturation,
        saturation_abs=abs(saturation),
    )


def evaluate_mesh(mesh: Mesh, prompt: str, judge: Judge) -> AssetMetrics:
    """All metrics of a coloured mesh.

    Raises:
        EmptyGeometry: the mesh has no surface.
    """
    mesh = normalized(mesh)
    views = render_mesh(mesh, eval_cameras(N_VIEWS))
    verdicts = judge(views.rgb)
    metrics = evaluate_views(views, prompt, "glb", verdicts)
    spec = parse_prompt(prompt)
    if spec is None:
        return metrics
    truth = true_object(spec, judge, n_views=N_VIEWS)
    unit = replace(mesh, v_pos=mesh.v_pos / OBJECT_RADIUS)
    points = visible_points(unit, N_POINTS, torch.Generator().manual_seed(0))
    match = best_yaw_iou(views.mask, truth.masks)
    return replace(
        _with_prompt(metrics, views, verdicts, truth),
        silhouette_iou=match.iou,
        yaw_deg=match.yaw_deg,
        chamfer=chamfer(points, truth.points),
    )


def asset_glb(run: RunFolder) -> Path | None:
    """The GLB of a run's last export, if it has one; any other where nothing was noted."""
    noted = (run.read_info().get("export") or {}).get("files")
    if noted is not None:
        path = run.asset_dir / noted.get("glb", "")
        return path if path.is_file() else None
    files = sorted(run.asset_dir.glob("*.glb"))
    return files[0] if files else None


def evaluate_run(run: RunFolder, judge: Judge, *, device: str = "cpu") -> AssetMetrics:
    """All metrics of a run: of its GLB, or of its newest checkpoint if nothing was exported.

    The shape of a field is not compared: it has no surface before export.

    Raises:
        ConfigError: this is no run folder, or its prompt is missing.
        CheckpointError: there is neither an asset nor a checkpoint.
    """
    prompt = run.read_info().get("prompt")
    if not isinstance(prompt, str):
        raise ConfigError(f"{run.info_path} has no prompt - expected a run of studio run.")
    glb = asset_glb(run)
    if glb is not None:
        return evaluate_mesh(load_asset(glb), prompt, judge)
    from studio.stages import load_stage

    stage = load_stage(run, device)
    views = render_field(stage.renderer, eval_cameras(N_VIEWS).to(device))
    views = Views(views.rgb.cpu(), views.mask.cpu())
    verdicts = judge(views.rgb)
    metrics = evaluate_views(views, prompt, "field", verdicts)
    spec = parse_prompt(prompt)
    if spec is None:
        return metrics
    return _with_prompt(metrics, views, verdicts, true_object(spec, judge, n_views=N_VIEWS))

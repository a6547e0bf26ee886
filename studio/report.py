"""The report of a run: one HTML file that needs no server, no network and no other file.

The viewer's script, the GLB, the film and all pictures are inside. ``write_gallery`` lays several
runs side by side, with links to their own reports.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from studio.config_types import members
from studio.images.configs import ImageTaskConfig
from studio.metrics_log import read_metrics
from studio.personalize_configs import PersonalizeConfig
from studio.progress import format_seconds
from studio.report_charts import line_chart
from studio.report_evaluation import evaluation_section
from studio.report_page import data_uri, fill_page
from studio.report_pictures import picture_section
from studio.report_subject import subject_section
from studio.run_folder import RunFolder, storage_errors, write_atomic
from studio.scene_file import read_yaml
from studio.suggestions import command
from studio.task_configs import tasks_of

__all__ = ["data_uri", "write_gallery", "write_report"]

_HERE = Path(__file__).parent
VIEWER_SCRIPT = _HERE / "vendor" / "model-viewer" / "model-viewer-umd.min.js"
MAX_PREVIEWS = 8
# Columns of the metrics that are no curves.
NO_CURVES = {"step", "stage", "seconds"}
TASKS_WITHOUT_ASSET = tuple(
    task for cls in (*members(ImageTaskConfig), PersonalizeConfig) for task in tasks_of(cls)
)
COLOURS = {"charts": "texture", "patches": "texture", "vertex": "per vertex"}


def write_report(run: RunFolder, out: Path | None = None) -> Path:
    """Write ``report.html`` of one run; parts that do not exist (yet) are left out.

    Args:
        run: the run folder.
        out: the file; in the run folder when None.

    Raises:
        ConfigError: this is no run folder.
        StorageError: the file cannot be written.
    """
    from studio.evaluation.assets import asset_glb  # torch, which a gallery does without

    info, glb = run.read_info(), asset_glb(run)
    target = out or run.report_path
    sections = [
        _hero(run, info, glb, target.parent),
        picture_section(run),
        evaluation_section(info.get("evaluation") or {}),
        _pictures(run),
        subject_section(run, info),
        _previews(run, info),
        _curves(run),
        _settings(run, info),
    ]
    script = _viewer_script() if glb else ""
    page = fill_page(
        title=str(info.get("prompt") or run.path.name),
        subtitle=run.path.name,
        body="\n".join(section for section in sections if section),
        footer=_footer(info),
        script=script,
    )
    return _write(target, page)


def write_gallery(runs: Sequence[RunFolder], out: Path) -> Path:
    """Write one page of cards for several runs, each linked to its own report.

    Raises:
        ConfigError: one of them is no run folder.
        StorageError: the file cannot be written.
    """
    cards = "\n".join(_card(run, out.parent) for run in runs)
    body = (
        f'<p class="kicker">{len(runs)} runs</p><h1>Gallery</h1><div class="gallery">{cards}</div>'
    )
    page = fill_page(title="Gallery", subtitle="gallery", body=body, footer="", script="")
    return _write(out, page)


def _write(target: Path, page: str) -> Path:
    """Write the page whole or not at all."""
    with storage_errors(target, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, page)
    return target


def _viewer_script() -> str:
    """The viewer's code, in a form that cannot end or escape its own script element."""
    code = VIEWER_SCRIPT.read_text(encoding="utf-8")
    return (
        "<script>" + code.replace("</script", "<\\/script").replace("<!--", "<\\!--") + "</script>"
    )


# --- one run --------------------------------------------------------------------------------------


def _hero(run: RunFolder, info: dict[str, Any], glb: Path | None, home: Path) -> str:
    """Viewer, prompt, key figures and files; without an asset, the error instead."""
    prompt = html.escape(str(info.get("prompt", "")))
    about = (
        f'<div class="about"><p class="kicker">{html.escape(str(info.get("method", "run")))}</p>'
        f"<h1>{prompt}</h1>{_chips(info)}{_facts(info)}{_files(run, info, home)}</div>"
    )
    if glb is None:
        is_whole = info.get("task") in TASKS_WITHOUT_ASSET and info.get("status") == "done"
        missing = "" if is_whole else _error(info)
        return f"{missing}<section>{about}</section>"
    buttons = "".join(
        f'<button type="button" data-orbit="{orbit}">{name}</button>'
        for name, orbit in (
            ("Front", "0deg 80deg"),
            ("Left", "90deg 80deg"),
            ("Back", "180deg 80deg"),
            ("Right", "270deg 80deg"),
            ("Spin", "auto"),
        )
    )
    viewer = (
        f'<model-viewer src="{data_uri(glb)}" alt="{prompt}" camera-controls auto-rotate '
        'auto-rotate-delay="600" rotation-per-second="24deg" camera-orbit="25deg 76deg 110%" '
        'shadow-intensity="0.9" shadow-softness="0.8" exposure="1.05" interaction-prompt="none" '
        'touch-action="pan-y"></model-viewer>'
    )
    return (
        f'<section class="hero"><div class="card viewer">{viewer}<div class="turns">{buttons}'
        f"</div></div>{about}</section>"
    )


def _error(info: dict[str, Any]) -> str:
    """Why there is no asset."""
    text = info.get("error") or f"This run is {info.get('status', 'unfinished')}: no asset yet."
    return (
        '<section class="card error"><p><b>No asset</b></p>'
        f"<p>{html.escape(str(text))}</p></section>"
    )


def _chips(info: dict[str, Any]) -> str:
    """Seed, status, soundness of the GLB."""
    export = info.get("export") or {}
    chips = [("", f"seed {info.get('seed', '?')}")]
    if "steps_done" in info:
        chips.append(("", f"{info['steps_done']:,} steps"))
    status = str(info.get("status", "unknown"))
    chips.append(("good" if status == "done" else "bad", status))
    if "problems" in export:
        found = len(export["problems"])
        chips.append(("bad", f"GLB: {found} problems") if found else ("good", "GLB is sound"))
    items = "".join(f'<li class="{kind}">{html.escape(text)}</li>' for kind, text in chips)
    return f'<ul class="chips">{items}</ul>'


def _facts(info: dict[str, Any]) -> str:
    """Key figures, those that are known."""
    export, seconds = info.get("export") or {}, info.get("seconds") or {}
    facts: list[tuple[str, str, str]] = []
    if seconds:
        facts.append(("time", format_seconds(sum(seconds.values())), ""))
    if info.get("peak_memory_bytes"):
        facts.append(("peak memory", f"{info['peak_memory_bytes'] / 2**30:.1f}", "GiB"))
    if export:
        facts.append(("triangles", f"{export['n_faces']:,}", ""))
        facts.append(("colours", COLOURS.get(export["appearance"], export["appearance"]), ""))
        if export.get("silhouette_iou") is not None:
            facts.append(("surface fits render", f"{100 * export['silhouette_iou']:.0f}", "%"))
    items = "".join(
        f"<div><dt>{html.escape(name)}</dt>"
        f"<dd>{html.escape(value)} <small>{unit}</small></dd></div>"
        for name, value, unit in facts
    )
    return f'<dl class="facts">{items}</dl>' if items else ""


def _files(run: RunFolder, info: dict[str, Any], home: Path) -> str:
    """Links to the files of the last export, the GLB first, and of the turntable."""
    noted = (info.get("export") or {}).get("files")
    paths = [
        path
        for path in run.asset_dir.glob("asset.*")
        if noted is None or path.name in noted.values()
    ]
    paths.sort(key=lambda path: (path.suffix != ".glb", path.name))
    paths += sorted(run.renders_dir.glob("turntable.*"))
    links = [
        f'<a class="{"main" if path.suffix == ".glb" else ""}" download '
        f'href="{_link(path, home)}">{html.escape(path.name)}<small>{_size(path)}</small></a>'
        for path in paths
    ]
    return f'<div class="files">{"".join(links)}</div>' if links else ""


def _pictures(run: RunFolder) -> str:
    """Film and contact sheet."""
    film, sheet = run.renders_dir / "turntable.mp4", run.renders_dir / "contact_sheet.png"
    parts = []
    if film.is_file():
        parts.append(
            f'<figure class="card"><video src="{data_uri(film)}" autoplay loop muted playsinline '
            'title="Click to stop and go"></video>'
            "<figcaption>Turntable of the asset</figcaption></figure>"
        )
    if sheet.is_file():
        parts.append(
            f'<figure class="card"><img src="{data_uri(sheet)}" alt="Contact sheet of the views" '
            'loading="lazy"><figcaption>The asset beside the field it was made from</figcaption>'
            "</figure>"
        )
    if not parts:
        return ""
    single = " single" if len(parts) == 1 else ""
    return f'<h2>Views</h2><section class="pair{single}">{"".join(parts)}</section>'


def _previews(run: RunFolder, info: dict[str, Any]) -> str:
    """How the object, or what was taught, came to be: preview sheets, first to last."""
    paths = sorted(run.previews_dir.glob("step-*.png"))
    if len(paths) > MAX_PREVIEWS:
        last = len(paths) - 1
        paths = [paths[round(i * last / (MAX_PREVIEWS - 1))] for i in range(MAX_PREVIEWS)]
    figures = "".join(
        f'<figure class="card"><img src="{data_uri(path)}" alt="" loading="lazy">'
        f"<figcaption>step {int(path.stem.split('-')[-1]):,}</figcaption></figure>"
        for path in paths
    )
    if not figures:
        return ""
    note = "Rows are four views; columns colour, normal, depth, opacity, and what the prior sees."
    if info.get("task") in tasks_of(PersonalizeConfig):
        note = "Rows are the prompts of samples.prompts, each drawn from several noises."
    return f'<h2>How it came to be</h2><p>{note}</p><section class="strip">{figures}</section>'


def _curves(run: RunFolder) -> str:
    """One chart for each column of the metrics."""
    if not run.metrics_path.is_file():
        return ""
    rows = read_metrics(run.metrics_path)
    if not rows:
        return ""
    charts = []
    for name in rows[0]:
        pairs = [(float(row["step"]), _number(row[name])) for row in rows if row[name] != ""]
        if name in NO_CURVES or not pairs or any(value is None for _, value in pairs):
            continue
        steps, values = zip(*pairs, strict=True)
        charts.append(line_chart(steps, values, title=name.replace("_", " ")))
    return f'<h2>Curves</h2><section class="charts">{"".join(charts)}</section>' if charts else ""


def _settings(run: RunFolder, info: dict[str, Any]) -> str:
    """The resolved scene in foldable tables, and how to make the same again."""
    groups: list[tuple[str, Iterable[tuple[str, Any]]]] = []
    if run.resolved_path.is_file():
        tree, _ = read_yaml(run.resolved_path)
        stages = tree.pop("stages", [])
        plain = {key: value for key, value in tree.items() if not isinstance(value, dict)}
        groups.append(("scene", _leaves(plain)))
        groups += [(f"stage {stage.get('name', '')}", _leaves(stage)) for stage in stages]
        groups += [(key, _leaves(value)) for key, value in tree.items() if isinstance(value, dict)]
    environment = {
        key: info[key] for key in ("version", "git", "python", "packages") if key in info
    }
    groups.append(("environment", _leaves(environment)))
    folds = "".join(
        f"<details><summary>{html.escape(name)} <small>{len(rows)} settings</small></summary>"
        f"{_table(rows)}</details>"
        for name, rows in ((name, list(rows)) for name, rows in groups)
        if rows
    )
    again = f"# in the folder in which this run was started\n{_command(run, info)}"
    return (
        f'<h2>Settings</h2><section class="card">{folds}</section>'
        f'<h2>Make it again</h2><section class="card"><pre>{html.escape(again)}</pre></section>'
    )


def _command(run: RunFolder, info: dict[str, Any]) -> str:
    """What makes the same again where the run was started, from which its scene's paths count."""
    resolved, started_in = run.resolved_path, info.get("cwd")
    if started_in and resolved.resolve().is_relative_to(started_in):
        return command("run", resolved.resolve().relative_to(started_in))
    return command("run", resolved.resolve() if started_in else resolved)


def _leaves(tree: Any, key: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and plain values."""
    if isinstance(tree, dict) and tree:
        return [leaf for name, value in tree.items() for leaf in _leaves(value, f"{key}.{name}")]
    return [(key.lstrip("."), tree)]


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    """Keys and values."""
    cells = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(str(value))}</td></tr>"
        for key, value in rows
    )
    return f"<table>{cells}</table>"


def _footer(info: dict[str, Any]) -> str:
    """Who made the page."""
    version = html.escape(str(info.get("version") or ""))
    return f"Made by text-to-3d-studio {version}. Viewer: model-viewer, Apache-2.0."


# --- several runs ---------------------------------------------------------------------------------


def _card(run: RunFolder, home: Path) -> str:
    """A run in the gallery."""
    info = run.read_info()
    film, sheet = run.renders_dir / "turntable.mp4", run.renders_dir / "contact_sheet.png"
    if not sheet.is_file():  # of pictures
        sheet = run.path / "sheet.png"
    if film.is_file():
        picture = f'<video src="{data_uri(film)}" autoplay loop muted playsinline></video>'
    elif sheet.is_file():
        picture = f'<img src="{data_uri(sheet)}" alt="" loading="lazy">'
    elif previews := sorted(run.previews_dir.glob("*.png")):  # of what was trained
        picture = f'<img src="{data_uri(previews[-1])}" alt="" loading="lazy">'
    else:
        picture = f"<span>{html.escape(str(info.get('status', 'no pictures')))}</span>"
    prompt = html.escape(str(info.get("prompt") or run.path.name))
    if run.report_path.is_file():
        prompt = f'<a href="{_link(run.report_path, home)}">{prompt}</a>'
    note = f"{info.get('method', 'run')} · seed {info.get('seed', '?')} · {info.get('status', '')}"
    return (
        f'<article class="card"><div class="picture">{picture}</div><h3>{prompt}</h3>'
        f"<p>{html.escape(note)}</p></article>"
    )


# --- small things ---------------------------------------------------------------------------------


def _link(path: Path, home: Path) -> str:
    """A relative address that works wherever the folder is moved."""
    from urllib.parse import quote

    return quote(os.path.relpath(path, home).replace(os.sep, "/"))


def _size(path: Path) -> str:
    """Size of a file in words."""
    size = path.stat().st_size
    return f"{size / 2**20:.1f} MB" if size >= 2**20 else f"{max(1, size // 1024)} kB"


def _number(text: str) -> float | None:
    """The number in a cell of the metrics, or None for words."""
    try:
        return float(text)
    except ValueError:
        return None

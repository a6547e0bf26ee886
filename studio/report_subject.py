"""A run's subject in its report: photos, samples, pseudo views, and what they took."""

from __future__ import annotations

import html
from typing import Any

from studio.progress import format_seconds
from studio.report_page import data_uri
from studio.run_folder import RunFolder

__all__ = ["subject_section"]

SHEETS = {
    "photos": "The photos, as they were used",
    "samples": "What the weights of each training draw, with the same noise: without a view in the "
    "prompt, then from the front, the side and the back",
    "views": "Views of the shape, and what the full weights made of them",
}
NAMES = {
    "photos": "photos",
    "word_training": "learning the word",
    "class_images": "class images",
    "training": "training",
    "samples": "samples of partial and full weights",
    "views": "pseudo views",
    "second_training": "second training",
    "second_samples": "samples of multiview weights",
}


def subject_section(run: RunFolder, info: dict[str, Any]) -> str:
    """HTML, or nothing for a run without a subject."""
    figures = "".join(
        f'<figure class="card"><img src="{data_uri(path)}" alt="" loading="lazy">'
        f"<figcaption>{html.escape(text)}</figcaption></figure>"
        for name, text in SHEETS.items()
        if (path := run.subject_dir / "sheets" / f"{name}.png").is_file()
    )
    records = info.get("preparations") or {}
    if not figures and not records:
        return ""
    rows = "".join(_row(name, record) for name, record in records.items())
    head = "<tr><td>before the stages</td><td>time</td><td>denoiser evaluations</td></tr>"
    table = f'<section class="card"><table>{head}{rows}</table></section>' if rows else ""
    return f'<h2>The subject</h2><section class="pair single">{figures}</section>{table}'


def _row(name: str, record: dict[str, Any]) -> str:
    """One preparation."""
    rows = record.get("denoiser_evaluations")
    count = "unfinished" if rows is None else f"{rows:,}"
    return (
        f"<tr><td>{html.escape(NAMES.get(name, name))}</td>"
        f"<td>{format_seconds(record.get('seconds', 0.0))}</td><td>{count}</td></tr>"
    )

"""A run of pictures in its report: the sheets of what was drawn."""

from __future__ import annotations

import html

from studio.report_page import data_uri
from studio.run_folder import RunFolder

__all__ = ["picture_section"]

SHEETS = {
    "sheet": "All pictures, by seed",
    "word_maps": "Where the prior sees words in the finished pictures",
}


def picture_section(run: RunFolder) -> str:
    """HTML, or nothing for a run that made no pictures."""
    figures = "".join(
        f'<figure class="card"><img src="{data_uri(path)}" alt="" loading="lazy">'
        f"<figcaption>{html.escape(text)}</figcaption></figure>"
        for name, text in SHEETS.items()
        if (path := run.path / f"{name}.png").is_file()
    )
    return f'<h2>Pictures</h2><section class="pair single">{figures}</section>' if figures else ""

"""The frame of every page that the studio writes or serves: head, styles, theme switch."""

from __future__ import annotations

import html
import re
from pathlib import Path

__all__ = ["fill_page"]

TEMPLATE = Path(__file__).parent / "report_template.html"


def fill_page(*, title: str, subtitle: str, body: str, footer: str, script: str) -> str:
    """Fill the template; ``title`` and ``subtitle`` are plain text, the others HTML."""
    parts = {
        "title": html.escape(title),
        "subtitle": html.escape(subtitle),
        "body": body,
        "footer": footer,
        "viewer": script,
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)

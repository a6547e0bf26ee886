"""The frame of every page that the studio writes or serves: head, styles, theme switch, files."""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path

__all__ = ["data_uri", "fill_page"]

TEMPLATE = Path(__file__).parent / "report_template.html"
MEDIA = {
    ".glb": "model/gltf-binary",
    ".mp4": "video/mp4",
    ".gif": "image/gif",
    ".png": "image/png",
    ".jpg": "image/jpeg",
}


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


def data_uri(path: Path) -> str:
    """A file as a ``data:`` address."""
    return f"data:{MEDIA[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"

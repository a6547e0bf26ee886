"""What the furniture libraries say about their models: names, sizes, authors, licences.

A library's catalogue is a Java properties file in latin-1 with keys such as ``name#12``. The
licence of a model is what the licence file in its own folder says; models without such a file have
the licence of their library. A model whose licence is neither CC0 nor CC BY is left out.

    entries = read_catalog("Scopia", library)
"""

from __future__ import annotations

import html
import posixpath
import re
import zipfile
from dataclasses import dataclass

import numpy as np

from scenes.objects.errors import BrokenSource

__all__ = ["Entry", "Licence", "licence_of", "read_catalog", "work_of"]

CATALOG = "PluginFurnitureCatalog.properties"
_KEY = re.compile(r"(\w+)#(\d+)=(.*)")
_STATEMENT = re.compile(
    r"(?:released under|under the following license:|files? (?:is|are) under|content are under)"
    r"(?: the)? creative commons (zero|attribution)( 3\.0 united states)?",
    re.IGNORECASE,
)
_RESTRICTION = re.compile(r"share ?-?alike|non-?commercial|no ?-?deriv|fan ?art", re.IGNORECASE)
_MODEL_TITLE = re.compile(r'downloading "\s*(.*?)\s*"|About "(.*?)":|\bName: (.*?) Author:')
_MODEL_LINK = re.compile(r"blendswap\.com/blends?/(?:view/)?(\d+)|Blend #(\d+)")
_CHANGE = re.compile(
    r"((?:modified|simplified|replaced|texture \w+|added|texture).{0,80}? eTeks)", re.I
)


@dataclass(frozen=True)
class Licence:
    """Under which terms a model may be used, and where that is written."""

    name: str
    """"CC0 1.0", "CC BY 3.0" or "CC BY 3.0 US"."""
    url: str
    """The text of the licence."""
    source: str
    """The file inside the library that says so."""


LICENCES = {
    "zero": ("CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/"),
    "attribution": ("CC BY 3.0", "https://creativecommons.org/licenses/by/3.0/"),
    "attribution us": ("CC BY 3.0 US", "https://creativecommons.org/licenses/by/3.0/us/"),
}


@dataclass(frozen=True)
class Entry:
    """One model of a library."""

    library: str
    """Name of the library, such as Scopia."""
    key: str
    """The model's id inside the library."""
    name: str
    """English name as the catalogue has it."""
    tags: tuple[str, ...]
    """Search words, without the name of the site the model came from."""
    category: str
    """One of the catalogue's twelve."""
    model: str
    """Path of the OBJ file in the library."""
    size_cm: tuple[float, float, float]
    """Width, depth, height."""
    rotation: np.ndarray
    """``[3, 3]``, applied to the model's y-up coordinates."""
    creator: str
    """Who made the model."""


def read_catalog(name: str, library: zipfile.ZipFile) -> list[Entry]:
    """The models of a library in the catalogue's order.

    Raises:
        BrokenSource: the library has no catalogue.
    """
    try:
        text = library.read(CATALOG).decode("latin-1")
    except KeyError:
        raise BrokenSource(
            f"The library {name} has no {CATALOG}, which lists its models."
        ) from None
    table: dict[int, dict[str, str]] = {}
    for line in text.splitlines():
        if match := _KEY.match(line):
            key, number, value = match.groups()
            table.setdefault(int(number), {})[key] = _unescaped(value.strip())
    return [_entry(name, values) for _, values in sorted(table.items())]


def _unescaped(value: str) -> str:
    return re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), value)


def _entry(library: str, values: dict[str, str]) -> Entry:
    rotation = np.eye(3)
    if "modelRotation" in values:
        rotation = np.array([float(x) for x in values["modelRotation"].split()]).reshape(3, 3)
    tags = [tag.strip() for tag in values["tags"].split(",")]
    return Entry(
        library=library,
        key=values["id"].split("#", 1)[1],
        name=values["name"],
        tags=tuple(tag for tag in tags if tag not in ("", "Blend Swap", "SCPTS", "Adjustable")),
        category=values["category"],
        model=values["model"].lstrip("/"),
        size_cm=tuple(float(values[key]) for key in ("width", "depth", "height")),
        rotation=rotation,
        creator=values["creator"],
    )


def licence_of(entry: Entry, library: zipfile.ZipFile) -> Licence | None:
    """The licence of a model, or None where it is neither CC0 nor CC BY."""
    own = _own_files(entry, library)
    source = own[0] if own else "LICENSE.TXT"
    text = _plain_text(library.read(source))
    match = _STATEMENT.search(text)
    if match is None or _RESTRICTION.search(text):
        return None
    name, url = LICENCES[match[1].lower() + (" us" if match[2] else "")]
    return Licence(name, url, source)


def work_of(entry: Entry, library: zipfile.ZipFile) -> tuple[str, str, str]:
    """Title, web address and changes of the original work, as far as its licence file tells."""
    own = _own_files(entry, library)
    if not own:
        return "", "", ""
    text = _plain_text(library.read(own[0]))
    title, link, change = (p.search(text) for p in (_MODEL_TITLE, _MODEL_LINK, _CHANGE))
    number = next((g for g in link.groups() if g), "") if link else ""
    return (
        next((g for g in title.groups() if g), "").strip() if title else "",
        f"https://www.blendswap.com/blends/view/{number}" if number else "",
        change[1] if change else "",
    )


def _own_files(entry: Entry, library: zipfile.ZipFile) -> list[str]:
    folder = posixpath.dirname(entry.model)
    return sorted(
        name
        for name in library.namelist()
        if posixpath.dirname(name) == folder and name.lower().endswith((".txt", ".html"))
    )


def _plain_text(data: bytes) -> str:
    text = data.decode("utf-8", "replace")
    text = re.sub(r"<style.*?</style>", " ", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))

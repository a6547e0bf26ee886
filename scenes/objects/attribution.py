"""The attribution of every object of the pack, as CC BY asks for and CC0 deserves."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Mapping

from scenes.objects.catalog import Entry, Licence, work_of

__all__ = ["attribution_text"]

COPYRIGHT = {
    "BlendSwap-CC-0": "various authors at blendswap.com; collected by Emmanuel Puybaret / eTeks",
    "BlendSwap-CC-BY": "various authors at blendswap.com; converted by Emmanuel Puybaret / eTeks",
    "KatorLegaz": "(C) 2003-2008 Andrew Kator & Jennifer Legaz",
    "Reallusion": "(C) 2008-2016 Reallusion, http://www.reallusion.com",
    "Scopia": "(C) Emmanuel Puybaret / eTeks and Scopia Visual Interfaces Systems, s.l., "
    "http://www.scopia.es",
}
"""What the libraries' own licence files and catalogues say."""

HEAD = """# Who made the objects of this pack

The objects in `objects.zip` derive from the 3D models of the Debian package `sweethome3d-furniture`
1.8 (upstream: the 3D model libraries of Sweet Home 3D, http://www.sweethome3d.com). **They were
changed**: scaled, turned to other axes, simplified to at most about 4000 triangles, oriented
outwards, images reduced to at most 128 pixels, values rounded. Their authors endorse neither the
changes nor this project. The models come without warranty, as the licences say.

Licences: [CC0 1.0](https://creativecommons.org/publicdomain/zero/1.0/),
[CC BY 3.0](https://creativecommons.org/licenses/by/3.0/),
[CC BY 3.0 US](https://creativecommons.org/licenses/by/3.0/us/). The licence of a model is what the
licence file in its own folder says; where there is none, that of its library (marked *). Models
under any other terms are not in the pack, nor are those whose authors name foreign images.
Product names in original titles belong to their owners and serve only to identify the originals.
"""


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ").strip()


def attribution_text(
    entries: Mapping[str, tuple[Entry, Licence]],
    libraries: Mapping[str, zipfile.ZipFile],
    names: Mapping[str, str],
) -> str:
    """A Markdown document with one line for each object, library by library.

    Args:
        entries: source id to catalogue entry and licence.
        libraries: the opened libraries.
        names: source id to name in the pack.
    """
    lines = [HEAD]
    count = Counter(licence.name for _, licence in entries.values())
    total = ", ".join(f"{number} {name}" for name, number in sorted(count.items()))
    lines.append(f"{len(entries)} objects: {total}.\n")
    for library in libraries:
        members = [(s, e, c) for s, (e, c) in entries.items() if e.library == library]
        lines.append(f"## {library}\n\n{COPYRIGHT.get(library, library)}\n")
        lines.append("| object | original | author | licence | changes before ours |")
        lines.append("|---|---|---|---|---|")
        for source, entry, licence in sorted(members, key=lambda m: names[m[0]]):
            title, link, change = (_cell(text) for text in work_of(entry, libraries[library]))
            original = f"{entry.name} ({entry.key})"
            if link:
                original += f", [{title or 'model'}]({link})"
            star = "*" if licence.source == "LICENSE.TXT" else ""
            lines.append(
                f"| {names[source]} | {_cell(original)} | {_cell(entry.creator)} "
                f"| {licence.name}{star} | {change} |"
            )
        lines.append("")
    return "\n".join(lines)

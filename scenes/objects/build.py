"""Build the pack of real objects from the Debian package ``sweethome3d-furniture``.

    python -m scenes.objects.build --deb sweethome3d-furniture_1.8-1_all.deb
    python -m scenes.objects.build            # lets apt fetch the package

Every model under CC0 or CC BY whose picture is of use becomes one entry: at most about 4000
triangles, images of at most 128 pixels, whole numbers that compress well. Names, captions, colour
words, splits and ``ATTRIBUTION.md`` are made along the way. Nothing is random: the same package and
the same libraries give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from renderers.cameras import orbit_cameras
from scenes.objects.attribution import attribution_text
from scenes.objects.catalog import Entry, Licence, licence_of, read_catalog
from scenes.objects.codec import decode, encode
from scenes.objects.colors import WORDS, color_shares, color_words
from scenes.objects.convert import convert
from scenes.objects.debian import download_package, read_libraries
from scenes.objects.mesh import ObjectMesh
from scenes.objects.naming import left_out, noun_of
from scenes.objects.pack import CAPTIONS_FILE, DATA, PACK_FILE
from scenes.objects.placement import yaw_of
from scenes.objects.render import ObjectGeometry
from scenes.objects.sheer import PRESENT
from scenes.objects.splits import SUBJECT_SOURCES, assign_splits

__all__ = ["build_pack", "described_colors", "named"]

_LOG = logging.getLogger(__name__)
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
ATTRIBUTION_FILE = "ATTRIBUTION.md"
MAIN_SHARE = 0.55
"""A colour on this share of the surface names the object alone, and may be painted over."""
SECOND_SHARE = 0.22
NATURAL = re.compile(
    r"animal|food|plant|tree|flower|people|human|garden|drink|stone|fire", re.IGNORECASE
)
"""Tags of things that have the colour they have."""


def named(nouns: Mapping[str, str]) -> dict[str, str]:
    """Source id to name: the noun, numbered where it repeats (``armchair``, ``armchair-2``).

    The twelve subjects come first, so that they have their noun without a number.
    """
    chosen = [s for s in SUBJECT_SOURCES.values() if s in nouns]
    order = [*chosen, *(s for s in nouns if s not in set(chosen))]
    seen: Counter[str] = Counter()
    names = {}
    for source in order:
        slug = re.sub(r"[^a-z0-9]+", "-", nouns[source].replace("'", "")).strip("-")
        seen[slug] += 1
        names[source] = slug if seen[slug] == 1 else f"{slug}-{seen[slug]}"
    return names


def described_colors(mesh: ObjectMesh) -> tuple[dict[str, float], tuple[str, ...], list[int]]:
    """Shares of colour words among the visible points, the words to say, the materials to paint."""
    geometry = ObjectGeometry(mesh)
    colors, materials = [], []
    for elevation in (10.0, 45.0):
        cameras = orbit_cameras(
            4, elevation_deg=elevation, distance=3.0, fovy_deg=36.0, height=96, width=96,
            azimuth_start_deg=20.0,
        )  # fmt: skip
        face, weights = geometry.visible(cameras, PRESENT)
        hit = face > 0
        colors.append(geometry.surface_color(face[hit] - 1, weights[hit]))
        materials.append(mesh.face_material[face[hit] - 1])
    color, material = np.concatenate(colors), np.concatenate(materials)
    shares = color_shares(color)
    words = list(shares)
    if not words or shares[words[0]] < 0.4:
        return shares, (), []
    if shares[words[0]] < MAIN_SHARE:
        both = len(words) > 1 and shares[words[1]] >= SECOND_SHARE
        return shares, tuple(words[: 2 if both else 1]), []
    main = []
    for k in range(len(mesh.rgb)):
        index = color_words(color[material == k])
        if len(index) and WORDS[int(np.bincount(index).argmax())] == words[0]:
            main.append(k)
    return shares, (words[0],), main


def build_pack(
    deb: Path, folder: Path, *, log: Callable[[str], None], scratch: Path | None = None
) -> int:
    """Write the pack, its captions and its attribution into ``folder``; return its objects.

    Args:
        deb: the Debian package.
        folder: created if absent.
        log: called with lines about progress and about what is left out.
        scratch: keeps the converted models, so that a second build repeats only what is missing.

    Raises:
        BrokenSource: the package or a model in it cannot be read.
    """
    libraries = read_libraries(deb)
    entries: dict[str, tuple[Entry, Licence]] = {}
    for library_name, library in libraries.items():
        for entry in read_catalog(library_name, library):
            source, licence = f"{entry.library}/{entry.key}", licence_of(entry, library)
            reason = left_out(entry) or ("" if licence else "neither CC0 nor CC BY")
            if reason or licence is None:
                log(f"left out: {source} ({entry.name}): {reason}")
            else:
                entries[source] = (entry, licence)
    nouns = {source: noun_of(entry) for source, (entry, _) in entries.items()}
    names, splits = named(nouns), assign_splits(nouns)
    rows, blocks = [], {}
    for source, (entry, licence) in entries.items():
        name = names[source]
        blocks[name] = _converted(entry, libraries[entry.library], scratch)
        rows.append(
            _row(entry, licence, decode(name, blocks[name]), noun=nouns[source])
            | {"split": splits[source]}
        )
        if len(rows) % 50 == 0:
            log(f"{len(rows)}/{len(entries)} objects")
    rows.sort(key=lambda row: row["name"])
    folder.mkdir(parents=True, exist_ok=True)
    _write_zip(folder / PACK_FILE, blocks)
    text = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / CAPTIONS_FILE).write_text(f'{{"objects": [\n{text}\n]}}\n', encoding="utf-8")
    attribution = attribution_text(entries, libraries, names)
    (folder / ATTRIBUTION_FILE).write_text(attribution, encoding="utf-8")
    return len(rows)


def _converted(entry: Entry, library: zipfile.ZipFile, scratch: Path | None) -> bytes:
    source = f"{entry.library}/{entry.key}"
    yaw = yaw_of(source)
    kept = scratch and scratch / f"{source.replace('/', '--')}@{yaw:g}.safetensors"
    if kept and kept.exists():
        return kept.read_bytes()
    data = encode(convert(entry, library, yaw_deg=yaw))
    if kept:
        partial = kept.with_suffix(".tmp")
        partial.write_bytes(data)
        partial.replace(kept)
    return data


def _row(entry: Entry, licence: Licence, mesh: ObjectMesh, *, noun: str) -> dict:
    shares, colors, main = described_colors(mesh)
    natural = entry.category == "Characters" or any(NATURAL.search(t) for t in (*entry.tags, noun))
    return {
        "name": mesh.name,
        "noun": noun,
        "colors": colors,
        "color_shares": {word: round(share, 3) for word, share in shares.items() if share >= 0.02},
        "recolor": [] if natural else main,
        "category": entry.category,
        "tags": entry.tags,
        "size_cm": entry.size_cm,
        "faces": len(mesh.t_pos_idx),
        "source": f"{entry.library}/{entry.key}",
        "source_name": entry.name,
        "author": entry.creator,
        "licence": licence.name,
    }


def _write_zip(path: Path, blocks: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as pack:
        for name in sorted(blocks):
            member = zipfile.ZipInfo(name, ZIP_TIME)
            member.compress_type = zipfile.ZIP_LZMA
            pack.writestr(member, blocks[name])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deb", type=Path, help="the package's file; apt fetches it if left out")
    parser.add_argument(
        "--out", type=Path, default=DATA, help="folder to write (default: %(default)s)"
    )
    parser.add_argument("--scratch", type=Path, help="folder that keeps converted models")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.scratch:
        arguments.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as downloads:
        deb = arguments.deb or download_package(Path(downloads))
        count = build_pack(deb, arguments.out, log=_LOG.info, scratch=arguments.scratch)
    size = (arguments.out / PACK_FILE).stat().st_size
    _LOG.info("%d objects, %.1f MB in %s", count, size / 1e6, arguments.out)


if __name__ == "__main__":
    main()

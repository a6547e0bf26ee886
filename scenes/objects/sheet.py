"""Contact sheets of the pack, to look at what was built.

python -m scenes.objects.sheet sheet.png --split held_out --count 40
python -m scenes.objects.sheet subjects.png --subjects
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from renderers.cameras import orbit_cameras
from scenes.objects.pack import default_pack
from scenes.objects.render import ObjectGeometry, render_rgb
from scenes.objects.subjects import SUBJECTS, subject_photos, true_views

__all__ = ["object_sheet", "subject_sheet"]

VIEWS = 4
LABEL_HEIGHT = 12


def _orbit(size: int):
    return orbit_cameras(
        VIEWS, elevation_deg=15.0, distance=2.9, fovy_deg=36.0, height=size, width=size
    )


def _row(views: Sequence[np.ndarray], label: str) -> np.ndarray:
    """Images side by side under a line of text."""
    strip = np.round(np.concatenate(views, 1) * 255).astype(np.uint8)
    head = Image.new("RGB", (strip.shape[1], LABEL_HEIGHT), "white")
    ImageDraw.Draw(head).text((2, 0), label, fill="black")
    return np.concatenate([np.asarray(head), strip])


def _grid(rows: list[np.ndarray], columns: int) -> Image.Image:
    rows = rows + [np.full_like(rows[0], 255)] * (-len(rows) % columns)
    lines = [np.concatenate(rows[k : k + columns], 1) for k in range(0, len(rows), columns)]
    return Image.fromarray(np.concatenate(lines))


def object_sheet(names: Sequence[str], *, size: int = 96, columns: int = 3) -> Image.Image:
    """Each object from the front, its left, the back and its right, with its caption."""
    pack, cameras, rows = default_pack(), _orbit(size), []
    for name in names:
        geometry = ObjectGeometry(pack.load(name))
        rgb, _ = render_rgb(geometry, cameras, background=np.ones(3))
        rows.append(_row(list(rgb), f"{name}: {pack.info(name).caption}"))
    return _grid(rows, columns)


def subject_sheet(*, size: int = 128, columns: int = 2) -> Image.Image:
    """The photos of all subjects, each row ending in the true front view."""
    rows = []
    for name in SUBJECTS:
        photos = [photo.rgb for photo in subject_photos(name, image_size=size)]
        truth, _ = true_views(name, _orbit(size)[0])
        rows.append(_row([*photos, truth[0]], name))
    return _grid(rows, columns)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path, help="PNG file to write")
    parser.add_argument("--split", choices=("train", "held_out", "subject"), help="one split only")
    parser.add_argument("--count", type=int, default=45, help="objects (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which objects (default: %(default)s)")
    parser.add_argument("--subjects", action="store_true", help="the subjects' photos instead")
    arguments = parser.parse_args()
    if arguments.subjects:
        subject_sheet().save(arguments.picture)
        return
    names = default_pack().names(arguments.split)
    chosen = np.random.default_rng(arguments.seed).permutation(names)[: arguments.count]
    object_sheet(sorted(chosen)).save(arguments.picture)


if __name__ == "__main__":
    main()

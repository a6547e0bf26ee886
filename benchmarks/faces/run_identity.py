"""How often the shipped analyser finds faces, and whether it knows a person again after changes.

    python -m benchmarks.faces.run_identity FOLDER             # portraits, one face each
    python -m benchmarks.faces.run_identity FOLDER --every 2   # identities of every second one

Every portrait is searched. Each chosen one is then cut, mirrored, made brighter and darker, and
reduced to 48 pixels; the changed picture's embedding is compared with those of all originals. The
published figures are of the 82 paintings in miniworld 2.1.0 (miniworld/textures/portraits).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.common import write_results
from image_tools.vision.mesh_faces import MeshFaceAnalyzer

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SMALL = 48


@dataclass(frozen=True)
class Found:
    """Faces in untouched portraits."""

    portraits: int
    found: int
    several: int
    """Portraits in which more than one face was found."""
    missed: tuple[str, ...]
    core_seconds_each: float
    """Processor time, on a shared core or not."""


@dataclass(frozen=True)
class Known:
    """Changed portraits against untouched ones."""

    change: str
    portraits: int
    found: int
    nearest_is_right: int
    same_mean: float
    same_std: float
    other_mean: float
    other_std: float
    area_under_curve: float


def main(argv: list[str] | None = None) -> None:
    """Measure and write ``benchmarks/results/faces--cpu.json``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="portraits with one face each")
    parser.add_argument("--every", type=int, default=1, help="identities of every n-th portrait")
    parser.add_argument("--out", type=Path, help="a .json file, or the folder of it")
    options = parser.parse_args(argv)
    paths = sorted(p for p in options.folder.iterdir() if p.suffix.lower() in SUFFIXES)
    images = {path.stem: read(path) for path in paths}
    analyzer = MeshFaceAnalyzer()
    found = look_for_all(analyzer, images)
    print(found, flush=True)
    chosen = dict(list(images.items())[:: options.every])
    known = compare(analyzer, chosen)
    for row in known:
        print(row, flush=True)
    tables = {"detection": [found], "identity": known}
    write_results("faces", ratios=[], tables=tables, device="cpu", path=options.out)


def read(path: Path) -> Tensor:
    """A picture in 0..1."""
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255.0)


def look_for_all(analyzer: MeshFaceAnalyzer, images: Mapping[str, Tensor]) -> Found:
    """Faces in each picture."""
    started = time.process_time()
    counts = {name: len(analyzer.faces(image)) for name, image in images.items()}
    return Found(
        portraits=len(images),
        found=sum(count > 0 for count in counts.values()),
        several=sum(count > 1 for count in counts.values()),
        missed=tuple(name for name, count in counts.items() if not count),
        core_seconds_each=round((time.process_time() - started) / len(images), 3),
    )


def changes(generator: torch.Generator) -> dict[str, Callable[[Tensor], Tensor]]:
    """What is done to portraits."""

    def cut(image: Tensor) -> Tensor:
        side = min(image.shape[:2])
        share, x, y = torch.rand(3, generator=generator).tolist()
        kept = int(side * (0.8 + 0.15 * share))
        top, left = int(y * (image.shape[0] - kept)), int(x * (image.shape[1] - kept))
        return image[top : top + kept, left : left + kept]

    def reduced(image: Tensor) -> Tensor:
        pixels = image.movedim(-1, 0)[None]
        size = (SMALL, SMALL)
        small = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        return small[0].movedim(0, -1)

    return {
        "cut": cut,
        "mirrored": lambda image: image.flip(1),
        "brighter": lambda image: (1.35 * image + 0.05).clamp(0.0, 1.0),
        "darker": lambda image: 0.55 * image,
        f"{SMALL} px": reduced,
    }


def compare(analyzer: MeshFaceAnalyzer, images: Mapping[str, Tensor]) -> list[Known]:
    """One row for each change, and one for all of them."""
    originals = {name: analyzer.faces(image) for name, image in images.items()}
    names = [name for name, faces in originals.items() if faces]
    known = torch.stack([originals[name][0].normed for name in names])
    generator = torch.Generator().manual_seed(0)
    rows, all_cosines = [], []
    for change, make in changes(generator).items():
        cosines = []
        for place, name in enumerate(names):
            faces = analyzer.faces(make(images[name]))
            if faces:
                cosines.append((place, known @ faces[0].normed))
        rows.append(summary(change, len(names), cosines))
        all_cosines += cosines
    return [*rows, summary("all", len(names) * len(rows), all_cosines)]


def summary(change: str, portraits: int, cosines: list[tuple[int, Tensor]]) -> Known:
    """Figures of changed portraits, each compared with all originals."""
    same = torch.stack([row[place] for place, row in cosines])
    other = torch.cat([torch.cat([row[:place], row[place + 1 :]]) for place, row in cosines])
    above = (same[:, None] > other[None]).float().mean()
    return Known(
        change=change,
        portraits=portraits,
        found=len(cosines),
        nearest_is_right=sum(int(row.argmax()) == place for place, row in cosines),
        same_mean=round(float(same.mean()), 3),
        same_std=round(float(same.std()), 3),
        other_mean=round(float(other.mean()), 3),
        other_std=round(float(other.std()), 3),
        area_under_curve=round(float(above), 4),
    )


if __name__ == "__main__":
    main()

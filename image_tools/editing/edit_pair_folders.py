"""Folders of edit pairs in the layout of InstructPix2Pix's data set (arXiv 2211.09800).

    0000012/prompt.json        {"caption": ..., "edit": ..., "output": ...}
    0000012/731_0.jpg  731_1.jpg   the images before and after, of seed 731; more seeds likewise
    0000012/metadata.jsonl     a line for each seed: what it drew for itself, and its similarities
    seeds.json                 [["0000012", [731, ...]], ...], what there is to train on

A training step draws folders, and of each one of its seeds. The authors' splits are shares of the
list in its order. Captions are named "input" in some of their files; both names are read.

    write_edit_pairs(root, 12, EditCaptions("a duck", "make it blue", "a blue duck"), pairs)
    write_seed_list(root)
    batches = edit_batches(read_edit_folder(root).split("train"), batch_size=16, size=256)
    train_edit_unet(prior, unet, batches, config, folder, identity="my pairs")
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from image_tools.editing.edit_training import EditBatch, EditBatches
from renderers.errors import StudioError

__all__ = [
    "SPLITS",
    "EditCaptions",
    "EditFolder",
    "EditFolderError",
    "PairImages",
    "edit_batches",
    "read_edit_folder",
    "write_edit_pairs",
    "write_seed_list",
]

SPLITS = {"train": (0.0, 0.9), "val": (0.9, 0.95), "test": (0.95, 1.0)}
"""Shares of the list, as the authors have them."""
SEED_LIST, PROMPT, METADATA = "seeds.json", "prompt.json", "metadata.jsonl"
NAME = re.compile(r"\w[\w.-]*")
QUALITY = 100


class EditFolderError(StudioError):
    """A folder holds no edit pairs, or damaged ones."""

    exit_code = 2


@dataclass(frozen=True)
class EditCaptions:
    """What stands in a prompt.json."""

    before: str
    instruction: str
    after: str


@dataclass(frozen=True)
class PairImages:
    """A pair and what is known of it."""

    seed: int
    images: Float[Tensor, "2 h w 3"]
    """Before and after, in 0..1."""
    shared: float | None = None
    """p, the share of the steps with shared attention."""
    guidance_scale: float | None = None
    similarities: tuple[float, float, float, float] | None = None
    """CLIP's, of before and caption, after and caption, the two changes, the two images."""

    @property
    def metadata(self) -> dict[str, float]:
        """Its line of metadata.jsonl, by the authors' names."""
        line: dict[str, float | None] = {
            "seed": self.seed,
            "p2p_threshold": self.shared,
            "cfg_scale": self.guidance_scale,
        }
        names = ("clip_sim_0", "clip_sim_1", "clip_sim_dir", "clip_sim_image")
        line |= dict(zip(names, self.similarities or (), strict=False))
        return {name: value for name, value in line.items() if value is not None}


@dataclass(frozen=True)
class EditFolder:
    """A list of pairs on disk; images are read when they are asked for."""

    root: Path
    entries: tuple[tuple[str, tuple[int, ...]], ...]
    """Folders, each with its seeds."""

    def __len__(self) -> int:
        return len(self.entries)

    def split(self, name: Literal["train", "val", "test"]) -> EditFolder:
        """A share of the list.

        Raises:
            EditFolderError: nothing of so short a list is in it.
        """
        start, end = (int(share * len(self)) for share in SPLITS[name])
        if start == end:
            raise EditFolderError(
                f"'{self.root}' has {len(self)} edits, of which none are in the split {name}. Use "
                "all of them, without a split."
            )
        return replace(self, entries=self.entries[start:end])

    def captions(self, number: int) -> EditCaptions:
        """What an edit says.

        Raises:
            EditFolderError: its prompt.json is not there or says nothing.
        """
        path = self.root / self.entries[number][0] / PROMPT
        told = _read_json(path)
        told = told if isinstance(told, dict) else {}
        before = told.get("caption", told.get("input"))
        texts = (before, told.get("edit"), told.get("output"))
        if not isinstance(texts[1], str):
            raise EditFolderError(
                f"'{path}' has no text under edit. Expected caption, edit, output."
            )
        return EditCaptions(*(text if isinstance(text, str) else "" for text in texts))

    def images(self, number: int, seed: int) -> tuple[Image.Image, Image.Image]:
        """The images before and after.

        Raises:
            EditFolderError: one cannot be read, or they differ in size.
        """
        folder = self.root / self.entries[number][0]
        before, after = (_open(folder / f"{seed}_{place}.jpg") for place in (0, 1))
        if before.size != after.size:
            raise EditFolderError(
                f"'{folder}' has images of {before.size} and {after.size} for seed {seed} - "
                "expected equal sizes. Delete the seed from seeds.json."
            )
        return before, after

    def squares(self, number: int, seed: int, *, size: int) -> Float[Tensor, "2 size size 3"]:
        """The middle squares of the images before and after.

        Raises:
            EditFolderError: as ``images``.
        """
        pair = self.images(number, seed)
        return torch.stack([_cropped(image, size, size, (0.5, 0.5)) for image in pair])


def write_edit_pairs(
    root: Path, number: int, captions: EditCaptions, pairs: Sequence[PairImages]
) -> Path:
    """Write the pairs of one edit, in place of earlier ones of its number; returns their folder."""
    folder = root / f"{number:07d}"
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "caption": captions.before,
        "edit": captions.instruction,
        "output": captions.after,
    }
    (folder / PROMPT).write_text(json.dumps(told) + "\n", encoding="utf-8")
    for pair in pairs:
        for place, image in enumerate(pair.images):
            pixels = (image.clamp(0.0, 1.0) * 255.0).round().byte().cpu().numpy()
            Image.fromarray(pixels).save(folder / f"{pair.seed}_{place}.jpg", quality=QUALITY)
    lines = [json.dumps(pair.metadata) + "\n" for pair in pairs]
    (folder / METADATA).write_text("".join(lines), encoding="utf-8")
    return folder


def write_seed_list(root: Path) -> Path:
    """List all edits of a folder that have pairs, in the order of their names."""
    entries = []
    for folder in sorted(path.parent for path in root.glob(f"*/{METADATA}")):
        lines = (folder / METADATA).read_text(encoding="utf-8").splitlines()
        seeds = [json.loads(line)["seed"] for line in lines]
        if seeds:
            entries.append([folder.name, seeds])
    path = root / SEED_LIST
    path.write_text(json.dumps(entries) + "\n", encoding="utf-8")
    return path


def read_edit_folder(root: Path) -> EditFolder:
    """The list of a folder.

    Raises:
        EditFolderError: it has none, or one of another form.
    """
    path = root / SEED_LIST
    listed = _read_json(path)
    try:
        entries = tuple((str(name), tuple(map(int, seeds))) for name, seeds in listed)
    except (TypeError, ValueError) as error:
        raise EditFolderError(
            f"'{path}' is no list of folders and seeds ({error}) - expected entries such as "
            '["0000012", [731]].'
        ) from error
    strange = [name for name, seeds in entries if not NAME.fullmatch(name) or not seeds]
    if strange or not entries:
        raise EditFolderError(
            f"'{path}' has {f'the entry {strange[0]!r}' if strange else 'no entry'} - expected "
            "names of folders beside it, each with at least one seed."
        )
    return EditFolder(root, entries)


def edit_batches(
    folder: EditFolder, *, batch_size: int, size: int, resized: tuple[int, int] | None = None
) -> EditBatches:
    """Batches for ``train_edit_unet``: random edits, one seed of each, both images cropped alike.

    Args:
        folder: the pairs, such as a split.
        batch_size: pairs a batch.
        size: of the cropped images, which the prior takes.
        resized: least and largest length of the shorter side before the crop (Lanczos), drawn for
            each pair; ``size`` alone when not given, as the authors have it.
    """
    least, most = resized or (size, size)

    def batch(number: int, generator: torch.Generator) -> EditBatch:
        sources, targets, said = [], [], []
        for row in torch.randint(len(folder), (batch_size,), generator=generator).tolist():
            seeds = folder.entries[row][1]
            draws = torch.rand(4, generator=generator).tolist()
            pair = folder.images(row, seeds[int(draws[0] * len(seeds))])
            side = least + int(draws[1] * (most - least + 1))
            before, after = (_cropped(image, side, size, draws[2:]) for image in pair)
            sources.append(before)
            targets.append(after)
            said.append(folder.captions(row).instruction)
        return EditBatch(torch.stack(sources), torch.stack(targets), tuple(said))

    return batch


def _cropped(
    image: Image.Image, side: int, size: int, place: Sequence[float]
) -> Float[Tensor, "size size 3"]:
    """The shorter side made ``side`` long, and a square cut out at two shares of what is free."""
    factor = max(side, size) / min(image.size)
    width, height = (max(round(factor * length), size) for length in image.size)
    large = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (int(s * (n - size + 1)) for s, n in zip(place, (width, height), strict=True))
    cut = large.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(cut)).float() / 255.0


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EditFolderError(
            f"'{path}' cannot be read ({error}) - expected JSON, in a folder as InstructPix2Pix's "
            "generator writes it: seeds.json, and folders with prompt.json and images."
        ) from error


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise EditFolderError(
            f"'{path}' cannot be read ({error}) - expected an image. Delete its seed from "
            "seeds.json."
        ) from error

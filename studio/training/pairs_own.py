"""Pairs of one's own for an edit model: a folder in the layout of InstructPix2Pix's data set.

Every seed of every edit is one pair (:mod:`image_tools.editing.edit_pair_folders`), cut to the
middle square and resized. Copying is resumable.

    pairs = copy_pairs(work / "own", Path("my_pairs"), size=64, log=print)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from image_tools.editing.edit_pair_folders import read_edit_folder
from studio.training.pair_cache import PairCache, PairWriter

__all__ = ["copy_pairs"]

CHUNK = 500  # pairs between two saves


def copy_pairs(folder: Path, source: Path, *, size: int, log: Callable[[str], None]) -> PairCache:
    """Copy pairs into ``folder``, continuing where an earlier call stopped.

    Args:
        folder: the cache, created if absent.
        source: where the pairs lie; only read.
        size: height and width of the copies.
        log: called after each chunk.

    Raises:
        EditFolderError: ``source`` is no such folder, or something in it cannot be read.
        ConfigError: ``folder`` holds copies of another list of pairs.
    """
    pairs = read_edit_folder(source)
    rows = [(k, seed) for k, (_, seeds) in enumerate(pairs.entries) for seed in seeds]
    writer = PairWriter(folder, pairs=len(rows), size=size, key=[pairs.entries, size])
    while writer.drawn < len(rows):
        chunk = rows[writer.drawn : writer.drawn + CHUNK]
        for number, seed in chunk:
            images = pairs.squares(number, seed, size=size).numpy()
            writer.add_unnamed(images, pairs.captions(number).instruction)
        writer.save(writer.drawn + len(chunk))
        log(f"pairs {writer.drawn}/{len(rows)}")
    return PairCache(folder)

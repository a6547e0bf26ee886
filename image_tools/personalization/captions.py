"""Comprehensive captions: what each photo shows, in words that leave only the identity to learn.

DCO needs two sentences for a photo: one with the subject's placeholder for the student, the same
with the class word for the prior. A good one says everything that is not the subject (view, pose,
place, light, medium). The file is JSON in the layout of DCO's authors:

    {"images": ["01.jpg", ...],
     "prompts": ["a photo of <dog> lying on a red sofa, front view", ...],
     "base_prompts": ["a photo of a dog lying on a red sofa, front view", ...],
     "inserting_tokens": ["<dog>"], "initializer_tokens": ["dog"]}

Their own files hold several of these by name ({"dreambooth": {...}, "full_ti": {...}}): the one
that has the photos counts, and of several the one with base_prompts. A style needs none: prior and
student then read the same sentence.

    captions = read_captions(Path("captions.json"), names=[path.name for path in photos.paths])
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from renderers.errors import StudioError

__all__ = ["CaptionsError", "SubjectCaptions", "plain_captions", "read_captions"]

LISTS = ("images", "prompts", "base_prompts")


class CaptionsError(StudioError):
    """A captions file is absent, damaged or does not fit the photos."""

    exit_code = 2


@dataclass(frozen=True)
class SubjectCaptions:
    """Two sentences for each photo."""

    prompts: tuple[str, ...]
    """With the subject's placeholder."""
    base_prompts: tuple[str, ...]
    """The same sentences with the class word, which the untrained prior understands."""
    tokens: tuple[str, ...] = ()
    """New words that the prompts use and that are trained too."""
    initializers: tuple[str, ...] = ()
    """The known word that each of them starts from; empty for a random start."""

    def __post_init__(self) -> None:
        """Refuse sentences without a partner."""
        if len(self.prompts) != len(self.base_prompts) or not self.prompts:
            raise CaptionsError(
                f"{len(self.prompts)} prompts came with {len(self.base_prompts)} base_prompts - "
                "expected one of each for every photo."
            )
        if len(self.tokens) != len(self.initializers):
            raise CaptionsError(
                f"{len(self.tokens)} inserting_tokens came with {len(self.initializers)} "
                'initializer_tokens - expected one for each; "" starts at random.'
            )


def plain_captions(count: int, *, subject: str, word: str, template: str) -> SubjectCaptions:
    """The same sentence for all photos, where nobody wrote better ones.

    Args:
        count: number of photos.
        subject: what the student reads, such as "<my-dog>" or "sks dog".
        word: the class word, such as "dog".
        template: such as "a photo of {}".
    """
    return SubjectCaptions(
        (template.replace("{}", subject),) * count, (template.replace("{}", word),) * count
    )


def read_captions(path: Path, *, names: Sequence[str], entry: str | None = None) -> SubjectCaptions:
    """Captions of photos in the order of their file names.

    Args:
        path: the JSON file.
        names: file names of the photos that are trained on.
        entry: which captions of a file with several; None for those of the photos.

    Raises:
        CaptionsError: the file is not there, not of this layout, or leaves a photo out.
    """
    content = _entry(path, _read(path.expanduser()), names, entry)
    tokens = _texts(path, content, "inserting_tokens", optional=True)
    initializers = _texts(path, content, "initializer_tokens", optional=True)
    if not tokens and "base_prompts" not in content:
        content = {**content, "base_prompts": content.get("prompts")}
    lists = {key: _texts(path, content, key) for key in LISTS}
    if len({len(values) for values in lists.values()}) != 1:
        counts = ", ".join(f"{len(values)} {key}" for key, values in lists.items())
        raise CaptionsError(f"'{path}' has {counts} - expected equally many. Correct the file.")
    by_name = {Path(image).name: row for row, image in enumerate(lists["images"])}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise CaptionsError(
            f"'{path}' has no caption for '{missing[0]}' ({len(missing)} photos in all) - expected "
            "one for each photo in the folder. Add it to images, prompts and base_prompts."
        )
    rows = [by_name[name] for name in names]
    return SubjectCaptions(
        tuple(lists["prompts"][row] for row in rows),
        tuple(lists["base_prompts"][row] for row in rows),
        tuple(tokens),
        tuple(initializers or [""] * len(tokens)),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CaptionsError(
            f"The captions '{path}' cannot be read ({reason}) - expected a JSON file with images, "
            "prompts and base_prompts. Correct the path or the file."
        ) from error
    if not isinstance(content, dict):
        raise CaptionsError(f"The captions '{path}' are no JSON object. Expected images, prompts …")
    return content


def _entry(
    path: Path, content: dict[str, Any], names: Sequence[str], entry: str | None
) -> dict[str, Any]:
    """The captions that are meant: the file's own, or one of its entries."""
    entries = {
        name: one for name, one in content.items() if isinstance(one, dict) and "prompts" in one
    }
    if entry is None and (not entries or "images" in content):
        return content
    if entry is not None:
        if entry not in entries:
            raise _no_entry(path, entries, f"no captions '{entry}'")
        return entries[entry]
    if len(entries) == 1:
        return next(iter(entries.values()))
    fitting = [one for one in entries.values() if _shows(one, names)]
    complete = [one for one in fitting if "base_prompts" in one] or fitting
    if len(complete) != 1:
        raise _no_entry(path, entries, f"{len(complete)} sets of captions for these photos")
    return complete[0]


def _shows(entry: dict[str, Any], names: Sequence[str]) -> bool:
    """Whether an entry is about all the photos."""
    images = entry.get("images")
    return isinstance(images, list) and set(names) <= {Path(str(image)).name for image in images}


def _no_entry(path: Path, entries: dict[str, Any], found: str) -> CaptionsError:
    known = ", ".join(f"'{name}'" for name in entries) or "none by name"
    return CaptionsError(
        f"'{path}' has {found} - expected one of {known}. Copy the one that is meant into a file "
        "of its own, or correct its images."
    )


def _texts(path: Path, content: dict[str, Any], key: str, *, optional: bool = False) -> list[str]:
    values = content.get(key, [] if optional else None)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise CaptionsError(
            f"'{path}' has {key}: {str(values)[:60]} - expected a list of texts. Correct the file."
        )
    return values

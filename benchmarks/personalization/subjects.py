"""The twelve subjects of the benches: their photos, and what is asked of a model that learned one.

Photos and truth come from ``scenes.objects.subjects``; no training of ours has seen these objects.
Captions name the side that a photo shows; trainings cut the subject out of its surroundings.

    case = case_of("rabbit")
    write_photos(case, Path("photos/rabbit"))  # five photos and captions.json
    [ask.prompt("<my-rabbit>") for ask in asks_of(case)]
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scenes.objects.colors import WORDS, color_words
from scenes.objects.naming import is_plural
from scenes.objects.subjects import SUBJECTS, SubjectPhoto, subject_photos, write_subject_set
from scenes.toybox.captions import view_word
from scenes.toybox.catalog import KINDS
from studio.errors import ConfigError

__all__ = [
    "CAPTIONS",
    "CASES",
    "Ask",
    "Case",
    "asks_of",
    "border_color",
    "case_of",
    "cases_of",
    "kind_of",
    "write_photos",
]

CAPTIONS = "captions.json"
SIDES = ("front", "side", "back")


def kind_of(word: str) -> str | None:
    """The toybox kind that a word means."""
    kinds = {word: name for name, kind in KINDS.items() for word in (kind.noun, *kind.synonyms)}
    return kinds.get(word)


@dataclass(frozen=True)
class Case:
    """A subject and the words for it."""

    name: str
    """Its name in the object pack."""
    word: str
    """What it is, in words that a prior may know."""
    has_front: bool
    """Whether its front, side and back look different."""
    colors: tuple[str, str]
    """Colours that it does not have: to paint it, and for things and walls beside it."""
    mates: tuple[str, ...] = ()
    """Other objects of its class in the pack."""

    @property
    def kind(self) -> str | None:
        """The toybox kind of its class, if there is one."""
        return kind_of(self.word)

    @property
    def template(self) -> str:
        """Caption with {} where the subject goes."""
        return "{}" if is_plural(self.word) else "a {}"


CASES: tuple[Case, ...] = (
    Case("dog", "dog", True, ("blue", "green"), mates=("bulldog",)),
    Case("cat", "cat", True, ("blue", "red")),
    Case("teddy-bear", "teddy bear", True, ("blue", "green")),
    Case("sneakers", "sneakers", True, ("blue", "green"), mates=("slippers",)),
    Case("backpack", "backpack", True, ("blue", "purple"), mates=("handbag",)),
    Case("toy-train", "train", True, ("purple", "pink")),
    Case("vase", "vase", False, ("red", "green"), mates=("vase-2", "vase-4")),
    Case("beetle-car", "car", True, ("red", "blue")),
    Case("hamburger", "hamburger", False, ("blue", "purple")),
    Case("rabbit", "rabbit", True, ("blue", "red")),
    Case("biplane", "airplane", True, ("blue", "green")),
    Case("birthday-cake", "cake", False, ("blue", "green")),
)


def case_of(name: str) -> Case:
    """The subject of a name.

    Raises:
        ConfigError: there is none.
    """
    found = [case for case in CASES if case.name == name]
    if not found:
        raise ConfigError(f"No subject {name!r} - expected some of {', '.join(SUBJECTS)}.")
    return found[0]


def cases_of(text: str) -> list[Case]:
    """The subjects of a list with commas, each once.

    Raises:
        ConfigError: a name is no subject, or there is none.
    """
    names = [name for name in dict.fromkeys(text.split(",")) if name]
    if not names:
        raise ConfigError(f"--subjects is {text!r} - expected some of {', '.join(SUBJECTS)}.")
    return [case_of(name) for name in names]


@dataclass(frozen=True)
class Ask:
    """One prompt, and what a picture of it should show beside the subject."""

    group: str
    """plain, view, color, relation or background."""
    text: str
    """The prompt with {} where the subject goes."""
    wanted: str = ""
    """What the check of the group looks for."""

    def prompt(self, subject: str) -> str:
        """The prompt, of a subject as a model knows it."""
        return self.text.replace("{}", subject)


def asks_of(case: Case, *, each: int = 2) -> list[Ask]:
    """All that is asked of one subject: ``each`` pictures of each prompt, twice as many plain ones.

    Views are asked for only where the subject has sides that can be told apart.
    """
    one, (paint, other) = case.template, case.colors
    asks = [Ask("plain", one)] * 2
    if case.has_front:
        asks += [Ask("view", f"{one}, {side} view", f"{side} view") for side in SIDES]
    asks += [Ask("color", one.replace("{}", f"{color} {{}}"), color) for color in case.colors]
    asks += [
        Ask("relation", f"{one} left of a {other} apple", f"right {other}"),
        Ask("relation", f"{one} right of a {paint} mug", f"left {paint}"),
        Ask("background", f"{one} in front of a {other} wall", other),
    ]
    return [ask for ask in asks for _ in range(each)]


def write_photos(case: Case, folder: Path, *, image_size: int = 256) -> None:
    """Write the photos, and captions for DCO that say which side each shows."""
    files = write_subject_set(case.name, folder, image_size=image_size)
    photos = subject_photos(case.name, image_size=image_size)
    content = {
        "images": [file.name for file in files],
        "prompts": [_caption(case, f"<my-{case.name}>", photo) for photo in photos],
        "base_prompts": [_caption(case, case.word, photo) for photo in photos],
        "inserting_tokens": [f"<my-{case.name}>"],
        "initializer_tokens": [case.word],
    }
    (folder / CAPTIONS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _caption(case: Case, subject: str, photo: SubjectPhoto) -> str:
    """One photo in words; a subject without a front shows no side."""
    camera = photo.camera
    view = view_word(float(camera.azimuth_deg[0]), float(camera.elevation_deg[0]))
    text = case.template.replace("{}", subject)
    return f"{text}, {view}" if case.has_front else text


def border_color(image: np.ndarray) -> str:
    """The most frequent colour word along the border of a picture ``[h, w, 3]``."""
    height, width = image.shape[:2]
    inner = np.zeros((height, width), bool)
    margin = max(1, height // 20)
    inner[margin:-margin, margin:-margin] = True
    words = np.bincount(color_words(image[~inner]), minlength=len(WORDS))
    return WORDS[int(words.argmax())]

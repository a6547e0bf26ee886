"""Captions by grammar: paraphrases, synonyms and omissions, with view words."""

from __future__ import annotations

import numpy as np

from scenes.toybox.catalog import KINDS
from scenes.toybox.objects import ObjectSpec
from scenes.toybox.scene import SceneSpec

__all__ = ["caption", "plain_caption", "spoken_view", "view_word", "with_article"]

_OBJECT_FORMS = (
    "{a} {d} {n}",
    "{a} {d} {n}",
    "{a} {d} {n}",
    "{d} {n}",
    "a toy {n} in {d}",
    "{a} {d} toy {n}",
    "a 3d render of {a} {d} {n}",
    "a picture of {a} {d} {n}",
    "{a} small {d} {n}",
)
OVERHEAD_DEG = 60.0
FRONT_DEG = 45.0
SIDES_TOLD_APART = 0.75


def view_word(azimuth_deg: float, elevation_deg: float) -> str:
    """ "front view", "side view", "back view" or "overhead view" of a camera position."""
    if elevation_deg > OVERHEAD_DEG:
        return "overhead view"
    azimuth = abs((azimuth_deg + 180.0) % 360.0 - 180.0)
    if azimuth < FRONT_DEG:
        return "front view"
    return "back view" if azimuth > 180.0 - FRONT_DEG else "side view"


def spoken_view(azimuth_deg: float, elevation_deg: float, rng: np.random.Generator) -> str:
    """What a caption says of a camera position: three sides in four are left or right ones.

    The two sides are mirror images. One word for both teaches a model their mixture, an object with
    a head at either end, and so does guidance by that word.
    """
    view = view_word(azimuth_deg, elevation_deg)
    if view != "side view" or rng.random() >= SIDES_TOLD_APART:
        return view
    # Seen from +y, an object that faces +x shows its left side.
    return "left side view" if azimuth_deg % 360.0 < 180.0 else "right side view"


def with_article(words: str) -> str:
    """Words after "a" or "an"."""
    return f"{_article(words)} {words}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _describe(spec: ObjectSpec) -> str:
    return spec.color if spec.pattern == "plain" else f"{spec.pattern} {spec.color}"


def plain_caption(spec: SceneSpec) -> str:
    """The canonical caption, such as "a red mug left of a blue house"."""
    phrases = []
    for obj in spec.objects:
        words = f"{_describe(obj)} {KINDS[obj.kind].noun}"
        phrases.append(with_article(words))
    joined = phrases[0]
    for relation, phrase in zip(spec.relations, phrases[1:]):
        joined += f" {relation} {phrase}"
    return joined


def _object_phrase(spec: ObjectSpec, rng: np.random.Generator) -> str:
    kind = KINDS[spec.kind]
    noun = kind.noun
    if kind.synonyms and rng.random() < 0.15:
        noun = kind.synonyms[int(rng.integers(len(kind.synonyms)))]
    words = _describe(spec)
    if rng.random() < 0.03:
        return with_article(noun)
    form = _OBJECT_FORMS[int(rng.integers(len(_OBJECT_FORMS)))]
    return form.format(a=_article(words) if "small" not in form else "a", d=words, n=noun)


def caption(spec: SceneSpec, view: str | None, rng: np.random.Generator) -> str:
    """A random paraphrase of the scene; ``view`` (or None) is appended after a comma."""
    text = _object_phrase(spec.objects[0], rng) if len(spec.objects) == 1 else plain_caption(spec)
    return text if view is None else f"{text}, {view}"

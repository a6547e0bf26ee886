"""Captions in which a learned word is shown: varied enough that only the word explains the subject.

``{}`` stands for the word. What differs between the photos of a subject (light, place, sharpness)
is said here at random, so that the word does not come to mean it (arXiv 2208.01618, section 4.1;
the sentences are our own). They are short: pocket reads 24 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["OBJECT_TEMPLATES", "STYLE_TEMPLATES", "check_templates"]

OBJECT_TEMPLATES = (
    "a {}",
    "a photo of a {}",
    "a photo of the {}",
    "a photo of my {}",
    "a picture of a {}",
    "a picture of one {}",
    "an image of a {}",
    "a snapshot of my {}",
    "a sharp photo of a {}",
    "a blurry photo of the {}",
    "a bright picture of a {}",
    "a dark picture of the {}",
    "a close view of a {}",
    "a {} seen from nearby",
    "a {} seen from far away",
    "a {} in the middle of the picture",
    "a whole {} on a plain background",
    "a {} indoors",
    "a {} outdoors",
    "a detailed image of the {}",
    "a simple image of a {}",
    "a clean {} in good light",
    "the {} as it stands there",
    "a render of a {}",
)

STYLE_TEMPLATES = (
    "a picture in the style of {}",
    "a painting in the style of {}",
    "a drawing in the style of {}",
    "an image in {} style",
    "{} style",
    "artwork in {} style",
    "a scene in the style of {}",
    "a small picture in the style of {}",
    "a large picture in the style of {}",
    "a bright picture in {} style",
    "a dark picture in {} style",
    "a detailed work in the style of {}",
    "a simple work in the style of {}",
    "a close view in the style of {}",
    "an old picture in {} style",
    "a new picture in {} style",
    "a colourful image in {} style",
    "one more work in the style of {}",
)


def check_templates(templates: Sequence[str]) -> None:
    """Refuse sentences without a place for the word, or with two.

    Raises:
        ValueError: naming the first one.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(
                f"templates has {template!r} - expected {{}} once, where the word goes."
            )

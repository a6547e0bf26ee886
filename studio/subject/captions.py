"""Captions of a subject's photos: the user's own for each photo, or the template's for all.

A captions file is that of ``studio personalize``: its new word is the subject, whatever the scene
calls it.
"""

from __future__ import annotations

from dataclasses import replace

from image_tools.personalization.captions import (
    CaptionsError,
    SubjectCaptions,
    plain_captions,
)
from studio.subject.configs import DreamBooth3DConfig

__all__ = ["captions_for", "with_name"]


def captions_for(
    subject: DreamBooth3DConfig, own: SubjectCaptions | None, *, count: int
) -> SubjectCaptions:
    """Two sentences for each of ``count`` photos.

    Args:
        subject: its name, class word and template.
        own: the captions that the user wrote; None for the template's.
        count: number of photos.

    Raises:
        CaptionsError: the user's do not name the subject.
    """
    if own is not None:
        return with_name(own, subject)
    return plain_captions(count, subject=subject.name, word=subject.word, template=subject.template)


def with_name(captions: SubjectCaptions, subject: DreamBooth3DConfig) -> SubjectCaptions:
    """Captions in which the subject has the name that the scene's prompts have for it.

    Raises:
        CaptionsError: there are several new words, or a prompt without the subject.
    """
    if len(captions.tokens) > 1:
        words = ", ".join(captions.tokens)
        raise CaptionsError(
            f"subject.captions has {len(captions.tokens)} inserting_tokens ({words}) - expected "
            "one, the subject. Write the others out."
        )
    prompts = captions.prompts
    for token in captions.tokens:
        prompts = tuple(text.replace(token, subject.name) for text in prompts)
    lost = [text for text in prompts if subject.name not in text]
    if lost:
        raise CaptionsError(
            f"subject.captions has the prompt {lost[0]!r} - expected {subject.name!r} in each, or "
            'a word of your own in its place, with inserting_tokens: ["<my-thing>"].'
        )
    return replace(captions, prompts=prompts, tokens=(), initializers=())

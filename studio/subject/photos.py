"""A subject's photos and words, looked at before anything expensive begins."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.photos import load_photos
from image_tools.personalization.placeholders import check_placeholder, word_ids
from studio.errors import ConfigError
from studio.run_folder import write_atomic
from studio.subject.configs import DreamBooth3DConfig, PlaceholderTokenConfig
from studio.subject.folder import SubjectFolder, write_images
from studio.subject.rules import check_given

__all__ = ["check_subject", "check_words", "keep_photos"]

LOOK_SIZE = 32  # pixels; enough to know that a photo can be read
# Vocabularies are sorted by how often a word is met. Behind this share of them words are rare: the
# usual sks is at 0.97 of CLIP's.
COMMON_SHARE = 0.9


def check_subject(subject: DreamBooth3DConfig) -> None:
    """Refuse a subject that cannot be learned, before a run folder is made for it.

    Raises:
        ConfigError: photos or class word are not given.
        PhotosError: there is no photo that can be read.
    """
    check_given(subject)
    logger = logging.getLogger(load_photos.__module__)
    level = logger.level
    logger.setLevel(logging.ERROR)  # warnings come when the photos are taken
    try:
        load_photos(subject.images, size=LOOK_SIZE, config=replace(subject.photos, cutout=None))
    finally:
        logger.setLevel(level)


def check_words(prior: DiffusionPrior, subject: DreamBooth3DConfig) -> None:
    """Refuse words that the prior's text encoders cannot tell apart or do not know.

    Raises:
        PlaceholderError: the class word is unknown, or the placeholder is an ordinary word.
        ConfigError: the rare word is a common one.
    """
    for tower in prior.text.towers:
        word_ids(tower.tokenizer, subject.word)
        if isinstance(subject.token, PlaceholderTokenConfig):
            check_placeholder(tower.tokenizer, subject.token.word)
        else:
            _check_rare(tower.tokenizer, subject.token.word)


def keep_photos(subject: DreamBooth3DConfig, folder: SubjectFolder, *, size: int) -> None:
    """Copy the photos into the run as they are used, with a record of where they come from.

    Raises:
        ConfigError: photos or class word are not given.
        PhotosError: there is no photo that can be read.
    """
    check_given(subject)
    photos = load_photos(subject.images, size=size, config=subject.photos)
    for path in folder.photos.glob("*.png"):
        path.unlink()  # of a try that was killed, when the folder held others
    write_images(folder.photos, photos.images)
    record = {
        "photos": [path.name for path in photos.paths],
        "skipped": {item.path.name: item.reason for item in photos.skipped},
    }
    text = json.dumps(record, indent=2, ensure_ascii=False)
    write_atomic(folder.photos / "photos.json", text + "\n")


def _check_rare(tokenizer: Any, word: str) -> None:
    """A word that is one frequent token has a meaning that the photos would have to fight."""
    ids = tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) == 1 and ids[0] < COMMON_SHARE * len(tokenizer):
        raise ConfigError(
            f"subject.token.word: {word!r} is a word of the text encoder's vocabulary already, "
            "and would keep its old meaning - expected a rare one, such as sks, or a new one: "
            "subject.token={kind: placeholder, word: <my-thing>}"
        )

"""A subject's photos and words: looked at before anything expensive begins, and kept in the run."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.captions import SubjectCaptions, read_captions
from image_tools.personalization.photos import load_photos
from image_tools.personalization.placeholders import check_placeholder, word_ids
from studio.errors import ConfigError
from studio.personalize_configs import SubjectPhotosConfig
from studio.run_folder import write_atomic
from studio.subject.captions import with_name
from studio.subject.configs import DreamBooth3DConfig, PlaceholderTokenConfig
from studio.subject.folder import write_images
from studio.subject.rules import check_given

__all__ = [
    "check_name",
    "check_photos",
    "check_subject",
    "check_words",
    "keep_photos",
    "kept_captions",
    "kept_photos",
]

RECORD_NAME = "photos.json"
CAPTIONS_NAME = "captions.json"
LOOK_SIZE = 32  # pixels; enough to know that a photo can be read
# Vocabularies are sorted by how often a word is met. Behind this share of them words are rare: the
# usual sks is at 0.97 of CLIP's.
COMMON_SHARE = 0.9


def check_subject(subject: DreamBooth3DConfig) -> None:
    """Refuse a subject that cannot be learned, before a run folder is made for it.

    Raises:
        ConfigError: photos or class word are not given.
        PhotosError: there is no photo that can be read.
        CaptionsError: its captions do not fit the photos or do not name it.
    """
    check_given(subject)
    captions = check_photos(subject)
    if captions is not None:
        with_name(captions, subject)


def check_photos(subject: DreamBooth3DConfig | SubjectPhotosConfig) -> SubjectCaptions | None:
    """Look at photos and captions; returns the captions if there are any.

    Raises:
        PhotosError: there is no photo that can be read.
        CaptionsError: the captions do not fit the photos.
    """
    logger = logging.getLogger(load_photos.__module__)
    level = logger.level
    logger.setLevel(logging.ERROR)  # warnings come when the photos are taken
    plain = replace(subject.photos, cutout=None)
    try:
        photos = load_photos(subject.images, size=LOOK_SIZE, config=plain)
    finally:
        logger.setLevel(level)
    if not subject.captions:
        return None
    return read_captions(Path(subject.captions), names=[path.name for path in photos.paths])


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
        elif not _is_rare(tower.tokenizer, subject.token.word):
            raise ConfigError(
                f"subject.token.word: {subject.token.word!r} is a word of the text encoder's "
                "vocabulary already, and would keep its old meaning - expected a rare one, such "
                "as sks, or a new one: subject.token={kind: placeholder, word: <my-thing>}"
            )


def check_name(prior: DiffusionPrior, name: str, *, word: str) -> None:
    """The same of a name such as ``sks dog``, which no vector of its own stands for.

    Raises:
        PlaceholderError: the class word is unknown.
        ConfigError: nothing in the name is rare.
    """
    own = [part for part in name.split() if part not in word.split()]
    for tower in prior.text.towers:
        word_ids(tower.tokenizer, word)
        if not any(_is_rare(tower.tokenizer, part) for part in own):
            raise ConfigError(
                f"subject.token: {name!r} has no rare word in it, and would keep its old meaning - "
                f"expected one before the class word: subject.token='sks {word}'. Or learn a new "
                "word with method.kind=textual_inversion or dco."
            )


def keep_photos(
    subject: DreamBooth3DConfig | SubjectPhotosConfig, folder: Path, *, size: int
) -> None:
    """Copy the photos into a run as they are used, with a record of where they come from.

    Raises:
        PhotosError: there is no photo that can be read.
        CaptionsError: the captions do not fit the photos.
    """
    photos = load_photos(subject.images, size=size, config=subject.photos)
    for path in folder.glob("*.png"):
        path.unlink()  # of a try that was killed, when the folder held others
    write_images(folder, photos.images)
    names = [path.name for path in photos.paths]
    if subject.captions:
        source = Path(subject.captions).expanduser()
        read_captions(source, names=names)
        write_atomic(folder / CAPTIONS_NAME, source.read_text(encoding="utf-8"))
    record = {
        "photos": names,
        "skipped": {item.path.name: item.reason for item in photos.skipped},
    }
    text = json.dumps(record, indent=2, ensure_ascii=False)
    write_atomic(folder / RECORD_NAME, text + "\n")  # last: it says that all is there


def kept_photos(folder: Path) -> dict[str, Any] | None:
    """What is known of the photos in a run: names, and what was left out; None before that."""
    path = folder / RECORD_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def kept_captions(folder: Path) -> SubjectCaptions | None:
    """The captions of the photos in a run, if they came with some."""
    path = folder / CAPTIONS_NAME
    if not path.is_file():
        return None
    return read_captions(path, names=kept_photos(folder)["photos"])


def _is_rare(tokenizer: Any, word: str) -> bool:
    """Whether a word has no meaning that the photos would have to fight; a frequent one is one
    token of a low number."""
    ids = tokenizer(word, add_special_tokens=False).input_ids
    return len(ids) != 1 or ids[0] >= COMMON_SHARE * len(tokenizer)

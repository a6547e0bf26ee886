"""Caption files of DCO's layout, and what is wrong with others."""

from __future__ import annotations

import json

import pytest

from image_tools.personalization.captions import (
    CaptionsError,
    SubjectCaptions,
    plain_captions,
    read_captions,
)

CONTENT = {
    "images": ["photos/b.jpg", "photos/a.jpg"],
    "prompts": ["a photo of <dog> on a sofa", "a painting of <dog>, side view"],
    "base_prompts": ["a photo of a dog on a sofa", "a painting of a dog, side view"],
    "inserting_tokens": ["<dog>"],
    "initializer_tokens": ["dog"],
}


def _write(tmp_path, **changes):
    path = tmp_path / "captions.json"
    content = {k: v for k, v in {**CONTENT, **changes}.items() if v is not None}
    path.write_text(json.dumps(content))
    return path


def test_captions_follow_the_photos_by_name(tmp_path):
    captions = read_captions(_write(tmp_path), names=["a.jpg", "b.jpg"])
    assert captions.prompts[0] == "a painting of <dog>, side view"
    assert captions.base_prompts == tuple(reversed(CONTENT["base_prompts"]))
    assert (captions.tokens, captions.initializers) == (("<dog>",), ("dog",))


def test_words_are_optional(tmp_path):
    path = _write(tmp_path, inserting_tokens=None, initializer_tokens=None)
    assert read_captions(path, names=["a.jpg"]).tokens == ()
    path = _write(tmp_path, initializer_tokens=None)
    assert read_captions(path, names=["a.jpg"]).initializers == ("",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": None}, "has prompts: None - expected a list of texts"),
        ({"prompts": ["one"]}, "2 images, 1 prompts, 2 base_prompts - expected equally many"),
        ({"images": ["b.jpg", "c.jpg"]}, r"no caption for 'a\.jpg' \(1 photos in all\)"),
        ({"initializer_tokens": ["a", "b"]}, "1 inserting_tokens came with 2 initializer_tokens"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, changes, words):
    with pytest.raises(CaptionsError, match=words) as caught:
        read_captions(_write(tmp_path, **changes), names=["a.jpg", "b.jpg"])
    assert caught.value.exit_code == 2


def test_unreadable_files_are_refused(tmp_path):
    path = tmp_path / "captions.json"
    with pytest.raises(CaptionsError, match=r"captions\.json' cannot be read \(No such file"):
        read_captions(path, names=[])
    path.write_text("{")
    with pytest.raises(CaptionsError, match="cannot be read"):
        read_captions(path, names=[])
    path.write_text("[]")
    with pytest.raises(CaptionsError, match="are no JSON object"):
        read_captions(path, names=[])


# The files of DCO's authors (config.json in dataset/dreambooth/dog and dataset/styledrop of their
# repository), shortened to two photos: its trainer reads the file, then one entry of it.
DOG = {
    "dreambooth": {
        "images": ["dataset/dreambooth/dog/00.jpg", "dataset/dreambooth/dog/01.jpg"],
        "prompts": ["a photo of sks dog", "a photo of sks dog"],
        "test_images": ["dataset/dreambooth/dog/00.jpg"],
        "identifier": "sks dog",
        "class": "dog",
    },
    "full_ti": {
        "images": ["dataset/dreambooth/dog/00.jpg", "dataset/dreambooth/dog/01.jpg"],
        "prompts": ["a closed-up photo of a <dog>", "a low-angle photo of a <dog>"],
        "base_prompts": ["a closed-up photo of a dog", "a low-angle photo of a dog"],
        "test_images": ["dataset/dreambooth/dog/00.jpg"],
        "identifier": "<dog>",
        "class": "dog",
        "inserting_tokens": ["<dog>"],
        "initializer_tokens": ["dog"],
    },
}
STYLE = {
    "style": {
        "images": ["dataset/styledrop/style.jpg"],
        "test_images": ["dataset/styledrop/style.jpg"],
        "prompts": ["A person working on a laptop in flat cartoon illustration style"],
        "identifier": "in flat cartoon illustration style",
        "class": "in flat cartoon illustration style",
    }
}


def _own(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    return path


def test_the_authors_file_of_a_subject_is_read(tmp_path):
    path, names = _own(tmp_path, DOG), ["01.jpg", "00.jpg"]
    captions = read_captions(path, names=names)
    assert captions.prompts[0] == "a low-angle photo of a <dog>"
    assert captions.base_prompts[0] == "a low-angle photo of a dog"
    assert (captions.tokens, captions.initializers) == (("<dog>",), ("dog",))
    plain = read_captions(path, names=names, entry="dreambooth")
    assert plain == SubjectCaptions(("a photo of sks dog",) * 2, ("a photo of sks dog",) * 2)


def test_the_authors_file_of_a_style_is_read_and_the_prior_reads_the_same(tmp_path):
    captions = read_captions(_own(tmp_path, STYLE), names=["style.jpg"])
    assert captions.prompts == captions.base_prompts == tuple(STYLE["style"]["prompts"])


def test_entries_of_other_photos_are_passed_over(tmp_path):
    path = _own(tmp_path, {**DOG, **STYLE})
    assert read_captions(path, names=["style.jpg"]).prompts == tuple(STYLE["style"]["prompts"])


@pytest.mark.parametrize(
    ("content", "entry", "words"),
    [
        ({"a": DOG["full_ti"], "b": DOG["full_ti"]}, None, r"has 2 sets .* one of 'a', 'b'\. Copy"),
        (
            {**DOG, "other": STYLE["style"]},
            "cat",
            "no captions 'cat' - expected one of",
        ),
        ({"a": STYLE["style"], "b": STYLE["style"]}, None, r"has 0 sets of captions for these"),
        ({"style": STYLE["style"]}, None, r"no caption for '00\.jpg'"),
        (CONTENT, "cat", "no captions 'cat' - expected one of none by name"),
    ],
)
def test_files_without_the_one_entry_are_refused(tmp_path, content, entry, words):
    with pytest.raises(CaptionsError, match=words):
        read_captions(_own(tmp_path, content), names=["00.jpg"], entry=entry)


def test_a_new_word_needs_sentences_that_the_prior_understands(tmp_path):
    with pytest.raises(CaptionsError, match="has base_prompts: None - expected a list of texts"):
        read_captions(_write(tmp_path, base_prompts=None), names=["a.jpg"])


def test_plain_captions_fill_the_template():
    captions = plain_captions(2, subject="sks dog", word="dog", template="a photo of {}")
    assert captions == SubjectCaptions(("a photo of sks dog",) * 2, ("a photo of dog",) * 2)

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


def test_plain_captions_fill_the_template():
    captions = plain_captions(2, subject="sks dog", word="dog", template="a photo of {}")
    assert captions == SubjectCaptions(("a photo of sks dog",) * 2, ("a photo of dog",) * 2)

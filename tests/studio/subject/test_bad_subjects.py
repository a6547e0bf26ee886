"""Photos and words that cannot be used: one clear line each, before anything is made."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from studio.commands.run import run
from studio.errors import StudioError
from studio.runner import Runner
from tests.studio.conftest import start


def refused(subject_scene, out, *overrides: str) -> str:
    """The message of a run that does not begin; it must leave no folder behind."""
    with pytest.raises(StudioError) as error:
        run([str(subject_scene), *overrides], out=out)
    assert error.value.exit_code == 2
    assert not out.exists()
    return str(error.value)


def test_nothing_given(tmp_path):
    text = refused("dreambooth3d", tmp_path / "runs")
    assert "subject.images: is missing - expected a folder with three to six photos" in text
    assert "subject.word: the class word is missing" in text


def test_no_such_folder(subject_scene, tmp_path):
    text = refused(subject_scene, tmp_path / "runs", f"subject.images={tmp_path}/none")
    assert "none' is not there - expected a folder with three to six photos" in text


def test_a_folder_of_other_files(subject_scene, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "notes.txt").write_text("no photos here")
    text = refused(subject_scene, tmp_path / "runs", f"subject.images={folder}")
    assert "There are no photos in" in text
    assert "only 'notes.txt'" in text


def test_only_corrupt_images(subject_scene, tmp_path, photos):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "broken.png").write_bytes((photos / "0.png").read_bytes()[:200])
    text = refused(subject_scene, tmp_path / "runs", f"subject.images={folder}")
    assert "'broken.png' is damaged" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": ["0.png", "1.png"]}, "has no caption for '2.png'"),
        ({"inserting_tokens": []}, "has the prompt 'a <it>' - expected 'sks duck' in each"),
        ({"inserting_tokens": ["<it>", "<ink>"]}, "(<it>, <ink>) - expected one, the subject"),
    ],
)
def test_captions_that_do_not_fit(subject_scene, tmp_path, photos, changes, words):
    content = {
        "images": ["0.png", "1.png", "2.png"],
        "prompts": ["a <it>"] * 3,
        "base_prompts": ["a duck"] * 3,
        "inserting_tokens": ["<it>"],
        **changes,
    }
    for key in ("prompts", "base_prompts"):
        content[key] = content[key][: len(content["images"])]
    content["initializer_tokens"] = ["duck"] * len(content["inserting_tokens"])
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(content))
    assert words in refused(subject_scene, tmp_path / "runs", f"subject.captions={path}")


def prepared(subject_scene, tmp_path, *overrides: str) -> None:
    """Begin a run, as far as its photos and words are looked at."""
    scene, folder = start(subject_scene, tmp_path / "runs", *overrides)
    Runner(scene, folder)


def test_a_placeholder_that_is_a_word_already(subject_scene, tmp_path):
    token = "subject.token={kind: placeholder, word: mushroom}"
    with pytest.raises(StudioError, match="'mushroom' is a token of the text encoder's vocabulary"):
        prepared(subject_scene, tmp_path, token)


def test_a_rare_word_that_is_a_common_one(subject_scene, tmp_path):
    with pytest.raises(StudioError, match="'a' is a word of the text encoder's vocabulary already"):
        prepared(subject_scene, tmp_path, "subject.token.word=a", "prompt=a {} on a sofa")


def test_a_class_word_that_the_prior_does_not_know(subject_scene, tmp_path):
    with pytest.raises(StudioError, match="has no token in the text encoder's vocabulary"):
        prepared(subject_scene, tmp_path, "subject.word=犬")


def test_one_photo_a_damaged_one_and_other_files_work_with_warnings(
    subject_scene, tmp_path, photos, caplog
):
    """Also one of 8000 pixels, turned by its EXIF data."""
    folder = tmp_path / "photos"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((60, 8000, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "wide.jpg", exif=exif)
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("nothing")
    scene, made = start(
        subject_scene,
        tmp_path / "runs",
        f"subject.images={folder}",
        "subject.training.kind=dco",
        "subject.training.loop.steps=2",
        "subject.training.lora.rank=2",
    )
    Runner(scene, made)
    record = json.loads((made.subject_dir / "photos/photos.json").read_text())
    assert record["photos"] == ["wide.jpg"]
    assert set(record["skipped"]) == {"broken.png", "notes.txt"}
    assert len(list((made.subject_dir / "photos").glob("*.png"))) == 1
    assert "There is one photo in" in caplog.text
    assert "Photo left out" in caplog.text
    shutil.rmtree(folder)  # the run has its own copies from now on
    Runner(scene, made)

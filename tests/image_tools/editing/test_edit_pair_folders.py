"""Folders of edit pairs: what is written is read, both images are cropped alike, damage is told."""

from __future__ import annotations

import json

import pytest
import torch

from image_tools.editing.edit_pair_folders import (
    EditCaptions,
    EditFolder,
    EditFolderError,
    PairImages,
    edit_batches,
    read_edit_folder,
    write_edit_pairs,
    write_seed_list,
)
from image_tools.editing.edit_training import new_edit_unet, train_edit_unet
from image_tools.editing.edit_training_configs import EditTrainingConfig
from image_tools.personalization.loop import batch_generator
from image_tools.personalization.loop_configs import TuningConfig
from tests.image_tools.personalization.subjects import images_of, load_tiny

WORDS = EditCaptions("a red duck", "make it blue", "a blue duck")


def pair(seed: int, *, size: int = 24, **known) -> PairImages:
    return PairImages(seed, images_of(2, size=size, seed=seed), **known)


def written(root, *seeds, number=0, words=WORDS, size=24) -> EditFolder:
    write_edit_pairs(root, number, words, [pair(seed, size=size) for seed in seeds])
    write_seed_list(root)
    return read_edit_folder(root)


def test_pairs_come_back_with_captions_seeds_and_what_is_known_of_them(tmp_path):
    known = pair(731, shared=0.4, guidance_scale=9.5, similarities=(0.3, 0.31, 0.25, 0.8))
    write_edit_pairs(tmp_path, 12, WORDS, [known, pair(5)])
    other = EditCaptions("a mug", "stripes, please", "a striped mug")
    folder = written(tmp_path, 7, number=3, words=other)
    assert folder.entries == (("0000003", (7,)), ("0000012", (731, 5)))
    assert [folder.captions(k) for k in range(len(folder))] == [other, WORDS]
    for image, original in zip(folder.images(1, 731), known.images, strict=True):
        assert image.size == (24, 24)
        found = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        assert (found.reshape(24, 24, 3) / 255.0 - original).abs().mean() < 0.02
    lines = (tmp_path / "0000012" / "metadata.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {
        "seed": 731,
        "p2p_threshold": 0.4,
        "cfg_scale": 9.5,
        "clip_sim_0": 0.3,
        "clip_sim_1": 0.31,
        "clip_sim_dir": 0.25,
        "clip_sim_image": 0.8,
    }
    assert json.loads(lines[1]) == {"seed": 5}


def test_both_names_of_the_first_caption_are_read(tmp_path):
    folder = written(tmp_path, 1)
    told = {"input": "a red duck", "edit": "make it blue", "output": "a blue duck", "url": "x"}
    (tmp_path / "0000000" / "prompt.json").write_text(json.dumps(told))
    assert folder.captions(0) == WORDS


def test_splits_are_shares_of_the_list(tmp_path):
    whole = EditFolder(tmp_path, tuple((f"{k:07d}", (1,)) for k in range(40)))
    parts = [whole.split(name) for name in ("train", "val", "test")]
    assert [len(part) for part in parts] == [36, 2, 2]
    assert sum((part.entries for part in parts), ()) == whole.entries
    with pytest.raises(EditFolderError, match="has 4 edits, of which none are in the split val"):
        EditFolder(tmp_path, whole.entries[:4]).split("val")


def test_batches_are_drawn_from_all_edits_and_seeds_and_repeat(tmp_path):
    written(tmp_path, 1, 2, words=EditCaptions("", "first", ""))
    folder = written(tmp_path, 3, number=1, words=EditCaptions("", "second", ""))
    batches = edit_batches(folder, batch_size=16, size=24)
    batch = batches(0, batch_generator(1, 0))
    assert batch.sources.shape == (16, 24, 24, 3)
    assert set(batch.instructions) == {"first", "second"}
    assert len({image.numpy().tobytes() for image in batch.sources}) == 3
    again = batches(0, batch_generator(1, 0))
    assert torch.equal(again.targets, batch.targets)
    assert again.instructions == batch.instructions


def test_both_images_are_cropped_at_one_place(tmp_path):
    """The second image is the first one, so that it stays so wherever it is cut; squares are the
    middle."""
    one = images_of(1, size=24)
    wide = torch.cat([one, one.flip(2)], dim=2).expand(2, 24, 48, 3)
    write_edit_pairs(tmp_path, 0, WORDS, [PairImages(1, wide)])
    write_seed_list(tmp_path)
    batches = edit_batches(read_edit_folder(tmp_path), batch_size=8, size=16, resized=(16, 20))
    batch = batches(0, batch_generator(1, 0))
    assert batch.sources.shape == (8, 16, 16, 3)
    assert torch.equal(batch.sources, batch.targets)
    assert not torch.equal(batch.sources[0], batch.sources[1])
    squares = read_edit_folder(tmp_path).squares(0, 1, size=24)
    assert (squares - wide[:, :, 12:36]).abs().mean() < 0.02


def test_a_folder_trains_an_edit_model(tiny_pipelines, tmp_path):
    prior = load_tiny(tiny_pipelines, "sd1")
    batches = edit_batches(written(tmp_path / "pairs", 1, size=16), batch_size=2, size=16)
    config = EditTrainingConfig(TuningConfig(steps=2, learning_rate=1e-3, save_every=2))
    unet = new_edit_unet(prior)
    result = train_edit_unet(prior, unet, batches, config, tmp_path / "run", identity="pairs")
    assert result.finished
    assert not torch.equal(unet.conv_in.weight[:, 4:], torch.zeros_like(unet.conv_in.weight[:, 4:]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "cannot be read"),
        ("[]", "has no entry"),
        ('{"a": 1}', "is no list of folders and seeds"),
        ('[["0000000", ["x"]]]', "is no list of folders and seeds"),
        ('[["../other", [1]]]', r"has the entry '../other' - expected names of folders beside it"),
        ('[["..", [1]]]', r"has the entry '\.\.'"),
        ('[["0000000", []]]', "has the entry '0000000'"),
    ],
)
def test_lists_of_another_form_are_refused(tmp_path, text, message):
    (tmp_path / "seeds.json").write_text(text)
    with pytest.raises(EditFolderError, match=message):
        read_edit_folder(tmp_path)


def test_damage_is_told_with_the_file(tmp_path):
    with pytest.raises(EditFolderError, match=r"seeds.json' cannot be read .* expected JSON"):
        read_edit_folder(tmp_path)
    folder = written(tmp_path, 1)
    own = tmp_path / "0000000"
    (own / "prompt.json").write_text('{"caption": "a duck"}')
    with pytest.raises(EditFolderError, match=r"prompt.json' has no text under edit"):
        folder.captions(0)
    (own / "1_1.jpg").write_bytes(b"no image")
    with pytest.raises(EditFolderError, match=r"1_1.jpg' cannot be read"):
        folder.images(0, 1)
    write_edit_pairs(tmp_path, 1, WORDS, [pair(1, size=16)])
    (tmp_path / "0000001" / "1_1.jpg").replace(own / "1_1.jpg")
    with pytest.raises(EditFolderError, match=r"images of \(24, 24\) and \(16, 16\) for seed 1"):
        folder.images(0, 1)

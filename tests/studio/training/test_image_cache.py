"""Caches of rendered images: resumed, keyed, and several of them as one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scenes.objects.pack import default_pack
from scenes.objects.samples import ObjectSampleConfig, ObjectSampler
from scenes.toybox.samples import SampleConfig
from studio.errors import ConfigError
from studio.training.image_cache import ImageCache, StackedRows, cache_key, render_cache

TOYS = SampleConfig(image_size=8)
OBJECTS = ObjectSampleConfig(image_size=8)


def as_if_killed(folder: Path, done: int) -> None:
    """``done`` images finished, the next ones half written."""
    state_path = folder / "state.json"
    state = json.loads(state_path.read_text())
    state |= {"done": done, "captions": state["captions"][:done]}
    state_path.write_text(json.dumps(state))
    images = np.load(folder / "images.npy", mmap_mode="r+")
    images[done:] = 77
    images.flush()


@pytest.mark.parametrize("config", [TOYS, OBJECTS], ids=["toybox", "objects"])
def test_rendering_resumes_to_the_same_images(
    config: SampleConfig | ObjectSampleConfig, tmp_path: Path
) -> None:
    whole = render_cache(tmp_path, config, count=6, seed=3)
    images, captions = np.array(whole.images), list(whole.captions)
    as_if_killed(tmp_path, 4)
    assert len(ImageCache(tmp_path)) == 4
    resumed = render_cache(tmp_path, config, count=6, seed=3)
    assert np.array_equal(resumed.images, images)
    assert resumed.captions == captions


def test_objects_are_the_sampler_s_of_the_training_split(tmp_path: Path) -> None:
    cache = render_cache(tmp_path, OBJECTS, count=3, seed=5)
    sampler = ObjectSampler(OBJECTS)
    for k in range(3):
        sample = sampler.sample(np.random.default_rng([5, k]))
        assert default_pack().info(sample.name).split == "train"
        assert cache.captions[k] == sample.caption
        assert np.array_equal(cache.images[k], np.round(sample.rgb * 255).astype(np.uint8))


def test_a_cache_of_another_size_is_refused(tmp_path: Path) -> None:
    render_cache(tmp_path, TOYS, count=2, seed=3)
    message = "is a cache of 2 images of 8 pixels, but 3 of 8 are asked for"
    with pytest.raises(ConfigError, match=message):
        render_cache(tmp_path, TOYS, count=3, seed=3)


@pytest.mark.parametrize(
    ("config", "seed"),
    [(SampleConfig(image_size=8, pairs=0.5), 3), (TOYS, 4), (OBJECTS, 3)],
    ids=["settings", "seed", "world"],
)
def test_a_cache_of_other_images_is_refused(
    config: SampleConfig | ObjectSampleConfig, seed: int, tmp_path: Path
) -> None:
    render_cache(tmp_path, TOYS, count=2, seed=3)
    with pytest.raises(ConfigError, match="is a cache of other settings, seed or objects"):
        render_cache(tmp_path, config, count=2, seed=seed)


def test_a_finished_cache_without_a_key_still_opens_and_is_left_as_it_is(tmp_path: Path) -> None:
    render_cache(tmp_path, TOYS, count=2, seed=3)
    state_path = tmp_path / "state.json"
    state = json.loads(state_path.read_text())
    del state["key"]
    state_path.write_text(json.dumps(state))
    (tmp_path / "images.npy").chmod(0o444)
    before = state_path.read_bytes()
    assert len(render_cache(tmp_path, TOYS, count=2, seed=3)) == 2
    assert state_path.read_bytes() == before
    with pytest.raises(ConfigError, match="is a cache without a key"):
        cache_key(tmp_path)


def test_keys_tell_caches_apart(tmp_path: Path) -> None:
    keys = set()
    for name, config, count in (("a", TOYS, 1), ("b", TOYS, 2), ("c", OBJECTS, 1)):
        render_cache(tmp_path / name, config, count=count, seed=3)
        keys.add(cache_key(tmp_path / name))
    assert len(keys) == 3


def test_several_caches_open_as_one_in_order(tmp_path: Path) -> None:
    toys = render_cache(tmp_path / "toys", TOYS, count=3, seed=1)
    objects = render_cache(tmp_path / "objects", OBJECTS, count=2, seed=1)
    both = ImageCache(tmp_path / "toys", tmp_path / "objects")
    assert len(both) == 5
    assert both.captions == toys.captions + objects.captions
    rows = both.images[np.array([4, 0, 3, 2, 0])]
    expected = [objects.images[1], toys.images[0], objects.images[0], toys.images[2]]
    assert np.array_equal(rows, np.stack([*expected, toys.images[0]]))


def test_stacked_rows_read_like_their_concatenation() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 255, (n, 2, 3)) for n in (4, 0, 5, 1)]
    stacked, whole = StackedRows(parts), np.concatenate(parts)
    numbers = rng.integers(0, len(whole), 40)
    assert (len(stacked), stacked.shape) == (len(whole), whole.shape)
    for index in (numbers, numbers[:0], list(numbers), slice(2, 7), slice(8, 99), 0, 4, -1):
        assert np.array_equal(stacked[index], whole[index])

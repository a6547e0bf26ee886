"""Cached views with exact buffers: what condition images say, resuming, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from image_tools.control.annotators import palette
from scenes.toybox.catalog import KIND_NAMES, KINDS
from scenes.toybox.samples import SampleConfig
from studio.errors import ConfigError
from studio.training import buffer_views
from studio.training.buffer_views import (
    CHANNELS,
    CONDITIONS,
    BufferViewCache,
    BufferViewConfig,
    condition_images,
    render_buffer_views,
    silhouettes,
)
from studio.training.keypoint_pictures import keypoint_colors

CONFIG = BufferViewConfig(
    views=6, samples=SampleConfig(image_size=32, white_background=1.0, pairs=0.0)
)


def quiet(*_: object) -> None:
    """A log that nobody reads."""


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> BufferViewCache:
    """Six single objects on white."""
    return render_buffer_views(tmp_path_factory.mktemp("views"), CONFIG, log=quiet)


def test_every_condition_is_an_image_in_0_to_1(views: BufferViewCache) -> None:
    for name in CONDITIONS:
        images = condition_images(views.buffers, name)
        assert images.shape == (6, 32, 32, 3)
        assert images.dtype == torch.float32
        assert float(images.min()) >= 0.0
        assert float(images.max()) <= 1.0


def test_conditions_agree_where_the_object_is(views: BufferViewCache) -> None:
    mask = torch.from_numpy(silhouettes(views.buffers))
    depth, normal, seg = (condition_images(views.buffers, n) for n in ("depth", "normal", "seg"))
    assert torch.equal(depth[..., 0] > 0, mask)
    assert depth.amax((1, 2, 3)).tolist() == [1.0] * 6, "the nearest point of each view is white"
    assert torch.equal(seg.sum(-1) > 0, mask)
    facing = torch.tensor([127, 127, 255]) / 255  # halves are rounded to even bytes
    assert (normal[~mask] - facing).abs().max() < 1 / 200
    length = (2 * normal[mask] - 1).norm(dim=-1)
    assert (length - 1).abs().max() < 0.02, "unit vectors, but for rounding"
    assert (normal[mask][:, 2] >= 0.49).all(), "turned towards the viewer"


def test_the_image_shows_something_exactly_where_the_mask_is(views: BufferViewCache) -> None:
    shows = np.abs(views.images.astype(int) - 255).max(-1) > 0
    assert not (silhouettes(views.buffers) & ~shows).any()
    extra = shows & ~silhouettes(views.buffers)
    assert extra.mean() < 0.06, "pixels that an outline only touches"


def test_regions_have_the_colour_of_their_kind_and_captions_name_it(views: BufferViewCache) -> None:
    colors = palette(len(KIND_NAMES))
    seg = condition_images(views.buffers, "seg")
    for k, (kind, _) in enumerate(views.labels):
        shown = seg[k][torch.from_numpy(silhouettes(views.buffers[k]))]
        assert torch.equal(shown, colors[kind].expand_as(shown))
        nouns = (KINDS[KIND_NAMES[kind]].noun, *KINDS[KIND_NAMES[kind]].synonyms)
        assert any(noun in views.captions[k] for noun in nouns)


def test_keypoints_have_the_colours_of_their_kinds_parts(views: BufferViewCache) -> None:
    shown = (condition_images(views.buffers, "keypoints") * 255.0).round().int()
    colors = keypoint_colors()
    for k, (kind, _) in enumerate(views.labels):
        names = {part.name for part in KINDS[KIND_NAMES[kind]].build(np.random.default_rng(0))}
        seen = {tuple(pixel) for pixel in shown[k].reshape(-1, 3).tolist()}
        found = {name for name, color in colors.items() if color in seen}
        assert found, "the middle of a disc has its full colour"
        assert found <= names


def test_rendering_resumes_to_the_same_views(views: BufferViewCache, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(buffer_views, "CHUNK", 4)

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt(line)

    with pytest.raises(KeyboardInterrupt, match="views 4/6"):
        render_buffer_views(tmp_path, CONFIG, log=interrupt)
    assert len(BufferViewCache(tmp_path)) == 4
    resumed = render_buffer_views(tmp_path, CONFIG, log=quiet)
    assert np.array_equal(resumed.images, views.images)
    assert np.array_equal(resumed.buffers, views.buffers)
    assert np.array_equal(resumed.labels, views.labels)
    assert resumed.captions == views.captions


def test_finished_views_are_not_rendered_again(views: BufferViewCache, tmp_path: Path) -> None:
    render_buffer_views(tmp_path, replace(CONFIG, views=1), log=quiet)
    lines: list[str] = []
    render_buffer_views(tmp_path, replace(CONFIG, views=1), log=lines.append)
    assert lines == []


def test_views_of_other_settings_and_unknown_conditions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(
        json.dumps({"done": 0, "captions": [], "labels": [], "key": "another"})
    )
    with pytest.raises(ConfigError, match=r"holds views of other settings. Name another folder"):
        render_buffer_views(tmp_path, CONFIG, log=quiet)
    with pytest.raises(ValueError, match="condition is 'canny' - expected one of depth, normal"):
        condition_images(np.zeros((1, 4, 4, CHANNELS), np.uint8), "canny")

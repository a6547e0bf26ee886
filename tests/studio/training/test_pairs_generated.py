"""Pairs that the shipped prior draws: the judge's space, the filter, and resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from image_tools.diffusion.loading import load_folder
from image_tools.pocket.paths import POCKET_FOLDER
from scenes.toybox.objects import ObjectSpec
from studio.errors import ConfigError
from studio.evaluation.judge import load_judge
from studio.evaluation.views import eval_cameras, render_toy
from studio.training import pairs_generated
from studio.training.pair_cache import PairCache
from studio.training.pairs_generated import GeneratedPairConfig, JudgeScorer, generate_pairs

CONFIG = GeneratedPairConfig(edits=2)
SHORT = replace(
    CONFIG,
    generation=replace(CONFIG.generation, samples=1, steps=2),
    filter=replace(CONFIG.filter, image=-1.0, text=-1.0, direction=-1.0),
)


def quiet(*_: object) -> None:
    """A log that nobody reads."""


@pytest.fixture(scope="module")
def prior():
    return load_folder(POCKET_FOLDER, torch.device("cpu"))


def test_true_renders_lie_near_their_captions_in_the_judges_space() -> None:
    scorer, camera = JudgeScorer(load_judge()), eval_cameras(8)[1:2]
    before, after = (render_toy(ObjectSpec("mug", c), camera).rgb for c in ("red", "blue"))
    texts = torch.nn.functional.normalize(
        scorer.embed_texts(["a red mug, front view", "a blue mug, front view"]), dim=1
    )
    images = torch.nn.functional.normalize(scorer.embed_images(torch.cat([before, after])), dim=1)
    assert (images * texts).sum(1).min() > 0.9
    assert float(images[0] @ images[1]) == pytest.approx(2 / 3, abs=0.05), "kind and pattern stay"
    change = torch.cosine_similarity(images[1] - images[0], texts[1] - texts[0], dim=0)
    assert change > 0.9


def test_a_caption_without_a_single_object_is_refused() -> None:
    with pytest.raises(ValueError, match="'a red mug left of a blue duck' names no single"):
        JudgeScorer(load_judge()).embed_texts(["a red mug left of a blue duck"])


def test_what_passes_is_kept_with_its_instruction_and_generating_resumes(
    prior, tmp_path: Path, monkeypatch
) -> None:
    judge = load_judge()
    whole = generate_pairs(tmp_path / "whole", SHORT, prior, judge, log=quiet)
    assert len(whole) == 4
    assert all(whole.captions)
    assert set(whole.names) <= {"recolor", "pattern", "replace"}
    assert (whole.labels[:, 0] != whole.labels[:, 1]).sum(1).tolist() == [1, 1]
    monkeypatch.setattr(pairs_generated, "CHUNK", 1)

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt(line)

    with pytest.raises(KeyboardInterrupt, match="generated 1/2 edits, kept 1 pairs"):
        generate_pairs(tmp_path / "parts", SHORT, prior, judge, log=interrupt)
    assert len(PairCache(tmp_path / "parts")) == 2
    parts = generate_pairs(tmp_path / "parts", SHORT, prior, judge, log=quiet)
    assert np.array_equal(parts.images, whole.images)
    assert parts.captions == whole.captions


def test_what_fails_the_filter_is_not_kept_and_not_drawn_again(prior, tmp_path: Path) -> None:
    strict = replace(SHORT, edits=1, filter=replace(SHORT.filter, direction=1.0))
    cache = generate_pairs(tmp_path, strict, prior, load_judge(), log=quiet)
    assert len(cache) == 0
    lines: list[str] = []
    generate_pairs(tmp_path, strict, prior, load_judge(), log=lines.append)
    assert lines == []


def test_pairs_of_another_prior_are_refused(prior, tmp_path: Path, monkeypatch) -> None:
    one = replace(SHORT, edits=1)
    generate_pairs(tmp_path, one, prior, load_judge(), log=quiet)
    monkeypatch.setitem(prior.fingerprint_parts, "lora", lambda: "attached")
    with pytest.raises(ConfigError, match="holds pairs of other settings"):
        generate_pairs(tmp_path, one, prior, load_judge(), log=quiet)

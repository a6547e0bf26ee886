"""Learning a word: only its rows change, it goes on bit for bit, and it does learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from image_tools.configs import DdimConfig, PocketPriorConfig
from image_tools.diffusion.loading import load_folder, load_prior
from image_tools.personalization.dreambooth_configs import BatchConfig
from image_tools.personalization.embedding_files import read_embeddings
from image_tools.personalization.loop import LoopHooks, batch_generator
from image_tools.personalization.loop_configs import TuningConfig
from image_tools.personalization.placeholders import PlaceholderError
from image_tools.personalization.sample_grid import grid_writer
from image_tools.personalization.templates import OBJECT_TEMPLATES, STYLE_TEMPLATES
from image_tools.personalization.textual_inversion import (
    TextualInversionLoss,
    train_textual_inversion,
)
from image_tools.personalization.textual_inversion_configs import TextualInversionConfig
from image_tools.personalization.tokens import TokenEmbedding, attach_tokens, word_embedding
from renderers.errors import StudioError

CPU = torch.device("cpu")
LOOP = TuningConfig(steps=3, learning_rate=0.02, weight_decay=0.0)
CONFIG = TextualInversionConfig(
    token="<d>", init_word="duck", vectors=2, batch=BatchConfig(size=2), loop=LOOP
)
NO_MERGES = replace(CONFIG, init_word="d")


def config_for(kind: str) -> TextualInversionConfig:
    """The tiny CLIP tokenizers know letters only."""
    return CONFIG if kind == "pocket" else NO_MERGES


def photos(size: int = 32, count: int = 3) -> torch.Tensor:
    """A disc on different backgrounds."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.linspace(-1, 1, size)
    inside = (axis[:, None] ** 2 + axis[None] ** 2 < 0.4)[..., None]
    grounds = torch.rand(count, 1, 1, 3, generator=generator).expand(-1, size, size, -1)
    return torch.where(inside, torch.tensor([0.1, 0.8, 0.9]), grounds)


def snapshot(prior) -> dict[str, torch.Tensor]:
    """Every weight of the prior."""
    modules = {"unet": prior.unet, "vae": prior.vae}
    modules |= {f"text{k}": tower.encoder for k, tower in enumerate(prior.text.towers)}
    return {
        f"{part}.{name}": value.clone()
        for part, module in modules.items()
        for name, value in module.state_dict().items()
    }


@pytest.fixture
def prior(tiny_pipelines):
    return load_folder(tiny_pipelines["pocket"], CPU)


@pytest.mark.parametrize("kind", ["sd1", "sd2_v", "sdxl", "pocket"])
def test_only_the_words_rows_change(tiny_pipelines, tmp_path, kind):
    prior, config = load_folder(tiny_pipelines[kind], CPU), config_for(kind)
    before, stack, fingerprint = snapshot(prior), prior.text, prior.fingerprint
    tokenizers = [t.tokenizer.backend_tokenizer.to_str() for t in prior.text.towers]
    result = train_textual_inversion(prior, photos(), config, tmp_path)
    after = snapshot(prior)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [t.tokenizer.backend_tokenizer.to_str() for t in prior.text.towers] == tokenizers
    assert (prior.text, prior.fingerprint) == (stack, fingerprint)
    assert (result.finished, result.step) == (True, 3)
    (word,) = read_embeddings(result.files[-1])
    first = word_embedding(prior, "<d>", config.init_word, vectors=2)
    assert len(word.rows) == (2 if kind == "sdxl" else 1)
    assert (word.token, word.step, word.vectors) == ("<d>", 3, 2)
    origin = {"init_word": config.init_word, "prior": fingerprint, "fix_eos": "false"}
    assert word.metadata == origin
    for now, then in zip(word.rows, first.rows, strict=True):
        assert bool(((now - then).norm(dim=1) > 1e-4).all())


def test_other_words_of_the_prior_stay_and_may_be_used(prior, tmp_path):
    other = TokenEmbedding("<b>", (torch.ones(1, 16),))
    with attach_tokens(prior, [other]) as attached:
        config = replace(CONFIG, templates=("a {} beside a <b>",))
        train_textual_inversion(prior, photos(), config, tmp_path)
        assert torch.equal(attached.embedding("<b>").rows[0], other.rows[0])
        assert list(prior.text.rows) == ["<b>"]


def test_a_stopped_training_goes_on_bit_for_bit(prior, tmp_path):
    whole = train_textual_inversion(prior, photos(), CONFIG, tmp_path / "whole")
    stop = LoopHooks(should_stop=lambda: True)
    part = train_textual_inversion(prior, photos(), CONFIG, tmp_path / "part", hooks=stop)
    assert (part.finished, part.step, part.files) == (False, 1, ())
    rest = train_textual_inversion(prior, photos(), CONFIG, tmp_path / "part")
    assert rest.finished
    expected, found = (read_embeddings(r.files[-1])[0].rows[0] for r in (whole, rest))
    assert torch.equal(found, expected)


def test_norms_are_kept_where_wanted_even_over_a_stop(prior, tmp_path):
    first = word_embedding(prior, "<d>", "duck", vectors=2).rows[0].norm(dim=1)
    config = replace(CONFIG, norm="init")
    stop = LoopHooks(should_stop=lambda: True)
    train_textual_inversion(prior, photos(), config, tmp_path / "init", hooks=stop)
    kept = train_textual_inversion(prior, photos(), config, tmp_path / "init")
    free = train_textual_inversion(prior, photos(), CONFIG, tmp_path / "free")
    lengths = [read_embeddings(r.files[-1])[0].rows[0].norm(dim=1) for r in (kept, free)]
    torch.testing.assert_close(lengths[0], first)
    assert bool(((lengths[1] - first).abs() > 1e-3).all())


def test_the_loss_is_the_denoising_error_plus_the_distance(prior):
    config = replace(CONFIG, reg_weight=0.5)
    with attach_tokens(prior, [word_embedding(prior, "<d>", "duck", vectors=2)]) as tokens:
        plain = TextualInversionLoss(prior, photos(), tokens, CONFIG)
        drawn = TextualInversionLoss(prior, photos(), tokens, config)
        at_start = drawn(0, batch_generator(0, 0)).item()
        assert at_start == plain(0, batch_generator(0, 0)).item()
        with torch.no_grad():
            tokens.parameters()["<d>.0"][0, 0] += 2.0
        difference = drawn(0, batch_generator(0, 0)) - plain(0, batch_generator(0, 0))
    # One of two vectors is 2 away: 0.5 * (4 + 0) / 2.
    torch.testing.assert_close(difference.item(), 1.0, atol=1e-5, rtol=0)


def test_a_pull_to_the_first_vectors_keeps_them_near(prior, tmp_path):
    loop, distances = replace(LOOP, steps=8), []
    first = word_embedding(prior, "<d>", "duck", vectors=2).rows[0]
    for weight in (0.0, 1e3):
        config = replace(CONFIG, reg_weight=weight, loop=loop)
        result = train_textual_inversion(prior, photos(), config, tmp_path / str(weight))
        distances.append((read_embeddings(result.files[-1])[0].rows[0] - first).norm().item())
    assert distances[1] < 0.7 * distances[0]


def test_the_word_at_chosen_steps_and_a_grid_of_samples(prior, tmp_path):
    loop = replace(LOOP, steps=4, checkpoint_steps=(1, 3), sample_every=2)
    samples = tmp_path / "run" / "samples"
    writer = grid_writer(
        prior, ["a <d>", "a duck"], samples, columns=3, sampler=DdimConfig(steps=2)
    )
    result = train_textual_inversion(
        prior,
        photos(),
        replace(CONFIG, loop=loop),
        tmp_path / "run",
        hooks=LoopHooks(sample=writer),
    )
    words = [read_embeddings(path)[0] for path in result.files]
    assert [word.step for word in words] == [1, 3, 4]
    assert not torch.equal(words[0].rows[0], words[1].rows[0])
    grids = sorted(path.name for path in samples.iterdir())
    assert grids == ["step-000000.png", "step-000002.png", "step-000004.png"]
    size = prior.image_size
    pictures = [Image.open(samples / name) for name in grids]
    assert pictures[0].size == (3 * size, 2 * size)
    # The word's row changes, the plain prompt's does not.
    rows = [
        [p.crop((0, k * size, 3 * size, (k + 1) * size)).tobytes() for p in pictures]
        for k in (0, 1)
    ]
    assert len(set(rows[0])) == 3
    assert len(set(rows[1])) == 1


def test_another_training_in_the_folder_is_refused(prior, tmp_path):
    train_textual_inversion(prior, photos(), CONFIG, tmp_path)
    for images, config in (
        (photos(count=2), CONFIG),
        (photos(), replace(CONFIG, init_word="mushroom")),
    ):
        with pytest.raises(StudioError, match="holds a training with other settings or photos"):
            train_textual_inversion(prior, images, config, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_word": ""}, "The class word is missing"),
        ({"token": "mushroom"}, "'mushroom' is a token of the text encoder's vocabulary"),
        ({"token": "my dog"}, "one word without spaces"),
    ],
)
def test_words_that_cannot_be_learned_leave_nothing_behind(prior, tmp_path, change, message):
    with pytest.raises(PlaceholderError, match=message):
        train_textual_inversion(prior, photos(), replace(CONFIG, **change), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert prior.fingerprint_parts == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": 0}, "vectors is 0 - expected at least 1"),
        ({"reg_weight": -1.0}, "reg_weight is -1.0"),
        ({"templates": ("a dog",)}, r"templates has 'a dog' - expected \{\} once"),
    ],
)
def test_settings_that_cannot_be_meant(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


def test_built_in_captions_have_one_place_for_the_word_and_fit_pocket():
    tokenizer = load_prior(PocketPriorConfig(), CPU).text.towers[0].tokenizer
    for captions in (OBJECT_TEMPLATES, STYLE_TEMPLATES):
        assert len(set(captions)) == len(captions)
        assert all(caption.count("{}") == 1 for caption in captions)
        longest = max(len(tokenizer(c.replace("{}", "dog")).input_ids) for c in captions)
        assert longest + 8 <= tokenizer.model_max_length
    assert replace(CONFIG, learn="style").captions == STYLE_TEMPLATES


def test_the_shipped_pocket_learns_a_word(tmp_path):
    prior = load_prior(PocketPriorConfig(), CPU)
    loop = TuningConfig(steps=12, learning_rate=0.02, weight_decay=0.0)
    batch = BatchConfig(size=4, mirrored=True)
    config = TextualInversionConfig(token="<disc>", init_word="ball", batch=batch, loop=loop)
    images = photos(prior.image_size)
    result = train_textual_inversion(prior, images, config, tmp_path)
    words = [word_embedding(prior, "<disc>", "ball"), *read_embeddings(result.files[-1])]
    losses = []
    for word in words:
        with attach_tokens(prior, [word]) as tokens, torch.no_grad():
            loss = TextualInversionLoss(prior, images, tokens, config)
            # Batches that the training has not seen, the same for both words.
            losses.append(sum(loss(k, batch_generator(9, k)).item() for k in range(4)))
    assert losses[1] < losses[0]

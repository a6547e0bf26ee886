"""Prompt debiasing: the words that speak against a view leave that view's prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from guidance.configs import DirectionalPromptsConfig, ViewWordsConfig
from guidance.debiasing import (
    MaskedLanguageModel,
    debias_prompt,
    load_masked_language_model,
    view_odds,
)
from guidance.debiasing_configs import DebiasConfig
from guidance.prompts import build_view_prompts, view_texts
from guidance.views import VIEWS
from image_tools.configs import PocketPriorConfig
from image_tools.diffusion.loading import load_folder
from image_tools.errors import UnsafeWeights, WeightsMissing
from studio.config import load_scene
from studio.configs import PreviousFieldConfig
from studio.errors import ConfigError
from studio.scene_parts import build_rule

WIDTH = 16
QUESTION_WORDS = ("this", "image", "is", "depicting", "a", "view", "of", "the")
WORDS = (*QUESTION_WORDS, "red", "smiling", "tailed", "cat", "front", "side", "back", "over")


def _tokenizer():
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##head"]
    return BertTokenizer(vocab={w: i for i, w in enumerate(words)}, model_max_length=32)


def _bert(tokenizer):
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return BertForMaskedLM(config).eval()


@torch.no_grad()
def _opinionated() -> MaskedLanguageModel:
    """A BERT that knows two facts: backs do not smile, and fronts have no tail.

    Attention is even and passes words on as they are, so the mask sees the mean of the prompt. Two
    directions of the mean lower the odds of one view each; all other words look alike.
    """
    tokenizer = _tokenizer()
    model = _bert(tokenizer)
    for parameter in model.parameters():
        parameter.zero_()
    for name, parameter in model.named_parameters():
        if "LayerNorm.weight" in name:
            parameter.fill_(1.0)
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in (*WORDS, "[MASK]")}
    embeddings = model.bert.embeddings.word_embeddings.weight
    embeddings[:, 4], embeddings[:, 5] = 1.0, -1.0
    for axis, word in ((0, "smiling"), (2, "tailed")):
        embeddings[ids[word]] = 0.0
        embeddings[ids[word], axis], embeddings[ids[word], axis + 1] = 1.0, -1.0
    attention = model.bert.encoder.layer[0].attention
    attention.self.value.weight.copy_(torch.eye(WIDTH))
    attention.output.dense.weight.copy_(torch.eye(WIDTH))
    model.cls.predictions.transform.dense.weight.copy_(torch.eye(WIDTH))
    decoder = model.cls.predictions.decoder.weight
    decoder[ids["back"], 0] = -2.0
    decoder[ids["front"], 2] = -2.0
    return MaskedLanguageModel(tokenizer, model)


@pytest.fixture(scope="module")
def opinionated() -> MaskedLanguageModel:
    """The model with two known opinions."""
    return _opinionated()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A saved BERT with random weights."""
    folder = tmp_path_factory.mktemp("bert") / "bert"
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    _bert(tokenizer).save_pretrained(folder)
    return folder


CONFIG = DebiasConfig(model="unused")


def test_each_view_loses_the_word_that_speaks_against_it(opinionated):
    prompts = debias_prompt(CONFIG, "a red smiling tailed cat", opinionated)
    assert prompts == {
        "side": "a red smiling tailed cat",
        "front": "a red smiling cat",
        "back": "a red tailed cat",
        "overhead": "a red smiling tailed cat",
    }


def test_neutral_prompt_stays_as_it_is(opinionated):
    prompts = debias_prompt(CONFIG, "a  red cat", opinionated)
    assert set(prompts.values()) == {"a  red cat"}


def test_threshold_zero_drops_nothing(opinionated):
    config = DebiasConfig(model="unused", threshold=0.0)
    assert set(debias_prompt(config, "a smiling cat", opinionated).values()) == {"a smiling cat"}


def test_only_the_words_named_may_go(opinionated):
    config = DebiasConfig(model="unused", words=("tailed",))
    prompts = debias_prompt(config, "a smiling tailed cat", opinionated)
    assert (prompts["front"], prompts["back"]) == ("a smiling cat", "a smiling tailed cat")
    with pytest.raises(ValueError, match="'green', which is not a word of 'a cat'"):
        debias_prompt(DebiasConfig(model="unused", words=("green",)), "a cat", opinionated)


def test_a_view_never_loses_all_its_words(opinionated):
    assert debias_prompt(CONFIG, "smiling", opinionated)["back"] == "smiling"
    assert debias_prompt(CONFIG, "smiling smiling", opinionated)["back"] == "smiling smiling"


def test_odds_are_those_of_the_model_and_do_not_depend_on_the_batch(folder):
    language_model = load_masked_language_model(str(folder))
    prompts = ["a cat", "a red smiling tailed cat of the cat"]
    odds = view_odds(language_model, prompts)
    torch.testing.assert_close(odds.sum(dim=1), torch.ones(2))
    torch.testing.assert_close(odds[:1], view_odds(language_model, prompts[:1]))
    tokenizer, model = language_model.tokenizer, language_model.model
    text = "This image is depicting a [MASK] view of a cat"
    encoded = tokenizer(text, return_tensors="pt")
    place = encoded.input_ids[0].tolist().index(tokenizer.mask_token_id)
    with torch.no_grad():
        probabilities = model(**encoded).logits[0, place].softmax(dim=-1)
    side, front = (int(tokenizer.convert_tokens_to_ids(view)) for view in ("side", "front"))
    torch.testing.assert_close(odds[0, 0] / odds[0, 1], probabilities[side] / probabilities[front])


def test_mask_in_the_prompt_is_not_taken_for_the_view(folder):
    language_model = load_masked_language_model(str(folder))
    assert view_odds(language_model, ["a cat", "a [MASK] cat"]).shape == (2, 4)


def test_random_model_drops_words_where_the_ratio_says_so(folder):
    """The rule, word by word, from the odds of the same model."""
    language_model, prompt = load_masked_language_model(str(folder)), "the red cat"
    config = DebiasConfig(model=str(folder), threshold=1.0)
    prompts = debias_prompt(config, prompt)
    for column, view in enumerate(VIEWS):
        full, *shorter = view_odds(language_model, [prompt, "red cat", "the cat", "the red"])
        kept = [
            word
            for word, odds in zip(prompt.split(), shorter, strict=True)
            if full[column] / odds[column] >= 1.0
        ]
        assert prompts[view] == (" ".join(kept) or prompt)


def test_debiased_prompts_reach_the_views(tiny_pipelines):
    by_view = {"back": "a red mushroom"}
    texts = view_texts(ViewWordsConfig(), "a purple duck", by_view)
    assert texts[VIEWS.index("back")] == "a red mushroom, back view"
    assert texts[VIEWS.index("front")] == "a purple duck, front view"
    prior = load_folder(tiny_pipelines["sd1"], torch.device("cpu"))
    prompts = build_view_prompts(
        DirectionalPromptsConfig(), prior, "a purple duck", by_view=by_view
    )
    assert torch.equal(prompts.views.tokens, prior.encode_prompt(texts).tokens)
    assert prompts.prompt == "a purple duck"


def test_missing_and_unfit_models_are_named(tmp_path, folder):
    with pytest.raises(WeightsMissing, match="prompt debiasing are missing: '/nowhere'"):
        load_masked_language_model("/nowhere")
    from transformers import BertModel

    encoder = tmp_path / "encoder"
    _tokenizer().save_pretrained(encoder)
    BertModel(_bert(_tokenizer()).config).save_pretrained(encoder)
    with pytest.raises(WeightsMissing, match="an encoder without its word prediction"):
        load_masked_language_model(str(encoder))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UnsafeWeights):
        load_masked_language_model(str(pickled))


def test_scene_debiases_its_prompts(folder, tiny_pipelines):
    prior = load_folder(tiny_pipelines["pocket"], torch.device("cpu"))
    said = {}
    for threshold in (0.0, 1.0):
        scene = load_scene(
            "pocket-dreamfusion",
            ["prompt=the red cat", f"debias={{model: {folder}, threshold: {threshold}}}"],
        ).config
        said[threshold] = build_rule(scene, 0, prior).prompts.views.tokens
        by_view = debias_prompt(scene.debias, "the red cat")
        texts = view_texts(scene.view_prompts.words, "the red cat", by_view)
        assert torch.equal(said[threshold], prior.encode_prompt(texts).tokens)
    assert not torch.equal(*said.values())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("view_prompts.kind=plain", "view_prompts are plain"),
        ("debias.words=[green]", "'green' is not a word of the prompt"),
    ],
)
def test_scene_refuses_debiasing_that_cannot_work(override, message):
    with pytest.raises(ConfigError, match=message):
        load_scene("pocket-dreamfusion", ["debias={model: folder}", override])


def test_scene_refuses_debiasing_that_no_stage_would_see():
    """Multi-view guidance says the same prompt for all views, whatever view_prompts are."""
    views, debias = "view_prompts.kind=directional", "debias={model: folder}"
    with pytest.raises(ConfigError, match="guidance multiview has one prompt for all views"):
        load_scene("pocket-mvdream", [debias, views])
    scene = load_scene("pocket-mvdream", [views]).config
    later = load_scene("pocket-dreamfusion").config.stages[0]
    later = replace(later, name="later", field=PreviousFieldConfig(), prior=PocketPriorConfig())
    mixed = replace(scene, stages=(*scene.stages, later), debias=DebiasConfig(model="folder"))
    assert mixed.debias is not None


@pytest.mark.parametrize("values", [{"threshold": 1.5}, {"threshold": -0.1}, {"model": " "}])
def test_config_refuses_nonsense(values):
    with pytest.raises(ValueError, match="expected"):
        DebiasConfig(**{"model": "folder", **values})

"""New words of a prior: equal to the stock way, exact when off, and nobody else's business."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from image_tools.configs import DdimConfig, DiffusersPriorConfig, PriorMemoryConfig
from image_tools.diffusion.loading import load_folder, load_prior
from image_tools.diffusion.sampling import sample_images
from image_tools.editing.align import tokenize_prompt, word_tokens
from image_tools.errors import UnsupportedModel
from image_tools.personalization.embedding_files import write_embedding
from image_tools.personalization.personalized import attach_subjects
from image_tools.personalization.personalized_configs import EmbeddingUseConfig, SubjectConfig
from image_tools.personalization.placeholders import PlaceholderError
from image_tools.personalization.tokens import TokenEmbedding, attach_tokens, word_embedding
from tests.tiny_models import write_refiner

CPU = torch.device("cpu")
WIDTH = 16
KINDS = ("sd1", "sdxl", "pocket")
PROMPTS = ["a red <my-dog>, front view", "purple duck"]


def random_word(token: str = "<my-dog>", *, vectors: int = 2, encoders: int = 1, seed: int = 0):
    """A word with random rows."""
    generator = torch.Generator().manual_seed(seed)
    rows = (torch.randn(vectors, WIDTH, generator=generator) for _ in range(encoders))
    return TokenEmbedding(token, tuple(rows))


def encoders_of(kind: str) -> int:
    return 2 if kind == "sdxl" else 1


def tokens_of(prior, *prompts):
    return prior.encode_prompt(prompts).tokens


@pytest.fixture
def prior(tiny_pipelines):
    return load_folder(tiny_pipelines["pocket"], CPU)


@pytest.fixture
def sdxl(tiny_pipelines):
    return load_folder(tiny_pipelines["sdxl"], CPU)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vectors", [1, 3])
def test_prompts_equal_the_stock_pipeline_with_the_same_word(tiny_pipelines, kind, vectors):
    from diffusers import DiffusionPipeline

    word = random_word(vectors=vectors, encoders=encoders_of(kind))
    stock = DiffusionPipeline.from_pretrained(tiny_pipelines[kind], local_files_only=True)
    for index, rows in enumerate(word.rows):
        suffix = "_2" if index else ""
        stock.load_textual_inversion(
            {word.token: rows},
            token=word.token,
            tokenizer=getattr(stock, f"tokenizer{suffix}"),
            text_encoder=getattr(stock, f"text_encoder{suffix}"),
        )
    expected = stock.encode_prompt(
        PROMPTS, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    prior = load_folder(tiny_pipelines[kind], CPU)
    with attach_tokens(prior, [word]):
        text = prior.encode_prompt(PROMPTS)
    torch.testing.assert_close(text.tokens, expected[0], atol=1e-6, rtol=1e-5)
    if kind == "sdxl":
        torch.testing.assert_close(text.pooled, expected[2], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_without_the_word_and_after_it_are_those_of_the_base_bit_for_bit(
    tiny_pipelines, kind
):
    plain = load_folder(tiny_pipelines[kind], CPU).encode_prompt(PROMPTS)
    prior = load_folder(tiny_pipelines[kind], CPU)
    stack, fingerprint = prior.text, prior.fingerprint
    attached = attach_tokens(prior, [random_word(encoders=encoders_of(kind))])
    during = prior.encode_prompt(PROMPTS)
    assert torch.equal(during.tokens[1], plain.tokens[1])
    assert not torch.equal(during.tokens[0], plain.tokens[0])
    attached.remove()
    attached.remove()
    after = prior.text.encode(PROMPTS)
    assert torch.equal(after.tokens, plain.tokens)
    assert kind != "sdxl" or torch.equal(after.pooled, plain.pooled)
    assert prior.text is stack
    assert prior.fingerprint == fingerprint


def test_removal_leaves_tokenizer_and_encoder_as_they_were(prior):
    tower = prior.text.towers[0]
    table = tower.encoder.get_input_embeddings()
    before = tower.tokenizer.backend_tokenizer.to_str(), table.weight.clone()
    with attach_tokens(prior, [random_word()]):
        prior.encode_prompt(PROMPTS)
        assert tower.tokenizer.backend_tokenizer.to_str() == before[0]
    assert prior.text.towers[0] is tower
    assert not table._forward_hooks
    assert not table._forward_pre_hooks
    assert torch.equal(table.weight, before[1])


def test_words_go_in_any_order(prior):
    first = attach_tokens(prior, [random_word("<a>")])
    alone = tokens_of(prior, "a <a> <b>")
    second = attach_tokens(prior, [random_word("<b>", seed=1)])
    both = tokens_of(prior, "a <a> <b>")
    first.remove()
    assert not torch.equal(tokens_of(prior, "a <a>"), alone)
    third = attach_tokens(prior, [random_word("<a>")])
    assert torch.equal(tokens_of(prior, "a <a> <b>"), both)
    second.remove()
    assert torch.equal(tokens_of(prior, "a <a> <b>"), alone)
    third.remove()
    assert prior.fingerprint_parts == {}


def test_every_spelling_of_case_is_the_word(prior):
    with attach_tokens(prior, [random_word("<My-Dog>")]):
        spellings = tokens_of(prior, "a <My-Dog>.", "a <my-dog>.", "A <MY-DOG>.")
    assert torch.equal(spellings[0], spellings[1])
    assert torch.equal(spellings[0], spellings[2])


def test_the_longest_word_wins_whatever_the_order(prior):
    words = [random_word("<m>", seed=1), random_word("<m>2", seed=2), random_word("<m", seed=3)]
    alone = {}
    for word in words:
        with attach_tokens(prior, [word]):
            alone[word.token] = tokens_of(prior, f"a {word.token}")
    for order in (words, words[::-1]):
        with attach_tokens(prior, order):
            for word in words:
                assert torch.equal(tokens_of(prior, f"a {word.token}"), alone[word.token])


def test_a_word_of_letters_is_no_part_of_longer_words(prior):
    plain = tokens_of(prior, "two mydogs")
    with attach_tokens(prior, [random_word("mydog")]):
        assert torch.equal(tokens_of(prior, "two mydogs"), plain)
        assert not torch.equal(tokens_of(prior, "two mydog"), plain)


def test_a_word_of_several_vectors_takes_as_many_places(prior):
    with attach_tokens(prior, [random_word(vectors=3)]):
        ids = prior.text.towers[0].tokenizer(["a <my-dog> duck"]).input_ids[0]
    table = prior.text.towers[0].encoder.get_input_embeddings()
    assert [number >= table.num_embeddings for number in ids] == [
        *(False, False, True, True, True, False, False)
    ]


def test_edits_by_attention_find_the_word_and_those_behind_it(prior):
    text = "a red <my-dog>, duck"
    with attach_tokens(prior, [random_word(vectors=3)]):
        tokenizer = prior.text.towers[0].tokenizer
        prompt, ids = tokenize_prompt(tokenizer, text), tokenizer([text]).input_ids[0]
    assert prompt.ids == tuple(ids)
    assert word_tokens(prompt, "<my-dog>")[:3] == (3, 4, 5)
    assert word_tokens(prompt, "red") == (2,)
    assert [ids[place] for place in word_tokens(prompt, "duck")] == ids[-2:-1]


def test_prompts_that_grow_too_long_keep_their_end_token(prior):
    tokenizer = prior.text.towers[0].tokenizer
    length, end = tokenizer.model_max_length, tokenizer.sep_token_id
    with attach_tokens(prior, [random_word(vectors=4)]):
        encoded = prior.text.towers[0].tokenizer(
            ["<my-dog> " * 9], padding="max_length", max_length=length, truncation=True
        )
    assert len(encoded.input_ids[0]) == length
    assert encoded.input_ids[0][-1] == end


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_rows_that_a_prompt_uses_and_nothing_else(tiny_pipelines, kind):
    prior = load_folder(tiny_pipelines[kind], CPU)
    words = [random_word(token, encoders=encoders_of(kind)) for token in ("<a>", "<b>")]
    with attach_tokens(prior, words) as attached:
        prior.text.encode(["a <a> duck"]).tokens.square().sum().backward()
        gradients = {name: p.grad for name, p in attached.parameters().items()}
        weights = [p for tower in prior.text.towers for p in tower.encoder.parameters()]
    for index in range(encoders_of(kind)):
        assert bool((gradients[f"<a>.{index}"].norm(dim=1) > 0).all())
        assert bool((gradients[f"<b>.{index}"] == 0).all())
    assert all(weight.grad is None and not weight.requires_grad for weight in weights)


def test_the_fingerprint_follows_the_rows(prior):
    base = prior.fingerprint
    with attach_tokens(prior, [random_word()]) as attached:
        first, before = prior.fingerprint, tokens_of(prior, "<my-dog>")
        with torch.no_grad():
            attached.parameters()["<my-dog>.0"][1, 3] += 0.5
        second, after = prior.fingerprint, tokens_of(prior, "<my-dog>")
    assert len({base, first, second}) == 3
    assert not torch.equal(before, after)
    with attach_tokens(prior, [random_word()]):
        assert prior.fingerprint == first


def test_cached_prompts_of_other_rows_are_not_used(tiny_pipelines, tmp_path):
    config = DiffusersPriorConfig(
        model=str(tiny_pipelines["pocket"]), prompt_cache=str(tmp_path / "cache")
    )
    prior, again = load_prior(config, CPU), load_prior(config, CPU)
    results = []
    for seed in (0, 1):
        with attach_tokens(prior, [random_word(seed=seed)]):
            results.append(tokens_of(prior, "<my-dog>"))
    assert not torch.equal(*results)
    with attach_tokens(again, [random_word(seed=1)]):
        assert torch.equal(tokens_of(again, "<my-dog>"), results[1])
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_words_survive_the_dropping_of_the_encoders(tiny_pipelines):
    folder = str(tiny_pipelines["pocket"])
    frugal = load_prior(
        DiffusersPriorConfig(model=folder, memory=PriorMemoryConfig(text_encoder="drop")), CPU
    )
    prior = load_folder(folder, CPU)
    attach_tokens(prior, [random_word()])
    attach_tokens(frugal, [random_word()])
    for prompt in ("a <my-dog>", "<my-dog> duck", "duck"):
        assert torch.equal(tokens_of(frugal, prompt), tokens_of(prior, prompt))
        assert not frugal.text.is_loaded


def with_legacy_end(prior):
    """The module that pools, told its end as published configurations tell it."""
    (inner,) = [m for m in prior.text.towers[1].encoder.modules() if "eos_token_id" in vars(m)]
    inner.eos_token_id = 2
    return inner


def pooled_places(prior, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The pooled vector of a prompt, and what it is where it is taken at each token."""
    tower = prior.text.towers[1]
    ids = tower.tokenizer(
        [prompt], padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    states = tower.encoder(ids).last_hidden_state[0] @ tower.encoder.text_projection.weight.T
    end = ids[0].tolist().index(tower.tokenizer.plain.eos_token_id)
    return prior.text.encode([prompt]).pooled[0], states[: end + 1]


@pytest.mark.parametrize("fix_eos", [False, True])
def test_the_pooled_vector_of_encoders_with_the_legacy_end_token(sdxl, fix_eos):
    inner = with_legacy_end(sdxl)
    base = sdxl.encode_prompt(["a duck"])
    with attach_tokens(sdxl, [random_word(encoders=2)], fix_eos=fix_eos):
        pooled, places = pooled_places(sdxl, "a <my-dog> duck")
        assert torch.equal(sdxl.text.encode(["a duck"]).pooled, base.pooled)
    # The word is the tokens 2 and 3; the larger id is the second vector's.
    torch.testing.assert_close(pooled, places[-1 if fix_eos else 3], atol=1e-6, rtol=1e-5)
    assert inner.eos_token_id == 2


# Where those that write a file pool: the trainers of kohya (pool_workaround in its library) and
# ComfyUI, which gives the end token the largest id, at the end; diffusers and the code of DCO,
# whose file is always called learned_embeds, at the word.
@pytest.mark.parametrize(
    ("name", "fix_eos", "is_end"),
    [
        ("my-dog", None, True),
        ("my-dog", False, False),
        ("learned_embeds", None, False),
        ("learned_embeds", True, True),
    ],
)
def test_words_of_files_for_sdxl_pool_where_their_trainers_do(
    sdxl, tmp_path, name, fix_eos, is_end
):
    with_legacy_end(sdxl)
    rows = random_word(encoders=2).rows
    path = tmp_path / f"{name}.safetensors"
    save_file({"clip_l": rows[0], "clip_g": rows[1]}, path)
    use = EmbeddingUseConfig(str(path), "<my-dog>", fix_eos)
    attached = attach_subjects(sdxl, [SubjectConfig(embeddings=(use,))])
    pooled, places = pooled_places(sdxl, "a <my-dog> duck")
    torch.testing.assert_close(pooled, places[-1 if is_end else 3], atol=1e-6, rtol=1e-5)
    attached.remove()


@pytest.mark.parametrize("end", ["true", "false"])
def test_words_of_our_files_pool_as_they_were_learned(sdxl, tmp_path, end):
    with_legacy_end(sdxl)
    word = replace(random_word(encoders=2), metadata={"fix_eos": end})
    write_embedding(tmp_path / "word.safetensors", word, layout="sdxl")
    use = EmbeddingUseConfig(str(tmp_path / "word.safetensors"))
    attach_subjects(sdxl, [SubjectConfig(embeddings=(use,))])
    pooled, places = pooled_places(sdxl, "a <my-dog> duck")
    torch.testing.assert_close(pooled, places[-1 if end == "true" else 3], atol=1e-6, rtol=1e-5)


def test_words_of_one_prior_share_fix_eos(sdxl):
    with attach_tokens(sdxl, [random_word("<a>", encoders=2)], fix_eos=True) as attached:
        with pytest.raises(PlaceholderError, match=r"fix_eos=True, and '<b>' come with False"):
            attach_tokens(sdxl, [random_word("<b>", encoders=2)], fix_eos=False)
        with attach_tokens(sdxl, [random_word("<b>", encoders=2)]):
            assert sdxl.text.fix_eos, "a word that nothing is known about goes with the others"
        assert list(attached.rows) == ["<a>"]
    told = [
        replace(random_word(f"<{end}>", encoders=2), metadata={"fix_eos": end})
        for end in ("true", "false")
    ]
    with pytest.raises(PlaceholderError, match=r"'<true>' with True, '<false>' with False"):
        attach_tokens(sdxl, told)


def test_a_word_is_used_as_it_was_learned_and_otherwise_warned_about(sdxl, caplog):
    word = replace(random_word(encoders=2), metadata={"fix_eos": "true"})
    with attach_tokens(sdxl, [word]):
        assert sdxl.text.fix_eos
    assert caplog.records == []
    with attach_tokens(sdxl, [word], fix_eos=False):
        assert not sdxl.text.fix_eos
        assert "was learned with fix_eos=True and is used with False" in caplog.text


def test_a_prior_without_a_pooled_vector_takes_words_of_both_kinds(prior, caplog):
    words = [
        replace(random_word(f"<{end}>"), metadata={"fix_eos": end}) for end in ("true", "false")
    ]
    with attach_tokens(prior, words):
        assert tokens_of(prior, "<true> <false>").isfinite().all()
    assert caplog.records == []


def test_a_refiner_takes_its_half_of_a_pair(tmp_path):
    prior = load_folder(write_refiner(tmp_path / "refiner"), CPU)
    narrow = torch.randn(2, 12, generator=torch.Generator().manual_seed(1))
    pair = TokenEmbedding("<my-dog>", (narrow, random_word().rows[0]))
    with attach_tokens(prior, [random_word()]):
        expected = prior.text.encode(["<my-dog>"]).tokens
    with attach_tokens(prior, [pair]):
        assert torch.equal(prior.text.encode(["<my-dog>"]).tokens, expected)


def test_images_with_the_word_differ_and_come_back_without(prior):
    def image():
        generator = torch.Generator().manual_seed(5)
        config = DdimConfig(steps=2)
        return sample_images(prior, ["a <my-dog>"], generators=[generator], config=config)

    before = image()
    with attach_tokens(prior, [random_word()]):
        assert not torch.equal(image(), before)
    assert torch.equal(image(), before)


def test_a_class_word_of_several_pieces_gives_their_mean(prior):
    tower = prior.text.towers[0]
    table = tower.encoder.get_input_embeddings().weight
    vocabulary = tower.tokenizer.get_vocab()
    word = word_embedding(prior, "<d>", "red ducks", vectors=3)
    pieces = [vocabulary[piece] for piece in ("red", "duck", "##s")]
    torch.testing.assert_close(word.rows[0], table[pieces].mean(dim=0).expand(3, -1))
    duck = word_embedding(prior, "<d>", "duck").rows[0]
    assert torch.equal(duck[0], table[vocabulary["duck"]])


def test_a_word_that_starts_from_a_known_one_means_the_same(prior):
    with attach_tokens(prior, [word_embedding(prior, "<d>", "duck")]):
        both = tokens_of(prior, "a red <d>", "a red duck")
    assert torch.equal(both[0], both[1])


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("duck", r"'duck' is a token of the text encoder's vocabulary already.*Choose another"),
        ("Duck", r"'Duck' is a token of the text encoder's vocabulary"),
        ("[SEP]", r"is a token"),
        ("my dog", r"is 'my dog' - expected one word without spaces"),
        ("", r"is '' - expected one word"),
    ],
)
def test_words_that_cannot_be_used(prior, token, message):
    stack = prior.text
    with pytest.raises(PlaceholderError, match=message):
        attach_tokens(prior, [random_word("<ok>"), random_word(token)])
    assert prior.text is stack


def test_a_word_in_use_is_refused_and_all_or_none_are_attached(prior):
    attached = attach_tokens(prior, [random_word("<a>")])
    fingerprint = prior.fingerprint
    for words in (["<b>", "<A>"], ["<b>", "<B>"]):
        with pytest.raises(PlaceholderError, match="in use already"):
            attach_tokens(prior, [random_word(word) for word in words])
    assert prior.fingerprint == fingerprint
    attached.remove()


def test_missing_and_unknown_class_words(prior):
    with pytest.raises(PlaceholderError, match=r"The class word is missing.*'dog'"):
        word_embedding(prior, "<d>", " ")
    with pytest.raises(PlaceholderError, match=r"The class word '日' has no token"):
        word_embedding(prior, "<d>", "日")


def test_rows_of_another_model_are_refused(tiny_pipelines, prior):
    wide = TokenEmbedding("<a>", (torch.zeros(1, 768),))
    with pytest.raises(UnsupportedModel, match=r"width 768; .* have 16.*Stable Diffusion 1.x"):
        attach_tokens(prior, [wide])
    sdxl = load_folder(tiny_pipelines["sdxl"], CPU)
    with pytest.raises(UnsupportedModel, match=r"width 16; .* have 16 and 16"):
        attach_tokens(sdxl, [random_word()])
    with pytest.raises(PlaceholderError, match=r"\(1, 4\), \(2, 4\)"):
        TokenEmbedding("<a>", (torch.zeros(1, 4), torch.zeros(2, 4)))

"""Tables of words and tokens: multi-token words, repeated words, swaps, insertions, errors."""

from __future__ import annotations

import pytest
import torch

from image_tools.editing.align import (
    refinement_map,
    replacement_map,
    tokenize_prompt,
    word_tokens,
    word_weights,
)
from renderers.errors import StudioError
from tests.image_tools.editing.prompts import bert_tokenizer, clip_tokenizer


@pytest.fixture(scope="module", params=["clip", "bert"])
def tokens(request):
    tokenizer = {"clip": clip_tokenizer, "bert": bert_tokenizer}[request.param]()
    return lambda text: tokenize_prompt(tokenizer, text)


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("a red cat", [(1,), (2,), (3,)]),
        ("a crocodile sits", [(1,), (2, 3), (4,)]),
        ("a zqx cat", [(1,), (2, 3, 4), (5,)]),
        ("a cat, a duck.", [(1,), (2, 3), (4,), (5, 6)]),
        ("a  Red   CAT", [(1,), (2,), (3,)]),
        ("", []),
    ],
)
def test_words_and_their_tokens(tokens, text, table):
    prompt = tokens(text)
    assert list(prompt.tokens_of) == table
    assert len(prompt.ids) == 2 + sum(map(len, table))


def test_a_word_counts_everywhere_and_a_number_once(tokens):
    prompt = tokens("a red crocodile and a red duck")
    assert word_tokens(prompt, "red") == (2, 7)
    assert word_tokens(prompt, 1) == (2,)
    assert word_tokens(prompt, 5) == (7,)
    assert word_tokens(prompt, "crocodile") == (3, 4)
    assert word_tokens(prompt, "red duck") == (7, 8)
    assert word_tokens(tokens("a Cat, red"), "cat") == (2, 3)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("ducks", "Did you mean 'duck'"),
        ("", "Use a word of the prompt"),
        ("duck red", "not in the prompt"),
        (9, "expected 0 to 3"),
        (-1, "expected 0 to 3"),
    ],
)
def test_words_that_are_not_there_are_refused(tokens, word, message):
    with pytest.raises(StudioError, match=message):
        word_tokens(tokens("a red big duck"), word)


def test_words_behind_the_end_are_refused():
    prompt = tokenize_prompt(clip_tokenizer(length=5), "a red big cat")
    assert word_tokens(prompt, "big") == (3,)
    with pytest.raises(StudioError, match="behind the 5 tokens"):
        word_tokens(prompt, "cat")


def test_weights_touch_all_tokens_of_a_word(tokens):
    factors = word_weights(tokens("a crocodile sits"), {"crocodile": 3.0, 2: 0.5})
    assert factors[:6].tolist() == [1.0, 1.0, 3.0, 3.0, 0.5, 1.0]


def test_swapping_a_word_of_as_many_tokens_is_the_identity(tokens):
    mapping = replacement_map(tokens("a cat sits"), tokens("a duck sits"))
    assert torch.equal(mapping, torch.eye(24))


def test_swapping_a_word_of_more_tokens_shares_its_map(tokens):
    """Target: BOS a croco dile sits EOS; source: BOS a cat sits EOS."""
    mapping = replacement_map(tokens("a cat sits"), tokens("a crocodile sits"))
    expected = torch.zeros(24, 24)
    for i, j, value in [(0, 0, 1), (1, 1, 1), (2, 2, 0.5), (2, 3, 0.5), (3, 4, 1), (4, 5, 1)]:
        expected[i, j] = value
    for j in range(6, 24):
        expected[j - 1, j] = 1.0
    assert torch.equal(mapping, expected)


def test_swapping_a_word_of_fewer_tokens_keeps_the_sum_of_attention(tokens):
    source, target = tokens("a crocodile sits"), tokens("a cat sits")
    mapping = replacement_map(source, target)
    assert mapping[2:4, 2].tolist() == [1.0, 1.0]
    assert mapping[4, 3] == 1.0
    assert mapping[5, 4] == 1.0
    assert torch.equal(mapping[:, 23], torch.eye(24)[23])
    attention = torch.zeros(24)
    attention[: len(source.ids)] = 1.0 / len(source.ids)
    torch.testing.assert_close((attention @ mapping).sum(), torch.tensor(1.0))


def test_swapping_words_of_two_and_three_tokens(tokens):
    mapping = replacement_map(tokens("a crocodile and a cat"), tokens("a zqx and a duck"))
    torch.testing.assert_close(mapping[2:4, 2:5], torch.full((2, 3), 1.0 / 3.0))
    for i, j in [(4, 5), (5, 6), (6, 7), (7, 8)]:
        assert mapping[i, j] == 1.0


def test_swapping_needs_as_many_words(tokens):
    with pytest.raises(StudioError, match="has 3 words and 'a red cat sits' 4"):
        replacement_map(tokens("a cat sits"), tokens("a red cat sits"))


@pytest.mark.parametrize("tokenizer", [clip_tokenizer, bert_tokenizer])
def test_a_word_whose_source_is_cut_off_is_refused_and_one_that_is_cut_itself_is_not(tokenizer):
    """Five tokens are read, of them three words of one token each."""
    long, short = (tokenize_prompt(tokenizer(5), x) for x in ("a crocodile cat", "a red cat"))
    assert long.tokens_of == ((1,), (2, 3), ())
    with pytest.raises(StudioError, match=r"'cat' of the prompt 'a red cat' takes the place of"):
        replacement_map(long, short)
    mapping = replacement_map(short, long)
    torch.testing.assert_close(mapping[2, 2:4], torch.tensor([0.5, 0.5]))
    assert (mapping.sum(dim=0) > 0).all()
    _, shares = refinement_map(long, short)
    assert not shares[3], "refine lets it keep attention of its own"


def test_inserted_words_are_new_and_the_others_keep_their_maps(tokens):
    positions, alphas = refinement_map(tokens("a cat sits"), tokens("a red zqx cat sits"))
    assert alphas[:9].tolist() == [1, 1, 0, 0, 0, 0, 1, 1, 1]
    assert positions[:9].tolist() == [0, 1, 0, 0, 0, 0, 2, 3, 4]
    assert positions[9:].tolist() == list(range(9, 24))
    assert alphas[9:].min() == 1.0


def test_dropped_words_leave_no_trace(tokens):
    positions, alphas = refinement_map(tokens("a big red cat"), tokens("a cat"))
    assert positions[:4].tolist() == [0, 1, 4, 5]
    assert alphas.min() == 1.0


@pytest.mark.parametrize(
    ("source", "target", "partners"),
    [
        ("a cat", "a cat and a cat", [0, 1, 2, -1, -1, -1, 3]),
        ("a cat and a cat", "a cat", [0, 1, 2, 6]),
        ("red cat", "red duck red cat", [0, 1, -1, -1, 2, 3]),
    ],
)
def test_repeated_words_are_aligned_with_the_first_that_fits(tokens, source, target, partners):
    """Going back from the end, new target tokens are skipped as long as that costs nothing."""
    positions, alphas = refinement_map(tokens(source), tokens(target))
    found = [int(p) if a else -1 for p, a in zip(positions, alphas, strict=True)]
    assert found[: len(partners)] == partners


def test_equal_prompts_are_the_identity(tokens):
    prompt = tokens("a red crocodile sits on grass")
    positions, alphas = refinement_map(prompt, prompt)
    assert torch.equal(positions, torch.arange(24))
    assert torch.equal(alphas, torch.ones(24))
    assert torch.equal(replacement_map(prompt, prompt), torch.eye(24))

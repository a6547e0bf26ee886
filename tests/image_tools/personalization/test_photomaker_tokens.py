"""PhotoMaker's trigger: against the authors' own way over token ids, and what is refused."""

from __future__ import annotations

import copy

import pytest

from image_tools.personalization.photomaker_prompts import TriggerError, split_trigger
from image_tools.personalization.photomaker_tokens import RepeatingTokenizer
from image_tools.personalization.placeholders import PlaceholderTokenizer
from tests.tiny_models import _clip_tokenizer

PROMPTS = (
    "a portrait of a man img",
    "A Woman img, riding a horse",
    "a girl img's hat in the snow",
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Two with SDXL's two ways of padding."""
    first = _clip_tokenizer(tmp_path_factory.mktemp("clip") / "one")
    second = copy.deepcopy(first)
    second.pad_token = "!"
    assert first.pad_token_id != second.pad_token_id
    return first, second


def expanded(tokenizer, prompt, copies):
    """The authors' loop: the trigger is a token of its own, found and taken out again."""
    marked = copy.deepcopy(tokenizer)
    marked.add_tokens(["img"], special_tokens=True)
    mark, clean, place = marked.convert_tokens_to_ids("img"), [], None
    for number in marked(prompt).input_ids:
        if number == mark:
            place = len(clean) - 1
        else:
            clean.append(number)
    clean = clean[:place] + [clean[place]] * copies + clean[place + 1 :]
    length = tokenizer.model_max_length
    return clean + [tokenizer.pad_token_id] * (length - len(clean)), place


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("copies", [1, 4])
def test_the_class_word_stands_once_for_each_row(tokenizers, prompt, copies):
    for tokenizer in tokenizers:
        ours = RepeatingTokenizer(tokenizer, "img", copies=copies)
        wanted, place = expanded(tokenizer, prompt, copies)
        found = ours([prompt], padding="max_length", max_length=77, truncation=True)
        assert found.input_ids == [wanted]
        assert ours.span(prompt) == range(place, place + copies)
        used = sum(found.attention_mask[0])
        assert found.input_ids[0][:used] == ours([prompt]).input_ids[0]


def test_learned_words_keep_their_rows(tokenizers):
    for tokenizer in tokenizers:
        learned = PlaceholderTokenizer(tokenizer)
        learned.add("<hat>", range(600, 603))
        ours = RepeatingTokenizer(learned, "img", copies=2)
        ids = ours(["a man img with <hat>"], padding="max_length", max_length=77).input_ids[0]
        plain, place = expanded(tokenizer, "a man img with", 2)
        end = plain.index(tokenizer.eos_token_id)
        pads = [tokenizer.pad_token_id] * (77 - end - 4)
        assert ids == [*plain[:end], 600, 601, 602, tokenizer.eos_token_id, *pads]
        assert ours.span("a man img with <hat>") == range(place, place + 2)


def test_one_copy_is_the_prompt_without_the_trigger(tokenizers):
    for prompt in PROMPTS:
        text = split_trigger(prompt, "img").text
        assert "img" not in text
        once = RepeatingTokenizer(tokenizers[0], "img", copies=1)
        assert once([prompt]).input_ids[0] == tokenizers[0](text).input_ids


def test_long_prompts_keep_the_copies_and_the_closing_token(tokenizers):
    tokenizer = tokenizers[0]
    ours = RepeatingTokenizer(tokenizer, "img", copies=6)
    prompt = "a man img " + "x" * 100
    ids = ours([prompt], padding="max_length", truncation=True).input_ids[0]
    span = ours.span(prompt)
    assert (len(ids), ids[-1]) == (77, tokenizer.eos_token_id)
    assert (len({ids[place] for place in span}), len(span)) == (1, 6)


def test_copies_that_do_not_fit_are_refused(tokenizers):
    ours = RepeatingTokenizer(tokenizers[0], "img", copies=6)
    with pytest.raises(TriggerError, match="is token 71 and stands for 6 of the photos"):
        ours.span("x" * 71 + " img")


def test_other_trigger_words_are_words_too(tokenizers):
    assert split_trigger("a man <me> with an img", "<me>").text == "a man with an img"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a portrait of a man", "does not hold the trigger word 'img'"),
        ("a man imgur", "does not hold the trigger word"),
        ("a man img and a woman img", "holds the trigger word 'img' 2 times"),
        ("img of a man", "follows nothing"),
        ("a man, img", "follows ','"),
    ],
)
def test_prompts_that_name_nobody_are_refused(prompt, said):
    with pytest.raises(TriggerError, match=said):
        split_trigger(prompt, "img")

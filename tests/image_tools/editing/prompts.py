"""Tokenizers with known word pieces, of both families that priors use."""

from __future__ import annotations

import string

__all__ = ["CLIP_MERGES", "bert_tokenizer", "clip_tokenizer"]

WORDS = ("a", "red", "blue", "cat", "duck", "sits", "and", "on", "big", "grass")
CLIP_MERGES = (*WORDS, "croco", "dile")


def clip_tokenizer(length: int = 24):
    """Known words are one token; "crocodile" is two, "zqx" three."""
    from transformers import CLIPTokenizer

    letters = string.ascii_lowercase + string.punctuation + string.digits
    vocab = [*letters, *(f"{c}</w>" for c in letters)]
    merges: list[tuple[str, str]] = []
    for word in CLIP_MERGES:
        pieces = [*word[:-1], f"{word[-1]}</w>"] if word != "croco" else list(word)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = ["".join(pieces[:2])]
            vocab.append(pieces[0])
    vocab = [*dict.fromkeys(vocab), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={word: k for k, word in enumerate(vocab)},
        merges=list(dict.fromkeys(merges)),
        model_max_length=length,
    )


def bert_tokenizer(length: int = 24):
    """Known words are one token; "crocodile" is two, "zqx" three."""
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "croco", "##dile"]
    words += [*string.punctuation, *"zqx", *(f"##{letter}" for letter in "zqx")]
    return BertTokenizer(
        vocab={word: k for k, word in enumerate(dict.fromkeys(words))}, model_max_length=length
    )

"""A tiny KOSMOS-G with random weights: 64 wide, one head each, images of 28 pixels, 4 features."""

from __future__ import annotations

import struct
from pathlib import Path

import torch

from image_tools.personalization.kosmos_g import KosmosGModel
from image_tools.personalization.kosmos_g_aligner import AlignerTrainer, new_aligner
from image_tools.personalization.kosmos_g_configs import AlignerSettings
from image_tools.personalization.kosmos_g_vocabulary import FIRST, MASK, SYMBOLS, make_tokenizer
from image_tools.personalization.kosmos_g_weights import prompt_tokens

__all__ = ["LETTERS", "tiny_aligner", "tiny_kosmos", "tiny_mllm", "write_vocabulary"]

WIDTH = 64
TEXT_WIDTH = 16
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
WORDS = ["▁", "▁a", "▁hat", "▁duck", "▁red", ",", *LETTERS]
ROWS = len([*FIRST, *WORDS, MASK, *SYMBOLS])


def tiny_mllm():
    """A Kosmos2Model of two layers each."""
    from transformers import Kosmos2Config, Kosmos2Model

    text = {
        "vocab_size": ROWS,
        "embed_dim": WIDTH,
        "layers": 2,
        "ffn_dim": 96,
        "attention_heads": 1,
        "max_position_embeddings": 64,
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "patch_size": 14,
        "image_size": 28,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(21)
        config = Kosmos2Config(text_config=text, vision_config=vision, latent_query_num=4)
        return Kosmos2Model(config).eval()


def tiny_aligner(queries: int = 77, heads: int = 2) -> AlignerTrainer:
    """For priors that read text of width 16."""
    settings = AlignerSettings(
        input_width=WIDTH,
        width=TEXT_WIDTH,
        queries=queries,
        layers=2,
        heads=heads,
        ffn_width=24,
        positions=80,
    )
    return new_aligner(settings, generator=torch.Generator().manual_seed(22))


def tiny_kosmos(folder: Path, *, queries: int = 77, heads: int = 2) -> KosmosGModel:
    """All parts; the vocabulary is written to ``folder``."""
    mllm, tokenizer = tiny_mllm(), make_tokenizer(write_vocabulary(folder), rows=ROWS)
    aligner = tiny_aligner(queries, heads)
    return KosmosGModel(mllm, aligner, prompt_tokens(tokenizer, mllm)).eval()


def write_vocabulary(folder: Path) -> Path:
    """A SentencePiece model and a dictionary as the authors' folder data has them."""
    folder.mkdir(parents=True, exist_ok=True)
    # Long pieces are likelier than their letters, as in trained models.
    scores = {word: -10.0 + 2.0 * len(word) for word in WORDS}
    pieces = {"<unk>": 0.0, "<s>": 0.0, "</s>": 0.0, **scores}
    messages = [_field(1, _field(1, p.encode()) + _score(s)) for p, s in pieces.items()]
    trainer, normalizer = _field(2, bytes([3 << 3, 1])), _field(3, _field(1, b"identity"))
    content = b"".join([*messages, trainer, normalizer])
    (folder / "sentencepiece.bpe.model").write_bytes(content)
    # The dictionary has an order of its own.
    lines = [f"{word} {100 - k}" for k, word in enumerate(reversed(WORDS))]
    (folder / "dict.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


def _score(value: float) -> bytes:
    return bytes([2 << 3 | 5]) + struct.pack("<f", value)

"""The pocket text encoder: MiniLM-L6 (Apache-2.0) with its vocabulary pruned, weights frozen.

The WordPiece vocabulary of the source model is ordered by frequency, so its head keeps the common
words whole; so are the words of the toybox and of the pack of real objects, however rare. Every
single character and continuation stays, so that any other ASCII word falls back to pieces.
Embedding rows are copied, nothing is trained: a sentence of kept words has exactly the source
model's hidden states.

The folder loads with plain ``transformers``; ``use_attention_mask`` makes the stock Stable
Diffusion pipeline pass the padding mask.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scenes.objects.pack import ObjectPack
from scenes.toybox.catalog import COLOR_NAMES, KINDS, PATTERNS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["MAX_TOKENS", "build_text_encoder", "encode_captions", "kept_tokens"]

MAX_TOKENS = 24
KEPT_TOKENS = 16_000


def _words_of_captions() -> set[str]:
    """Every word that names a thing, its colour or its pattern in either world's captions."""
    toys = [n for kind in KINDS.values() for n in (kind.noun, *kind.synonyms)]
    pack = ObjectPack()
    objects = [pack.info(name).noun for name in pack.names()]
    return {w for phrase in (*toys, *COLOR_NAMES, *PATTERNS, *objects) for w in phrase.split()}


def kept_tokens(vocab: dict[str, int], limit: int = KEPT_TOKENS) -> list[str]:
    """Special tokens, characters and continuations, words of our captions, then frequent words.

    Args:
        vocab: token to number, the frequent ones first.
        limit: how many are kept.
    """
    ordered = sorted(vocab, key=vocab.get)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [t for t in ordered if len(t.removeprefix("##")) == 1 and t.isascii()]
    rest = [t for t in ordered if t.isascii() and not t.startswith("[") and len(t) > 1]
    told = sorted(word for word in _words_of_captions() if word in vocab)
    kept = dict.fromkeys(special + characters + told)
    for token in rest:
        if len(kept) >= limit:
            break
        kept.setdefault(token)
    return sorted(kept, key=vocab.get)


def build_text_encoder(source: Path, target: Path) -> None:
    """Prune the model folder ``source`` and write ``target/text_encoder`` and ``target/tokenizer``.

    Args:
        source: a transformers folder of all-MiniLM-L6-v2 (config.json, model.safetensors,
            tokenizer.json).
        target: where the two folders are written.
    """
    from transformers import AutoModel, BertTokenizer

    model = AutoModel.from_pretrained(source, local_files_only=True, dtype=torch.float32).eval()
    vocab = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
    kept = kept_tokens(vocab)
    rows = torch.tensor([vocab[t] for t in kept])
    wanted = model.get_input_embeddings().weight.detach()[rows].clone()
    model.resize_token_embeddings(len(kept), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(wanted)
    model.config.use_attention_mask = True
    model.config.pad_token_id = kept.index("[PAD]")
    vocabulary = {token: i for i, token in enumerate(kept)}
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(target / "tokenizer")
    model.half().save_pretrained(target / "text_encoder")
    # Half precision on disk, single precision in use: transformers follows the config's dtype.
    config_path = target / "text_encoder" / "config.json"
    config = json.loads(config_path.read_text())
    config["dtype"] = "float32"
    config_path.write_text(json.dumps(config, indent=2))


@torch.no_grad()
def encode_captions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, captions: list[str]
) -> Tensor:
    """Hidden states ``[n, MAX_TOKENS, 384]`` as the stock pipeline computes them."""
    parts = []
    for start in range(0, len(captions), 256):
        tokens = tokenizer(
            captions[start : start + 256],
            padding="max_length",
            max_length=MAX_TOKENS,
            truncation=True,
            return_tensors="pt",
        ).to(model.device)
        parts.append(model(tokens.input_ids, attention_mask=tokens.attention_mask)[0])
    return torch.cat(parts)

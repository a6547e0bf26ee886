"""Prompts to text embeddings, as the stock pipelines make them.

``last_hidden``: Stable Diffusion 1.x and 2.x (whose folder already holds one layer less, so the
last layer is CLIP's penultimate one) and pocket (a BertModel; the encoder gets an attention mask
where its configuration has ``use_attention_mask``, the denoiser never does).
``penultimate_pooled``: SDXL, token states of both encoders side by side, pooled vector of the last.

Each prompt is encoded alone, so its embedding does not depend on the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from image_tools.diffusion.conditions import TextEmbedding, cat_embeddings
from image_tools.diffusion.precision import full_precision

__all__ = ["TextLayout", "TextStack", "TextTower", "unknown_id"]

logger = logging.getLogger(__name__)

TextLayout = Literal["last_hidden", "penultimate_pooled"]


@dataclass(frozen=True)
class TextTower:
    """One tokenizer and its encoder, a transformers tokenizer and a torch module."""

    tokenizer: Callable
    encoder: torch.nn.Module


class TextStack:
    """The text encoders of one prior: read when first needed, and free to be dropped."""

    def __init__(
        self,
        load: Callable[[], Sequence[TextTower]],
        layout: TextLayout,
        *,
        device: torch.device,
        words: Callable[[], Sequence[Callable]] | None = None,
    ) -> None:
        """Read nothing yet.

        Args:
            load: reads tokenizers and encoders.
            layout: how they are used.
            device: where the encoders live.
            words: reads the tokenizers alone; None where they are not apart from the encoders.
        """
        self._load, self._load_words = load, words
        self._tokenizers: tuple[Callable, ...] | None = None
        self._towers: tuple[TextTower, ...] | None = None
        self.layout = layout
        self.device = device

    @property
    def towers(self) -> tuple[TextTower, ...]:
        """Tokenizers and encoders, on ``device``, frozen."""
        if self._towers is None:
            self._towers = tuple(self._load())
            for tower in self._towers:
                tower.encoder.to(self.device).eval().requires_grad_(False)
        return self._towers

    @property
    def tokenizers(self) -> tuple[Callable, ...]:
        """The tokenizers, for which encoders that were dropped are not read again."""
        if self._towers is not None or self._load_words is None:
            return tuple(tower.tokenizer for tower in self.towers)
        if self._tokenizers is None:
            self._tokenizers = tuple(self._load_words())
        return self._tokenizers

    @property
    def is_loaded(self) -> bool:
        """Whether the encoders are in memory."""
        return self._towers is not None

    def drop(self) -> None:
        """Free the encoders; the next prompt reads them again."""
        self._towers = None

    def encode(self, prompts: Sequence[str]) -> TextEmbedding:
        """Encode prompts, one row each, without any cache; differentiable in the encoders."""
        encode_one = _last_hidden if self.layout == "last_hidden" else _penultimate_pooled
        with full_precision(self.device):
            return cat_embeddings([encode_one(self.towers, prompt) for prompt in prompts])


def _last_hidden(towers: Sequence[TextTower], prompt: str) -> TextEmbedding:
    tower = towers[0]
    ids, mask = _tokenize(tower, prompt)
    uses_mask = getattr(tower.encoder.config, "use_attention_mask", False)
    return TextEmbedding(tower.encoder(ids, attention_mask=mask if uses_mask else None)[0])


def _penultimate_pooled(towers: Sequence[TextTower], prompt: str) -> TextEmbedding:
    tokens, pooled = [], None
    for tower in towers:
        ids, _ = _tokenize(tower, prompt)
        output = tower.encoder(ids, output_hidden_states=True)
        tokens.append(output.hidden_states[-2])
        if output[0].ndim == 2:
            pooled = output[0]
    return TextEmbedding(torch.cat(tokens, dim=-1), pooled)


def _tokenize(tower: TextTower, prompt: str) -> tuple[Tensor, Tensor]:
    length = tower.tokenizer.model_max_length
    encoded = tower.tokenizer(
        [prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    used = len(tower.tokenizer([prompt], verbose=False).input_ids[0])
    if used > length:
        logger.warning(
            "The prompt '%.60s...' has %d tokens; the text encoder reads the first %d of them.",
            prompt, used, length,
        )  # fmt: skip
    _tell_unknown(tower.tokenizer, prompt, encoded.input_ids[0].tolist())
    device = next(tower.encoder.parameters()).device
    return encoded.input_ids.to(device), encoded.attention_mask.to(device)


def unknown_id(tokenizer: Any) -> int | None:
    """Id of unknown words; byte-level tokenizers, which know all, name one for something else."""
    backend = getattr(tokenizer, "backend_tokenizer", None)  # slow ones have none
    has_unknown = backend is not None and getattr(backend.model, "unk_token", None) == "[UNK]"
    return tokenizer.unk_token_id if has_unknown else None


def _tell_unknown(tokenizer: Any, prompt: str, ids: Sequence[int]) -> None:
    """Warn of words that small vocabularies cannot spell: what they mean is lost."""
    unknown = unknown_id(tokenizer)
    if unknown is None or unknown not in ids:
        return
    words = dict.fromkeys(prompt.split())
    lost = [w for w in words if unknown in tokenizer(w).input_ids]
    logger.warning(
        "The text encoder does not know %s of the prompt '%.60s'; it reads [UNK] there.",
        ", ".join(map(repr, lost)), prompt,
    )  # fmt: skip

"""New words for a prior: rows beside the text encoders' embedding tables (arXiv 2208.01618).

A word such as ``<my-dog>`` has n rows for each text encoder. They are parameters of their own, put
into the output of ``get_input_embeddings()`` by a forward hook: the encoders' own weights are never
touched, so training changes nothing else, and without the words every prompt has its old embedding
bit for bit. The tokenizers are wrapped, not changed (``placeholders``).

While words are attached, prompts in samplers and guidance rules may hold them, and the prior's
fingerprint, hence the key of cached prompts, covers the rows as they are at that moment.

CLIP text encoders whose configuration says ``eos_token_id: 2`` (most published ones) take their
pooled vector at the largest token id. New words have larger ids than the end token, so SDXL's
pooled vector moves to the word in transformers, hence in stock diffusers, its training scripts and
the code of DCO. kohya's trainer, A1111 and ComfyUI take it at the end token, and ``fix_eos`` tells
the encoders to. A word is used as it was learned, as far as its file tells.

    with attach_tokens(prior, [embedding]):
        images = sample_images(prior, ["<my-dog> on a beach"], generators=[generator])
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.text import TextLayout, TextStack, TextTower
from image_tools.errors import UnsupportedModel
from image_tools.personalization.placeholders import (
    PlaceholderError,
    PlaceholderTokenizer,
    check_placeholder,
    word_ids,
)

__all__ = [
    "FIX_EOS",
    "AttachedTokens",
    "TokenEmbedding",
    "TokenRows",
    "attach_tokens",
    "norm_keeper",
    "word_embedding",
]

logger = logging.getLogger(__name__)

PART = "tokens"
POOLED: TextLayout = "penultimate_pooled"
FIX_EOS = "fix_eos"
"""In a word's metadata, "true" or "false": how it was learned."""
TINY = 1e-12


@dataclass(frozen=True)
class TokenEmbedding:
    """One learned word."""

    token: str
    """The word as prompts have it."""
    rows: tuple[Float[Tensor, "n d"], ...]
    """Its vectors for each text encoder, in the model's order (SDXL: CLIP-L, CLIP-G)."""
    step: int | None = None
    """Training steps behind it, if known."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Anything else that is known about it, such as the model it was trained on."""

    def __post_init__(self) -> None:
        """Refuse encoders that disagree about the number of vectors."""
        counts = sorted({rows.shape[0] for rows in self.rows})
        if len(counts) != 1 or counts[0] < 1 or any(rows.ndim != 2 for rows in self.rows):
            shapes = ", ".join(str(tuple(rows.shape)) for rows in self.rows)
            raise PlaceholderError(
                f"The rows of '{self.token}' have the shapes {shapes or 'of nothing'} - expected "
                "[n, width] for each text encoder, with the same n. Use another file."
            )

    @property
    def vectors(self) -> int:
        """Number of vectors, which is the length of the word in tokens."""
        return self.rows[0].shape[0]


class TokenRows:
    """Trainable rows of one word in one text encoder."""

    def __init__(self, rows: Float[Tensor, "n d"], first_id: int, device: torch.device) -> None:
        """Copy ``rows``; they will answer to ids from ``first_id`` on."""
        self.rows = nn.Parameter(rows.detach().to(device, torch.float32, copy=True))
        self.ids = range(first_id, first_id + rows.shape[0])
        self._hooks: list[Any] = []
        self._place: Tensor | None = None

    def install(self, embedding: nn.Module) -> None:
        """Answer for the ids in what ``embedding`` puts out."""
        self._hooks = [
            embedding.register_forward_pre_hook(self._hide),
            embedding.register_forward_hook(self._fill),
        ]

    def uninstall(self) -> None:
        """Leave the embedding as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _hide(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The table has no such ids; row 0 stands in until ``_fill``."""
        place = args[0] - self.ids.start
        self._place = place.masked_fill((place < 0) | (place >= len(self.ids)), -1)
        return (args[0].masked_fill(self._place >= 0, 0), *args[1:])

    def _fill(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        picked = self.rows.to(output)[self._place.clamp(min=0)]
        return torch.where((self._place >= 0)[..., None], picked, output)


class AttachedTokens:
    """Words that a prior understands until ``remove``, or to the end of a ``with`` block."""

    def __init__(
        self, prior: DiffusionPrior, stack: _TokenTextStack, embeddings: Sequence[TokenEmbedding]
    ) -> None:
        self._prior, self._stack = prior, stack
        self._embeddings = {embedding.token: embedding for embedding in embeddings}
        self.rows = {token: stack.rows[token] for token in self._embeddings}
        """By word, the rows of each text encoder."""

    def __enter__(self) -> AttachedTokens:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def parameters(self) -> dict[str, nn.Parameter]:
        """What to train, by names such as ``<my-dog>.0``: the word and the text encoder."""
        return {
            f"{token}.{index}": rows.rows
            for token, towers in self.rows.items()
            for index, rows in enumerate(towers)
        }

    def embedding(self, token: str, *, step: int | None = None) -> TokenEmbedding:
        """A word with its rows as they are now."""
        before = self._embeddings[token]
        rows = tuple(rows.rows.detach().cpu().clone() for rows in self.rows[token])
        return TokenEmbedding(token, rows, before.step if step is None else step, before.metadata)

    def remove(self) -> None:
        """Make the words ordinary text again; a second call does nothing."""
        for token, towers in self.rows.items():
            if self._stack.rows.get(token) is towers:
                self._stack.remove(token)
        if not self._stack.rows and self._prior.text is self._stack:
            self._prior.text = self._stack.plain
            del self._prior.fingerprint_parts[PART]


class _TokenTextStack(TextStack):
    """Text encoders with words of ours in front; drops and reads them as the plain stack does."""

    def __init__(self, plain: TextStack, *, fix_eos: bool) -> None:
        super().__init__(self._extend, plain.layout, device=plain.device)
        self.plain, self.fix_eos = plain, fix_eos
        self.rows: dict[str, tuple[TokenRows, ...]] = {}
        self._next_ids = [_first_free_id(tower) for tower in plain.towers]
        self._ends: list[tuple[nn.Module, Any]] = []

    def drop(self) -> None:
        """Free the encoders; the rows stay."""
        self._take_off()
        self.plain.drop()
        super().drop()

    def add(self, embedding: TokenEmbedding, rows: Sequence[Tensor]) -> None:
        """Put a word in front of all encoders."""
        added = []
        for index, tower in enumerate(self.plain.towers):
            table = tower.encoder.get_input_embeddings().weight
            added.append(TokenRows(rows[index], self._next_ids[index], table.device))
            self._next_ids[index] += embedding.vectors
        self._take_off()
        self.rows[embedding.token] = tuple(added)
        super().drop()  # the next prompt extends the encoders anew

    def remove(self, token: str) -> None:
        """Take a word away."""
        self._take_off()
        del self.rows[token]
        super().drop()

    def fingerprint(self) -> str:
        """Hash of words and rows."""
        digest = hashlib.sha256(f"fix_eos={self.fix_eos}".encode())
        for token, towers in sorted(self.rows.items()):
            for rows in towers:
                digest.update(f"\0{token}\0{rows.ids}\0".encode())
                digest.update(rows.rows.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    def _extend(self) -> list[TextTower]:
        towers = []
        for index, tower in enumerate(self.plain.towers):
            tokenizer = PlaceholderTokenizer(tower.tokenizer)
            for token, rows in self.rows.items():
                tokenizer.add(token, rows[index].ids)
                rows[index].install(tower.encoder.get_input_embeddings())
            if self.fix_eos:
                self._tell_end(tower)
            towers.append(TextTower(tokenizer, tower.encoder))
        return towers

    def _take_off(self) -> None:
        """Leave the encoders as they were found."""
        for towers in self.rows.values():
            for rows in towers:
                rows.uninstall()
        for module, end in self._ends:
            module.eos_token_id = end
        self._ends = []

    def _tell_end(self, tower: TextTower) -> None:
        for module in tower.encoder.modules():
            if isinstance(vars(module).get("eos_token_id"), int):
                self._ends.append((module, module.eos_token_id))
                module.eos_token_id = tower.tokenizer.eos_token_id


def attach_tokens(
    prior: DiffusionPrior, embeddings: Sequence[TokenEmbedding], *, fix_eos: bool | None = None
) -> AttachedTokens:
    """Teach a prior words, until they are removed or to the end of a ``with`` block.

    Args:
        prior: a prior of any kind; it keeps its weights and tokenizers.
        embeddings: the words; all or none of them are attached.
        fix_eos: take SDXL's pooled vector at the end token, see above; None for as the words were
            learned, or like words that are attached already where that is not known.

    Raises:
        PlaceholderError: a word is in the vocabulary or attached already, or words differ in
            ``fix_eos``.
        UnsupportedModel: a word was learned for other text encoders.
    """
    found = prior.text if isinstance(prior.text, _TokenTextStack) else None
    is_fixed = _common_end(prior, found, embeddings, fix_eos)
    plain = prior.text.plain if found is not None else prior.text
    taken = list(found.rows) if found is not None else []
    matched = []
    for embedding in embeddings:
        for tower in plain.towers:
            check_placeholder(tower.tokenizer, embedding.token, taken)
        taken.append(embedding.token)
        matched.append(_match(embedding, plain.towers))
    stack = found or _TokenTextStack(plain, fix_eos=is_fixed)
    for embedding, rows in zip(embeddings, matched, strict=True):
        stack.add(embedding, rows)
    prior.text = stack
    prior.fingerprint_parts[PART] = stack.fingerprint
    return AttachedTokens(prior, stack, embeddings)


def word_embedding(
    prior: DiffusionPrior, token: str, word: str, *, vectors: int = 1
) -> TokenEmbedding:
    """A new word that starts from the meaning of a known one.

    Every vector starts as the mean of the rows of the known word's pieces ("teddy bear" has two).

    Raises:
        PlaceholderError: if the text encoders do not know ``word``.
    """
    plain = prior.text.plain if isinstance(prior.text, _TokenTextStack) else prior.text
    rows = []
    for tower in plain.towers:
        table = tower.encoder.get_input_embeddings().weight.detach()
        mean = table[word_ids(tower.tokenizer, word)].float().mean(dim=0)
        rows.append(mean.cpu().expand(vectors, -1).clone())
    return TokenEmbedding(token, tuple(rows), 0, {"init_word": word})


def norm_keeper(parameters: Mapping[str, nn.Parameter]) -> Callable[[], None]:
    """A function that brings each row back to the length it has now."""
    lengths = {name: rows.detach().norm(dim=1, keepdim=True) for name, rows in parameters.items()}

    @torch.no_grad()
    def keep() -> None:
        for name, rows in parameters.items():
            rows.mul_(lengths[name] / rows.norm(dim=1, keepdim=True).clamp(min=TINY))

    return keep


def _common_end(
    prior: DiffusionPrior,
    found: _TokenTextStack | None,
    embeddings: Sequence[TokenEmbedding],
    fix_eos: bool | None,
) -> bool:
    """``fix_eos`` of all words of a prior, which no other prior than SDXL's depends on."""
    now = found.fix_eos if found is not None else None
    if prior.text.layout != POOLED:
        return bool(now)
    learned = {word.token: end for word in embeddings if (end := _learned_end(word)) is not None}
    asked = set(learned.values()) if fix_eos is None else {fix_eos}
    if now is not None and asked - {now}:
        raise PlaceholderError(
            f"Words are attached with fix_eos={now}, and {_names(embeddings)} come with {not now} "
            "- expected one value for all words of a prior. Set fix_eos alike for all of them."
        )
    if len(asked) > 1:
        told = ", ".join(f"'{token}' with {end}" for token, end in learned.items())
        raise PlaceholderError(
            f"The words were learned with different fix_eos ({told}) - expected one value for all "
            "words of a prior. Set it for all of them, or leave some out."
        )
    is_fixed = asked.pop() if asked else bool(now)
    for token, end in learned.items():
        if end != is_fixed:
            logger.warning(
                "The word '%s' was learned with fix_eos=%s and is used with %s; its pooled vector "
                "will differ. Leave fix_eos open where the word is used, or set it to %s.",
                token, end, is_fixed, end,
            )  # fmt: skip
    return is_fixed


def _learned_end(embedding: TokenEmbedding) -> bool | None:
    """Whether a word was learned with the pooled vector at the end token, if its file tells."""
    return {"true": True, "false": False}.get(embedding.metadata.get(FIX_EOS, ""))


def _names(embeddings: Sequence[TokenEmbedding]) -> str:
    return ", ".join(f"'{embedding.token}'" for embedding in embeddings)


def _match(embedding: TokenEmbedding, towers: Sequence[TextTower]) -> tuple[Tensor, ...]:
    """The word's rows for these encoders; of an SDXL pair, a refiner takes the one that fits."""
    wanted = [tower.encoder.get_input_embeddings().weight.shape[1] for tower in towers]
    widths = [rows.shape[1] for rows in embedding.rows]
    if widths == wanted:
        return embedding.rows
    if len(wanted) == 1 and widths.count(wanted[0]) == 1:
        return (embedding.rows[widths.index(wanted[0])],)
    raise UnsupportedModel(
        f"The word '{embedding.token}' has vectors of width {' and '.join(map(str, widths))}; the "
        f"text encoders of this prior have {' and '.join(map(str, wanted))}. Expected a word that "
        "was learned on the same family of models (768: Stable Diffusion 1.x, 1024: 2.x, 768 and "
        "1280: SDXL, 384: pocket). Choose that prior, or learn the word again on this one."
    )


def _first_free_id(tower: TextTower) -> int:
    """The first id that neither the tokenizer nor the embedding table has."""
    return max(len(tower.tokenizer), tower.encoder.get_input_embeddings().weight.shape[0])

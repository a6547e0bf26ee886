"""KOSMOS's vocabulary: a SentencePiece model and fairseq's dict.txt as one tokenizer.json.

The SentencePiece model knows pieces and their scores, dict.txt their numbers: <s>, <pad>, </s> and
<unk> come first, then its lines, then <mask> and the special symbols of the public code in their
order. The model is a protocol buffer of which three fields are read, so no other package is needed.
Words are split as XLM-RoBERTa's tokenizer of transformers splits them. A piece that dict.txt lacks
is unknown to the language model, and left out.

    tokenizer = make_tokenizer(Path("unilm/kosmos-g/data"), rows=64007)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from image_tools.errors import UnsupportedModel, WeightsMissing

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "DICTIONARY",
    "MASK",
    "PIECES",
    "SYMBOLS",
    "make_tokenizer",
    "read_dictionary",
    "read_pieces",
]

PIECES, DICTIONARY = "sentencepiece.bpe.model", "dict.txt"
FIRST = ("<s>", "<pad>", "</s>", "<unk>")
MASK = "<mask>"
SYMBOLS = ("</doc>", "<image>", "</image>", "</chunk>", "</line>")
UNKNOWN_ID = 3
# Field numbers of sentencepiece's ModelProto.
PIECE_FIELD, TRAINER_FIELD, NORMALIZER_FIELD = 1, 2, 3
TEXT_FIELD, SCORE_FIELD, MODEL_TYPE_FIELD, CHARSMAP_FIELD = 1, 2, 3, 2
UNIGRAM = 1
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# Pieces that no word should be made of score below all others.
UNSCORED_BELOW = 10.0


def make_tokenizer(folder: Path, *, rows: int) -> Tokenizer:
    """The tokenizer of a folder with ``sentencepiece.bpe.model`` and ``dict.txt``.

    Args:
        folder: the folder data of the public code.
        rows: of the language model's embedding, which the vocabulary must fill exactly.

    Raises:
        WeightsMissing: a file is absent or damaged.
        UnsupportedModel: another kind of SentencePiece model, or another number of words.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import Unigram

    scores, charsmap = read_pieces(folder / PIECES)
    words = read_dictionary(folder / DICTIONARY)
    # fairseq adds the mask where the dictionary lacks it, although KOSMOS-G never uses it.
    last = SYMBOLS if MASK in words else (MASK, *SYMBOLS)
    names = [*FIRST, *words, *last]
    if len(names) != rows:
        raise UnsupportedModel(
            f"'{folder / DICTIONARY}' and the special symbols make {len(names)} tokens, the "
            f"language model has {rows} - expected as many. Use the dictionary that came with the "
            "checkpoint, or a folder with its tokenizer.json."
        )
    lowest = min(scores.values()) - UNSCORED_BELOW
    first = dict.fromkeys(FIRST, 0.0)
    vocabulary = [(name, first.get(name, scores.get(name, lowest))) for name in names]
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=UNKNOWN_ID, byte_fallback=False))
    if charsmap:
        tokenizer.normalizer = normalizers.Precompiled(charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    special = [
        AddedToken(name, normalized=False, special=True) for name in (*FIRST, MASK, *SYMBOLS)
    ]
    tokenizer.add_special_tokens(special)
    return tokenizer


def read_dictionary(path: Path) -> list[str]:
    """The words of a fairseq dictionary, in their order.

    Raises:
        WeightsMissing: the file is absent, or a line has no count.
    """
    try:
        # Not splitlines, which ends lines at U+0085, U+2028 and others, too: those can be words.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        split = [line.removesuffix(" #fairseq:overwrite").rpartition(" ") for line in lines]
        return [word for word, _, count in split if int(count) >= 0]
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_pieces(path: Path) -> tuple[dict[str, float], bytes]:
    """Pieces with their scores, and the table that normalises characters.

    Raises:
        WeightsMissing: the file is absent or damaged.
        UnsupportedModel: the model is not of unigrams.
    """
    scores: dict[str, float] = {}
    charsmap, kind = b"", UNIGRAM
    try:
        for field, value in _fields(path.read_bytes()):
            if field == PIECE_FIELD:
                piece = dict(_fields(value))
                scores[piece[TEXT_FIELD].decode()] = piece.get(SCORE_FIELD, 0.0)
            elif field == TRAINER_FIELD:
                kind = dict(_fields(value)).get(MODEL_TYPE_FIELD, UNIGRAM)
            elif field == NORMALIZER_FIELD:
                charsmap = dict(_fields(value)).get(CHARSMAP_FIELD, b"")
        if not scores:
            raise ValueError("it holds no pieces")
    except (OSError, ValueError, KeyError, IndexError, AttributeError, struct.error) as error:
        raise _unreadable(path, error) from error
    if kind != UNIGRAM:
        raise UnsupportedModel(
            f"'{path}' is a SentencePiece model of type {kind} - expected {UNIGRAM}, unigrams. Use "
            "the file that came with the checkpoint."
        )
    return scores, charsmap


def _fields(content: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Field numbers and values of one protocol buffer message."""
    position = 0
    while position < len(content):
        tag, position = _varint(content, position)
        field, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, position = _varint(content, position)
        elif wire == BYTES:
            length, position = _varint(content, position)
            value = content[position : position + length]
            if len(value) < length:
                raise ValueError("it ends early")
            position += length
        elif wire in (FIXED32, FIXED64):
            size, form = (4, "<f") if wire == FIXED32 else (8, "<d")
            value = struct.unpack(form, content[position : position + size])[0]
            position += size
        else:
            raise ValueError(f"it has a field of wire type {wire}")
        yield field, value


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = shift = 0
    while True:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position


def _unreadable(path: Path, error: Exception) -> WeightsMissing:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return WeightsMissing(
        f"The vocabulary file '{path}' cannot be read ({reason}). Expected {PIECES} and "
        f"{DICTIONARY} as they lie in the folder data of the public code; copy them again."
    )

"""Textual Inversion files of every layout in use, to and from ``TokenEmbedding``.

    layout       content                                              the word is
    diffusers    {word: [n, d]}                                       the key
    a1111        string_to_param {"*": [n, d]}, name, step, ...       ``name``
    original     string_to_param {word or "*": [n, d]}, no name       the key, "*": the file's name
    kohya        {"emb_params": [n, d]}                               the file's name
    sdxl         {"clip_l": [n, 768], "clip_g": [n, 1280]}            the file's name
    lora_bundle  bundle_emb.<word>.* beside the tensors of a LoRA     part of the keys

``a1111`` and ``original`` are pickles (.pt, .bin), the others safetensors or pickles. Pickles are
read with ``weights_only``, which runs no code of theirs. What a layout cannot say (word, steps,
metadata) stands in the header of our safetensors files, which others ignore.

kohya's trainer, A1111 and ComfyUI take SDXL's pooled vector at the end token (``fix_eos``, see
``tokens``), so words in ``sdxl`` files and bundles are known to be learned so. diffusers and the
code of DCO do not; they write the same two tensors, in files called ``learned_embeds``.

    (embedding,) = read_embeddings(Path("my-dog.pt"))
    write_embedding(Path("learned_embeds.safetensors"), embedding, layout="diffusers")
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from image_tools.diffusion.lora_bundles import (
    BUNDLE_PREFIX,
    ONLY,
    PAIR,
    bundle_key,
    bundled_part,
)
from image_tools.diffusion.weight_writing import write_safetensors
from image_tools.errors import UnsafeWeights, UnsupportedModel, WeightsMissing, first_line
from image_tools.personalization.tokens import FIX_EOS, TokenEmbedding

__all__ = [
    "EmbeddingLayout",
    "bundle_embeddings",
    "bundled_words",
    "read_embeddings",
    "split_bundle",
    "write_embedding",
]

EmbeddingLayout = Literal["diffusers", "a1111", "original", "kohya", "sdxl"]

ANY_WORD = "*"
CLIP_ID_OF_ANY_WORD = 265
PICKLES = (".pt", ".bin", ".pth", ".ckpt")
HEADER = "studio_embedding"
# What diffusers and the code of DCO call their files; the others call them as the word.
NAME_OF_DIFFUSERS = "learned_embeds"
# Things that tell a file is something else, and what.
STRANGERS = (
    (re.compile(r"lora_|\.lora|hada_|lokr_|dora_scale"), "a LoRA without embedded words"),
    (re.compile(r"diffusion_model|^(down|up)_blocks|^unet"), "a whole model"),
)
EXPECTED = "Expected a Textual Inversion embedding of diffusers, A1111, kohya or the original code"


def read_embeddings(path: Path | str, *, token: str | None = None) -> tuple[TokenEmbedding, ...]:
    """The words in a file of any layout.

    Args:
        path: a .safetensors, .pt or .bin file.
        token: the word to use instead of the file's own, for a file with one.

    Raises:
        WeightsMissing: the file is absent or damaged; UnsafeWeights if it holds more than tensors
            and plain values.
        UnsupportedModel: it is no embedding.
    """
    path = Path(path).expanduser()
    content, header = _open(path)
    found = _parse(content, path)
    if HEADER in header:
        found = tuple(_with_header(embedding, header[HEADER]) for embedding in found)
    if token is not None:
        if len(found) != 1:
            words = ", ".join(f"'{embedding.token}'" for embedding in found)
            raise UnsupportedModel(
                f"'{path}' holds {len(found)} words ({words}) and is to be read as '{token}'. "
                "Expected a file with one; read it without another name."
            )
        found = (replace(found[0], token=token),)
    return found


def write_embedding(
    path: Path | str, embedding: TokenEmbedding, *, layout: EmbeddingLayout = "diffusers"
) -> None:
    """Write one word; the file appears whole or not at all.

    ``diffusers``, ``kohya`` and ``sdxl`` become safetensors unless the name ends in .pt or .bin.

    Raises:
        UnsupportedModel: the layout cannot hold the word, or not under this name.
    """
    path = Path(path).expanduser()
    _check_layout(path, embedding, layout)
    if layout == "a1111":
        _write_pickle(path, _a1111(embedding))
    elif layout == "original":
        _write_pickle(path, _original(embedding))
    else:
        tensors = _tensors(embedding, layout)
        if path.suffix in PICKLES:
            _write_pickle(path, tensors)
        else:
            write_safetensors(path, tensors, {"format": "pt", HEADER: _header(embedding)})


def bundle_embeddings(
    lora: Mapping[str, Tensor], embeddings: Sequence[TokenEmbedding]
) -> dict[str, Tensor]:
    """The tensors of a LoRA file with words beside them, as A1111 reads them."""
    bundled = dict(lora)
    for embedding in embeddings:
        encoders = (ONLY,) if len(embedding.rows) == 1 else PAIR
        for encoder, rows in zip(encoders, embedding.rows, strict=True):
            bundled[bundle_key(embedding.token, encoder)] = rows.detach().cpu().contiguous()
    return bundled


def split_bundle(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], tuple[TokenEmbedding, ...]]:
    """The LoRA's own tensors, and the words beside them."""
    lora: dict[str, Tensor] = {}
    words: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        bundled = bundled_part(key)
        if bundled is None:
            lora[key] = tensor
        else:
            words.setdefault(bundled[0], {})[bundled[1]] = tensor
    return lora, bundled_words(words)


def bundled_words(
    embeddings: Mapping[str, Mapping[str, Tensor]],
) -> tuple[TokenEmbedding, ...]:
    """Words that a LoRA brings along, from their vectors by encoder.

    Raises:
        UnsupportedModel: vectors are none.
    """
    found = []
    for word, parts in embeddings.items():
        names = PAIR if set(parts) == set(PAIR) else tuple(sorted(parts))
        rows = tuple(_rows(parts[name], word) for name in names)
        found.append(TokenEmbedding(word, rows, metadata=_pooling(names)))
    return tuple(found)


def _open(path: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """The file's content and, of a safetensors file, its header."""
    if not path.is_file():
        raise WeightsMissing(
            f"There is no embedding file '{path}'. {EXPECTED} (.safetensors, .pt or .bin); correct "
            "the path."
        )
    try:
        if path.suffix in PICKLES:
            content, header = _open_pickle(path), {}
        else:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise WeightsMissing(
            f"The embedding file '{path}' cannot be read ({first_line(error)}). {EXPECTED}; copy "
            "or download it again."
        ) from error
    if isinstance(content, Tensor):
        content = {"emb_params": content}
    if not isinstance(content, Mapping):
        raise _no_embedding(path, f"a {type(content).__name__}")
    return content, header


def _open_pickle(path: Path) -> Any:
    from torch.nn.modules.container import ParameterDict

    # What the original code saves its vectors in; reading it runs none of its methods but
    # __setstate__, which fills in attributes.
    safe = [ParameterDict, set]
    try:
        with torch.serialization.safe_globals(safe):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ('{found[1]}')" if found else ""
        raise UnsafeWeights(
            f"'{path}' holds Python objects other than tensors{what}, which could run code when "
            f"opened, or it is damaged. {EXPECTED}; get it as .safetensors."
        ) from error


def _parse(content: Mapping[str, Any], path: Path) -> tuple[TokenEmbedding, ...]:
    if any(str(key).startswith(BUNDLE_PREFIX) for key in content):
        return split_bundle(content)[1]
    if "string_to_param" in content:
        return _parse_string_to_param(content, path)
    if set(content) == set(PAIR) or (len(content) == 1 and set(content) <= {"emb_params", *PAIR}):
        names = [name for name in ("emb_params", *PAIR) if name in content]
        rows = tuple(_rows(content[name], path.stem) for name in names)
        is_foreign = path.stem != NAME_OF_DIFFUSERS
        return (TokenEmbedding(path.stem, rows, metadata=_pooling(names) if is_foreign else {}),)
    for pattern, what in STRANGERS:
        if any(pattern.search(str(key)) for key in content):
            raise _no_embedding(path, what)
    if not content or not all(_is_rows(value) for value in content.values()):
        keys = ", ".join(f"'{key}'" for key in list(content)[:3]) or "nothing"
        raise _no_embedding(path, f"a file with {keys}")
    return tuple(
        TokenEmbedding(str(word), (_rows(rows, str(word)),)) for word, rows in content.items()
    )


def _pooling(names: Sequence[str]) -> dict[str, str]:
    """How those that write SDXL's vectors under these names take the pooled vector."""
    return {FIX_EOS: "true"} if set(names) & set(PAIR) else {}


def _parse_string_to_param(content: Mapping[str, Any], path: Path) -> tuple[TokenEmbedding, ...]:
    """A1111's and the original layout, which lacks the name and may hold several words."""
    params = content["string_to_param"]
    # Old files have no _keys, on which ParameterDict's own methods rely.
    params = params if isinstance(params, Mapping) else getattr(params, "_parameters", {})
    name, step = content.get("name"), content.get("step")
    metadata = {
        key: str(content[key])
        for key in ("sd_checkpoint", "sd_checkpoint_name")
        if content.get(key) is not None
    }
    found = []
    for word, rows in params.items():
        if not _is_rows(rows):
            raise _no_embedding(path, f"a file whose '{word}' is no tensor of vectors")
        own = (name or path.stem) if word == ANY_WORD else word
        steps = int(step) if step is not None else None
        found.append(TokenEmbedding(own, (_rows(rows, own),), steps, metadata))
    if not found:
        raise _no_embedding(path, "a file without vectors")
    return tuple(found)


def _is_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim in (1, 2) and value.is_floating_point()


def _rows(value: Tensor, word: str) -> Tensor:
    """Vectors as float32 [n, d].

    Raises:
        UnsupportedModel: they are not finite or not of that shape.
    """
    if not _is_rows(value):
        raise UnsupportedModel(
            f"The vectors of '{word}' are {value.dtype} {tuple(value.shape)}. Expected numbers of "
            "shape [n, width]; use another file."
        )
    rows = value.detach().to(torch.float32)
    if not bool(torch.isfinite(rows).all()):
        raise UnsupportedModel(
            f"The vectors of '{word}' are not all finite numbers. Its training diverged; use an "
            "earlier file."
        )
    return rows.reshape(-1, rows.shape[-1]).clone()


def _check_layout(path: Path, embedding: TokenEmbedding, layout: EmbeddingLayout) -> None:
    encoders = len(embedding.rows)
    wanted = 2 if layout == "sdxl" else 1
    if encoders != wanted:
        better = "sdxl" if encoders == 2 else "diffusers"
        raise UnsupportedModel(
            f"The word '{embedding.token}' has vectors for {encoders} text encoder(s), the layout "
            f"{layout} holds {wanted}. Write it with layout {better}."
        )
    if layout in ("a1111", "original") and path.suffix not in PICKLES:
        raise UnsupportedModel(
            f"'{path.name}' is to be of layout {layout}, which exists as .pt only. Choose a name "
            "that ends in .pt, or the layout diffusers or kohya."
        )


def _tensors(embedding: TokenEmbedding, layout: EmbeddingLayout) -> dict[str, Tensor]:
    names = {"diffusers": (embedding.token,), "kohya": ("emb_params",), "sdxl": PAIR}[layout]
    rows = (rows.detach().cpu().contiguous() for rows in embedding.rows)
    return dict(zip(names, rows, strict=True))


def _a1111(embedding: TokenEmbedding) -> dict[str, Any]:
    metadata = embedding.metadata
    return {
        "string_to_token": {ANY_WORD: CLIP_ID_OF_ANY_WORD},
        "string_to_param": {ANY_WORD: embedding.rows[0].detach().cpu()},
        "name": embedding.token,
        "step": embedding.step or 0,
        "sd_checkpoint": metadata.get("sd_checkpoint"),
        "sd_checkpoint_name": metadata.get("sd_checkpoint_name"),
    }


def _original(embedding: TokenEmbedding) -> dict[str, Any]:
    """The placeholder must be one CLIP token there, and "*" is the customary one."""
    rows = torch.nn.Parameter(embedding.rows[0].detach().cpu())
    return {
        "string_to_token": {ANY_WORD: torch.tensor(CLIP_ID_OF_ANY_WORD)},
        "string_to_param": torch.nn.ParameterDict({ANY_WORD: rows}),
    }


def _header(embedding: TokenEmbedding) -> str:
    content = {"token": embedding.token, "step": embedding.step, "metadata": {**embedding.metadata}}
    return json.dumps(content)


def _with_header(embedding: TokenEmbedding, header: str) -> TokenEmbedding:
    """What the layout cannot say; a header that is not ours in spite of its name is ignored."""
    try:
        known = json.loads(header)
        step = None if known["step"] is None else int(known["step"])
        metadata = {str(key): str(value) for key, value in known["metadata"].items()}
        return replace(embedding, token=str(known["token"]), step=step, metadata=metadata)
    except (ValueError, KeyError, TypeError, AttributeError):
        return embedding


def _write_pickle(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    torch.save(dict(content), partial)
    partial.replace(path)


def _no_embedding(path: Path, what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"'{path}' is {what}, not an embedding. {EXPECTED}, a pair for SDXL (clip_l, clip_g), or a "
        "LoRA with words in it (bundle_emb)."
    )

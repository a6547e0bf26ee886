"""Tensors of a LoRA file, in every layout in use, to a ``LoraFile`` and back.

| layout | keys |
|---|---|
| peft | ``unet.<layer>.lora_A.weight``, ``lora_B``; alpha in ``lora_adapter_metadata``, if at all |
| diffusers | ``unet.<layer>.lora.down.weight``; text ``….lora_linear_layer.down.weight``; same |
| old diffusers | ``<attention>.processor.to_q_lora.down.weight``; read only |
| kohya, A1111, ComfyUI | ``lora_unet_<layer with _>.lora_down.weight``, ``.alpha`` |
| LyCORIS | ``….hada_w1_a``, ``….lokr_w1``, ``….lora_mid.weight``; read only |

A file without alpha means alpha = rank, as every loader has it (1 is only what kohya's trainer sets
by default, and it writes that). ComfyUI and diffusers before 0.34 do not read alpha in a header; so
diffusers' and peft's layouts are written with alpha = rank, and the rest of the factor in ``up``.
CLIP layers are written with ``text_model.``, which transformers gave up and other tools expect, and
read with and without.

    lora = lora_from_tensors(tensors, metadata)
    tensors, metadata = lora_to_tensors(lora, layout="kohya")
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from image_tools.diffusion.lora_bundles import bundle_key, bundled_part
from image_tools.diffusion.lora_deltas import SECTIONS, LoraDelta, LoraFile, Section
from image_tools.diffusion.lora_import import LYCORIS_PARTS, delta_from_lycoris, with_mid
from image_tools.diffusion.lora_metadata import (
    METADATA_KEY,
    AlphaSettings,
    common_alpha,
    kohya_metadata,
    peft_metadata,
    read_settings,
)
from image_tools.diffusion.lora_names import (
    add_text_model,
    from_stability,
    kohya_of_layer,
    layer_of_kohya,
    strip_text_model,
)
from image_tools.errors import UnsupportedModel, WeightsMissing
from renderers.errors import StudioError

__all__ = ["LAYOUTS", "LoraLayout", "layout_of", "lora_from_tensors", "lora_to_tensors"]

LoraLayout = Literal["diffusers", "peft", "kohya"]
LAYOUTS: tuple[LoraLayout, ...] = ("diffusers", "peft", "kohya")

_KEY = re.compile(
    rf"(?P<layer>.+?)\.(?:(?P<plain>{'|'.join(('alpha', 'scalar', *LYCORIS_PARTS))})|"
    r"(?P<down>lora_down|lora\.down|lora_linear_layer\.down|lora_A(?:\.\w+)?)\.weight|"
    r"(?P<up>lora_up|lora\.up|lora_linear_layer\.up|lora_B(?:\.\w+)?)\.weight|"
    r"(?P<mid>lora_mid)\.weight|"
    r"(?P<magnitude>dora_scale|lora_magnitude_vector(?:\.\w+)?))"
)
_OLD_KEY = re.compile(r"(.+?)(?:\.processor)?\.to_(q|k|v|out)_lora\.(down|up)\.(weight|alpha)")
_UNET_HEADS = (
    *("down_blocks.", "mid_block.", "up_blocks.", "conv_in", "conv_out"),
    *("time_embedding.", "add_embedding.", "class_embedding."),
)
_TEXT_HEADS = ("encoder.", "embeddings.", "text_projection", "final_layer_norm", "pooler.")
_FORMATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_TEXT_TARGETS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
_UNET_TARGETS = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}


def lora_from_tensors(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    peft_settings: Mapping[str, Any] | None = None,
    layers_per_block: int = 2,
) -> LoraFile:
    """A LoRA from the tensors of a file, whatever its layout.

    Args:
        tensors: as stored.
        metadata: texts of the file's header.
        peft_settings: content of the ``adapter_config.json`` beside a file of peft.
        layers_per_block: ResNets in each down block of the denoiser that the LoRA is for.

    Raises:
        WeightsMissing: if tensors are missing or do not fit.
        UnsupportedModel: if layers or kinds of deltas are unknown.
    """
    settings = read_settings(metadata, peft_settings)
    parts: dict[tuple[Section, str], dict[str, Tensor]] = defaultdict(dict)
    embeddings: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        bundled = bundled_part(key)
        if bundled is not None:
            word, encoder = bundled
            embeddings[word][encoder] = tensor
            continue
        layer, part = _split(key)
        parts[_locate(layer, layers_per_block)][part] = tensor
    sections: dict[Section, dict[str, LoraDelta]] = defaultdict(dict)
    for (section, name), found in parts.items():
        sections[section][name] = _delta(name, found, settings.get(section))
    kept = {key: text for key, text in metadata.items() if key != METADATA_KEY}
    return LoraFile(dict(sections), kept, dict(embeddings), layers_per_block)


def lora_to_tensors(
    lora: LoraFile, *, layout: LoraLayout
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header texts of a LoRA in a layout."""
    if layout == "kohya":
        return _to_kohya(lora), kohya_metadata(lora)
    lora = _with_rank_as_alpha(lora)
    tensors = {}
    for section, name, delta in lora.deltas():
        is_text = section != "unet"
        stem = f"{section}.{add_text_model(name) if is_text else name}"
        words = ("lora_A", "lora_B")
        if layout == "diffusers":
            inner = "lora_linear_layer" if is_text else "lora"
            words = (f"{inner}.down", f"{inner}.up")
        tensors[f"{stem}.{words[0]}.weight"] = delta.down
        tensors[f"{stem}.{words[1]}.weight"] = delta.up
        if delta.magnitude is not None:
            tensors[f"{stem}.lora_magnitude_vector.weight"] = delta.magnitude
    return tensors, peft_metadata(lora)


def layout_of(names: Iterable[str]) -> str:
    """What the layout of a file with these tensors is called, for people."""
    keys = list(names)
    tests = {
        "LyCORIS": lambda key: any(f".{part}" in key for part in (*LYCORIS_PARTS, "lora_mid")),
        "kohya": lambda key: key.startswith(("lora_unet_", "lora_te")),
        "old diffusers": lambda key: _OLD_KEY.fullmatch(key) is not None,
        "peft": lambda key: ".lora_A." in key,
        "diffusers": lambda key: ".down.weight" in key,
    }
    return next((name for name, test in tests.items() if any(map(test, keys))), "unknown")


def _split(key: str) -> tuple[str, str]:
    """Layer and part of a tensor's name."""
    old = _OLD_KEY.fullmatch(key)
    if old is not None:
        is_text = ".self_attn" in old[1] or key.startswith("text_encoder")
        target = (_TEXT_TARGETS if is_text else _UNET_TARGETS)[old[2]]
        return f"{old[1]}.{target}", "alpha" if old[4] == "alpha" else old[3]
    match = _KEY.fullmatch(key)
    if match is None:
        raise UnsupportedModel(
            f"The tensor '{key}' is not of a LoRA that can be read. Expected the layout of "
            "diffusers, peft, kohya or LyCORIS (LoHa, LoKr, CP), without biases and norms."
        )
    if match["plain"]:
        return match["layer"], match["plain"]
    return match["layer"], next(part for part in ("down", "up", "mid", "magnitude") if match[part])


def _locate(layer: str, layers_per_block: int) -> tuple[Section, str]:
    """Section and diffusers name of a layer as a file writes it."""
    found = layer_of_kohya(layer, layers_per_block)
    if found is None:
        found = _locate_dotted(layer, layers_per_block)
    section, name = found
    heads = _UNET_HEADS if section == "unet" else _TEXT_HEADS
    if not name.startswith(heads):
        raise UnsupportedModel(
            f"The LoRA changes '{layer}', which Stable Diffusion 1.x, 2.x and SDXL do not have. "
            "It was made for another kind of model (Flux, SD3, a video model, ...)."
        )
    return section, name


def _locate_dotted(layer: str, layers_per_block: int) -> tuple[Section, str]:
    name = layer.removeprefix("base_model.model.")
    for section in SECTIONS:
        if name.startswith(f"{section}."):
            rest = name.removeprefix(f"{section}.")
            return section, rest if section == "unet" else strip_text_model(rest)
    if name.startswith("diffusion_model."):
        return "unet", from_stability(name.removeprefix("diffusion_model."), layers_per_block)
    text = strip_text_model(name)
    return ("text_encoder", text) if text.startswith(_TEXT_HEADS) else ("unet", name)


def _delta(layer: str, parts: dict[str, Tensor], settings: AlphaSettings | None) -> LoraDelta:
    """The delta of one layer from its tensors."""
    alpha = _number(layer, "alpha", parts.pop("alpha", None))
    factor = _number(layer, "scalar", parts.pop("scalar", None))
    magnitude = _magnitude(layer, parts.pop("magnitude", None))
    parts = {part: _usual(value) for part, value in parts.items()}
    broken = next((part for part, value in parts.items() if not value.isfinite().all()), None)
    if broken is not None:
        raise WeightsMissing(
            f"The tensor {broken} of '{layer}' has numbers that are not finite. The training "
            "diverged or the file is damaged; copy or download it again."
        )
    if not {"down", "up"} & set(parts):
        delta = delta_from_lycoris(parts, layer, alpha=alpha, magnitude=magnitude)
        return delta if factor is None else delta.scaled(factor)
    missing = {"down", "up"} - set(parts)
    if missing:
        raise WeightsMissing(
            f"The layer '{layer}' has no {missing.pop()} factor. Expected a pair of tensors for "
            "each layer; copy or download the file again."
        )
    down = with_mid(parts["down"], parts["mid"]) if "mid" in parts else parts["down"]
    up = parts["up"].to(down)
    rank = down.shape[0] if down.ndim else 0
    if alpha is None:
        alpha = settings.alpha(layer, rank) if settings is not None else float(rank)
    with _named_layer(layer):
        return LoraDelta(down, up, alpha * (1.0 if factor is None else factor), magnitude)


@contextmanager
def _named_layer(layer: str) -> Iterator[None]:
    """Say in an error which layer it is about."""
    try:
        yield
    except StudioError as error:
        raise type(error)(f"Layer '{layer}': {error}") from error


def _usual(value: Tensor) -> Tensor:
    """The tensor in a number format that can be computed with; 8-bit ones cannot."""
    return value if value.dtype in _FORMATS else value.float()


def _number(layer: str, name: str, value: Tensor | None) -> float | None:
    if value is None:
        return None
    if value.numel() != 1:
        raise WeightsMissing(
            f"The {name} of '{layer}' has shape {list(value.shape)}. Expected one number: the file "
            "is damaged or of an unknown layout."
        )
    return float(value)


def _magnitude(layer: str, value: Tensor | None) -> Tensor | None:
    """DoRA's lengths as a vector; kohya's are [out, 1, ...]."""
    if value is None or value.ndim == 1:
        return value
    lengths = [side for side in value.shape if side != 1]
    is_inputs = value.ndim == 2 and value.shape[0] == 1 and value.shape[1] != 1
    if len(lengths) > 1 or is_inputs:
        raise UnsupportedModel(
            f"The DoRA magnitude of '{layer}' has shape {list(value.shape)}. Expected one number "
            "for each output ([out, 1]); files normed along the inputs are not supported."
        )
    return value.flatten()


def _with_rank_as_alpha(lora: LoraFile) -> LoraFile:
    """The same changes for readers that know of no alpha."""
    sections = {
        section: {name: delta.with_alpha(float(delta.rank)) for name, delta in deltas.items()}
        for section, deltas in lora.sections.items()
    }
    return replace(lora, sections=sections)


def _to_kohya(lora: LoraFile) -> dict[str, Tensor]:
    """kohya's tensors; bundled embeddings as A1111 has them.

    Where the layers of a section differ in alpha, stock diffusers gives all the most common one. So
    the others are written with that alpha, too, and a factor in ``up``: the change is the same.
    """
    tensors: dict[str, Tensor] = {}
    common = {section: common_alpha(deltas) for section, deltas in lora.sections.items() if deltas}
    for section, name, delta in lora.deltas():
        delta = delta.with_alpha(common[section])
        stem = kohya_of_layer(
            section, name, base_model=lora.base_model, layers_per_block=lora.layers_per_block
        )
        tensors[f"{stem}.lora_down.weight"] = delta.down
        tensors[f"{stem}.lora_up.weight"] = delta.up
        tensors[f"{stem}.alpha"] = torch.tensor(delta.alpha)
        if delta.magnitude is not None:
            columns = (1,) * (delta.down.ndim - 1)
            tensors[f"{stem}.dora_scale"] = delta.magnitude.reshape(-1, *columns)
    for token, vectors in lora.embeddings.items():
        for encoder, value in vectors.items():
            tensors[bundle_key(token, encoder)] = value
    return tensors

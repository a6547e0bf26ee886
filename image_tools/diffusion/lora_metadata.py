"""Texts in a LoRA file's header: ranks and alphas for diffusers, training facts for kohya's tools.

diffusers keeps peft's settings of every section as one JSON text; layers that differ in rank or
alpha stand there as patterns. kohya's readers take alpha from the tensors, and show the rest.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from image_tools.diffusion.lora_deltas import SECTIONS, LoraDelta, LoraFile, Section
from image_tools.errors import UnsupportedModel, WeightsMissing

__all__ = [
    "METADATA_KEY",
    "AlphaSettings",
    "common_alpha",
    "kohya_metadata",
    "peft_metadata",
    "peft_settings",
    "read_settings",
]

METADATA_KEY = "lora_adapter_metadata"
"""Header key of diffusers' JSON text."""

# What kohya's trainer writes for a family: version, architecture and resolution.
_FAMILIES = {
    "sd1": ("sd_v1", "stable-diffusion-v1", "512x512"),
    "sd2": ("sd_v2", "stable-diffusion-v2-512", "512x512"),
    "sdxl": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", "1024x1024"),
}


@dataclass(frozen=True)
class AlphaSettings:
    """What peft's settings of a section say about alpha."""

    lora_alpha: float | None = None
    """Alpha of every layer; None for alpha = rank."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    """Alpha by the end of a layer's name, a regular expression."""
    use_rslora: bool = False
    """Whether the scale is alpha / sqrt(rank) (arXiv 2312.03732) instead of alpha / rank."""

    def alpha(self, layer: str, rank: int) -> float:
        """Alpha of a layer in the sense of alpha / rank."""
        found = (a for key, a in self.alpha_pattern.items() if _matches(key, layer))
        default = float(rank) if self.lora_alpha is None else self.lora_alpha
        alpha = float(next(found, default))
        return alpha * math.sqrt(rank) if self.use_rslora else alpha


def read_settings(
    metadata: Mapping[str, str], peft_settings: Mapping[str, Any] | None
) -> dict[Section, AlphaSettings]:
    """Alpha settings by section, from a file's header or from a folder of peft.

    Raises:
        WeightsMissing: if the header's text is no JSON object.
        UnsupportedModel: for settings of another method than LoRA.
    """
    if peft_settings is not None:
        if peft_settings.get("peft_type", "LORA") != "LORA":
            raise UnsupportedModel(
                f"The folder of peft holds '{peft_settings['peft_type']}'. Expected LORA."
            )
        return dict.fromkeys(SECTIONS, _settings(peft_settings))
    if METADATA_KEY not in metadata:
        return {}
    try:
        values = json.loads(metadata[METADATA_KEY])
    except json.JSONDecodeError as error:
        raise WeightsMissing(
            f"The header's {METADATA_KEY} is no JSON ({error}). Expected ranks and alphas; "
            "copy or download the file again."
        ) from error
    if not isinstance(values, dict):
        raise WeightsMissing(f"The header's {METADATA_KEY} is no JSON object; the file is damaged.")
    by_section: dict[Section, dict[str, Any]] = {}
    for section in SECTIONS:
        found = {
            key.removeprefix(f"{section}."): value
            for key, value in values.items()
            if key.startswith(f"{section}.")
        }
        if found:
            by_section[section] = found
    return {section: _settings(found) for section, found in by_section.items()}


def peft_metadata(lora: LoraFile) -> dict[str, str]:
    """The header of diffusers' and peft's layouts.

    Raises:
        UnsupportedModel: if only some layers of a section are DoRA.
    """
    values: dict[str, Any] = {}
    for section in SECTIONS:
        deltas = lora.sections.get(section)
        if deltas:
            settings = peft_settings(deltas)
            values.update({f"{section}.{key}": value for key, value in settings.items()})
    return {**_foreign_texts(lora), METADATA_KEY: json.dumps(values, indent=2, sort_keys=True)}


def peft_settings(deltas: Mapping[str, LoraDelta]) -> dict[str, Any]:
    """Arguments of peft's LoraConfig for the deltas of one section."""
    with_magnitude = [name for name, delta in deltas.items() if delta.magnitude is not None]
    if with_magnitude and len(with_magnitude) < len(deltas):
        raise UnsupportedModel(
            f"{len(with_magnitude)} of {len(deltas)} layers are DoRA, first '{with_magnitude[0]}'. "
            "peft and diffusers know all or none; expected a LoRA or a DoRA."
        )
    rank = _most_common([delta.rank for delta in deltas.values()])
    alpha = _most_common([delta.alpha for delta in deltas.values()])
    return {
        "r": rank,
        "lora_alpha": _whole(alpha),
        "target_modules": sorted(deltas),
        "rank_pattern": {n: d.rank for n, d in sorted(deltas.items()) if d.rank != rank},
        "alpha_pattern": {
            n: _whole(d.alpha) for n, d in sorted(deltas.items()) if d.alpha != alpha
        },
        "use_dora": bool(with_magnitude),
    }


def common_alpha(deltas: Mapping[str, LoraDelta]) -> float:
    """The most common alpha of a section that is not zero."""
    return _most_common([delta.alpha for delta in deltas.values() if delta.alpha] or [1.0])


def kohya_metadata(lora: LoraFile) -> dict[str, str]:
    """The header of kohya's layout; texts that the LoRA already has stay."""
    deltas = [delta for _, _, delta in lora.deltas()]
    facts = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(_most_common([delta.rank for delta in deltas])),
        "ss_network_alpha": str(_most_common([delta.alpha for delta in deltas])),
    }
    general = {"modelspec.sai_model_spec": "1.0.0", "modelspec.title": "LoRA"}
    if lora.base_model in _FAMILIES:
        version, architecture, resolution = _FAMILIES[lora.base_model]
        is_stability = lora.base_model == "sdxl"
        general |= {
            "ss_base_model_version": version,
            "ss_v2": str(lora.base_model == "sd2"),
            "modelspec.architecture": f"{architecture}/lora",
            "modelspec.implementation": (
                "https://github.com/Stability-AI/generative-models" if is_stability else "diffusers"
            ),
            "modelspec.resolution": resolution,
        }
    return {**general, **_foreign_texts(lora), **facts}


def _foreign_texts(lora: LoraFile) -> dict[str, str]:
    """Header texts that say nothing about ranks and alphas."""
    own = {METADATA_KEY, "ss_network_dim", "ss_network_alpha", "ss_network_module", "format"}
    return {key: text for key, text in lora.metadata.items() if key not in own}


def _settings(values: Mapping[str, Any]) -> AlphaSettings:
    try:
        alpha = values.get("lora_alpha")
        return AlphaSettings(
            lora_alpha=None if alpha is None else float(alpha),
            alpha_pattern={k: float(v) for k, v in (values.get("alpha_pattern") or {}).items()},
            use_rslora=bool(values.get("use_rslora", False)),
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise WeightsMissing(
            f"The LoRA's settings have a wrong alpha ({error}). Expected numbers; the file is "
            "damaged."
        ) from error


def _matches(key: str, layer: str) -> bool:
    """peft's rule: a pattern fits a whole name or its end after a dot."""
    pattern = key.removeprefix("text_model.")
    if pattern == layer or layer.endswith(f".{pattern}"):
        return True
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", layer) is not None
    except re.error:
        return False


def _most_common(values: list[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _whole(number: float) -> float | int:
    return int(number) if number == int(number) else number

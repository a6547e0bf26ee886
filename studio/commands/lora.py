"""`studio lora`: look at LoRA files, convert them, merge several, and extract one from a model."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.errors import ConfigError, StorageError
from studio.progress import say

if TYPE_CHECKING:
    from torch import Tensor

    from image_tools.diffusion.lora_deltas import LoraDelta, LoraFile

__all__ = ["MergeRule", "Target", "convert", "extract", "inspect", "merge"]

LAYOUTS = ("diffusers", "peft", "kohya")
DTYPES = ("float32", "float16", "bfloat16")
METHODS = ("sum", "svd", "magnitude_prune", "ties", "dare_linear", "dare_ties")
DEFAULT_NAME = "pytorch_lora_weights.safetensors"
COMPONENTS = {
    "unet": ("diffusion_pytorch_model", "denoiser"),
    "text_encoder": ("model", "text encoder"),
    "text_encoder_2": ("model", "second text encoder"),
}


@dataclass(frozen=True)
class Target:
    """Where and how a LoRA is written."""

    out: Path
    """A .safetensors file, or a folder."""
    layout: str = "diffusers"
    """diffusers, peft or kohya."""
    dtype: str | None = None
    """Number format; None for that of the source."""
    force: bool = False
    """Whether to replace a file."""

    @property
    def path(self) -> Path:
        """The file."""
        return self.out if self.out.suffix == ".safetensors" else self.out / DEFAULT_NAME

    def check(self) -> None:
        """Refuse before any work what could not be written after it.

        Raises:
            ConfigError: a wrong layout, number format or file name, or a file that is there.
        """
        _check_choice("--to", self.layout, LAYOUTS)
        if self.dtype is not None:
            _check_choice("--dtype", self.dtype, DTYPES)
        if self.out.suffix not in ("", ".safetensors") and not self.out.is_dir():
            raise ConfigError(f"--out is '{self.out}' - expected a .safetensors file or a folder.")
        if self.path.exists() and not self.force:
            raise ConfigError(
                f"--out: '{self.path}' is there already - give another name, or --force to "
                "replace it."
            )


@dataclass(frozen=True)
class MergeRule:
    """How several LoRAs become one."""

    method: str = "sum"
    """sum, or one of peft's rules."""
    rank: int | None = None
    """Rank of the result; None for all (sum) or the largest given (others)."""
    density: float = 0.5
    """Share of the entries that pruning rules keep."""
    seed: int = 0
    """Of what dare drops."""


def inspect(path: Path, *, as_json: bool = False) -> None:
    """Print what a LoRA file holds.

    Raises:
        StudioError: it cannot be read.
    """
    from image_tools.diffusion.lora_files import lora_layout, read_lora

    lora = read_lora(path)
    facts = {"file": str(path), "layout": lora_layout(path), **_facts(lora)}
    if as_json:
        sys.stdout.write(json.dumps({**facts, "metadata": dict(lora.metadata)}) + "\n")
        return
    for key in ("file", "layout", "base_model", "kind", "parameters"):
        sys.stdout.write(f"{key:<12} {facts[key]}\n")
    for section, values in facts["sections"].items():
        sys.stdout.write(
            f"{section:<12} {values['layers']} layers, rank {_spread(values['ranks'])}, alpha "
            f"{_spread(values['alphas'])}, {values['convolutions']} convolutions"
            + (f", change {values['norm']:.4g}" if values["norm"] is not None else "")
            + "\n"
        )
    for token, encoders in facts["embeddings"].items():
        sys.stdout.write(f"{'embedding':<12} {token} ({', '.join(encoders)})\n")
    for key, text in sorted(lora.metadata.items()):
        sys.stdout.write(f"{key:<12} {text if len(text) < 80 else text[:77] + '...'}\n")


def convert(
    path: Path,
    target: Target,
    *,
    scale: float = 1.0,
    rank: int | None = None,
    as_json: bool = False,
) -> None:
    """Write a LoRA in another layout, scaled or with a smaller rank on request.

    Raises:
        StudioError: it cannot be read or written so.
    """
    target.check()
    from image_tools.diffusion.lora_files import read_lora

    lora = read_lora(path)
    if rank is not None:
        from image_tools.personalization.merging import resize_lora

        lora = resize_lora(lora, rank)
    if scale != 1.0:
        lora = lora.scaled(scale)
    _write(lora, target, as_json=as_json)


def merge(
    paths: list[Path],
    target: Target,
    *,
    weights: str | None = None,
    rule: MergeRule | None = None,
    as_json: bool = False,
) -> None:
    """Make one LoRA of several.

    Raises:
        StudioError: a wrong argument, or files that cannot be read or do not belong together.
    """
    rule = rule or MergeRule()
    target.check()
    _check_choice("--method", rule.method, METHODS)
    factors = _factors(weights, len(paths))
    import torch

    from image_tools.diffusion.lora_files import read_lora
    from image_tools.personalization.merging import combine_loras, resize_lora, sum_loras

    loras = [(read_lora(path), factor) for path, factor in zip(paths, factors, strict=True)]
    if rule.method == "sum":
        merged = sum_loras(loras)
        merged = merged if rule.rank is None else resize_lora(merged, rule.rank)
    else:
        merged = combine_loras(
            loras,
            method=rule.method,
            rank=rule.rank or max(d.rank for lora, _ in loras for _, _, d in lora.deltas()),
            density=rule.density,
            generator=torch.Generator().manual_seed(rule.seed),
        )
    _write(merged, target, as_json=as_json)


def extract(
    base: str, tuned: str, target: Target, *, rank: int = 16, as_json: bool = False
) -> None:
    """Make a LoRA of what a fine-tuning changed.

    Raises:
        StudioError: a wrong argument, models that cannot be read or differ in design or not at all.
    """
    target.check()
    from image_tools.diffusion.lora_files import LoraFile
    from image_tools.diffusion.weights import find_model_folder
    from image_tools.personalization.extraction import extract_deltas

    before = find_model_folder(str(base), role="base model")
    after = find_model_folder(str(tuned), role="tuned model")
    sections: dict[str, dict[str, LoraDelta]] = {}
    reports = {}
    for section in COMPONENTS:
        if not (before / section).is_dir() or not (after / section).is_dir():
            continue
        deltas, report = extract_deltas(
            _weights(before, section), _weights(after, section), rank=rank
        )
        if deltas:
            sections[section] = _file_names(section, deltas)
        reports[section] = report
        _say_report(section, report)
    if not sections:
        raise ConfigError(
            f"'{tuned}' has the same layers as '{base}' - expected the model that a training made "
            "of it."
        )
    settings = _unet_settings(before)
    lora = LoraFile(sections, layers_per_block=settings.get("layers_per_block", 2))
    kept = {section: asdict(report) for section, report in reports.items()}
    _write(lora, target, as_json=as_json, more={"kept": kept})


def _write(
    lora: LoraFile, target: Target, *, as_json: bool, more: Mapping[str, Any] | None = None
) -> None:
    """Write the file, the embeddings that its layout has no place for, and say so."""
    import torch

    from image_tools.diffusion.lora_files import write_lora

    if target.dtype is not None:
        lora = lora.to(dtype=getattr(torch, target.dtype))
    beside = {}
    if target.layout != "kohya":
        beside = {
            token: target.path.with_name(f"{target.path.stem}.{_plain(token)}.safetensors")
            for token in lora.embeddings
        }
    for path in beside.values():
        if path.exists() and not target.force:
            raise ConfigError(f"'{path}' is there already - give another --out, or --force.")
    try:
        write_lora(target.path, lora, layout=target.layout)
        for token, path in beside.items():
            _write_embedding(path, token, lora.embeddings[token])
    except OSError as error:
        raise StorageError(f"'{target.path}' cannot be written ({error}). Free space?") from error
    files = [str(target.path), *map(str, beside.values())]
    if as_json:
        facts = {"files": files, "layout": target.layout, **_facts(lora), **(more or {})}
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    for name in files:
        sys.stdout.write(f"{target.layout if name == files[0] else 'embedding':<10} {name}\n")


def _write_embedding(path: Path, token: str, vectors: Mapping[str, Tensor]) -> None:
    """A Textual Inversion file as diffusers reads it, or the pair of SDXL."""
    from image_tools.diffusion.weight_writing import write_safetensors

    named = {token if encoder == "*" else encoder: value for encoder, value in vectors.items()}
    write_safetensors(path, named)


def _facts(lora: LoraFile) -> dict[str, Any]:
    """What there is to say about a LoRA, as JSON has it."""
    sections = {}
    for section in (name for name in COMPONENTS if lora.sections.get(name)):
        values = list(lora.sections[section].values())
        norm = None
        if not any(delta.magnitude is not None for delta in values):
            norm = sum(_square(delta) for delta in values) ** 0.5
        sections[section] = {
            "layers": len(values),
            "ranks": _counts([delta.rank for delta in values]),
            "alphas": _counts([round(delta.alpha, 6) for delta in values]),
            "convolutions": sum(delta.down.ndim == 4 for delta in values),
            "norm": norm,
        }
    return {
        "base_model": lora.base_model,
        "kind": "DoRA" if lora.is_dora else "LoRA",
        "parameters": sum(d.up.numel() + d.down.numel() for _, _, d in lora.deltas()),
        "sections": sections,
        "embeddings": {token: sorted(vectors) for token, vectors in lora.embeddings.items()},
    }


def _square(delta: LoraDelta) -> float:
    """Squared length of the change, from the small products of its factors."""
    up, down = delta.up.double().flatten(1), delta.down.double().flatten(1)
    return delta.scale**2 * float(((up.T @ up) * (down @ down.T)).sum())


def _counts(values: list[float]) -> dict[str, int]:
    return {f"{value:g}": count for value, count in sorted(Counter(values).items())}


def _spread(counts: Mapping[str, int]) -> str:
    names = list(counts)
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def _factors(weights: str | None, count: int) -> list[float]:
    if weights is None:
        return [1.0] * count
    try:
        factors = [float(part) for part in weights.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--weights is '{weights}' - expected numbers by commas, such as 1,0.6."
        ) from error
    if len(factors) != count:
        raise ConfigError(
            f"--weights has {len(factors)} numbers for {count} files - expected one each."
        )
    return factors


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is '{value}' - expected {', '.join(allowed)}.")


def _weights(folder: Path, section: str) -> dict[str, Tensor]:
    """All tensors of a component."""
    from safetensors.torch import load_file

    from image_tools.diffusion.loading import readable_weights
    from image_tools.diffusion.weights import find_weights

    stem, role = COMPONENTS[section]
    tensors: dict[str, Tensor] = {}
    for path in find_weights(folder / section, stem, role=role):
        with readable_weights(path, role):
            tensors |= load_file(path)
    return tensors


def _unet_settings(folder: Path) -> dict[str, Any]:
    from image_tools.diffusion.weights import read_json

    return read_json(folder / "unet/config.json", role="denoiser")


def _file_names(section: str, deltas: dict[str, LoraDelta]) -> dict[str, LoraDelta]:
    from image_tools.diffusion.lora_names import strip_text_model

    if section == "unet":
        return deltas
    return {strip_text_model(name): delta for name, delta in deltas.items()}


def _say_report(section: str, report: Any) -> None:
    say(f"{section}: {report.layers} layers changed, {100 * report.kept:.1f} % of it kept.")
    if report.left_out:
        say(
            f"warning: {section}: {len(report.left_out)} changed tensors have no place in a LoRA "
            f"({100 * report.left_out_share:.1f} % of the change), first '{report.left_out[0]}'."
        )


def _plain(token: str) -> str:
    """A token as part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in token).strip("_") or "token"

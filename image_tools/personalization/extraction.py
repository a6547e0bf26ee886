"""A LoRA out of the difference between a fine-tuned model and the one that it started from.

Each layer's difference is cut to the best approximation of a rank, so a full DreamBooth of
gigabytes becomes a file of megabytes that any tool loads. What is no linear or convolution layer
(norms, biases, embeddings) has no place in a LoRA; the report says how much of the change that is.

    deltas, report = extract_deltas(base.state_dict(), tuned.state_dict(), rank=16)
    lora = LoraFile({"unet": deltas})
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from image_tools.diffusion.lora_deltas import LoraDelta
from image_tools.diffusion.lora_factors import check_rank, truncated_delta
from image_tools.errors import UnsupportedModel

__all__ = ["ExtractionReport", "extract_deltas"]


@dataclass(frozen=True)
class ExtractionReport:
    """How much of a fine-tuning a LoRA holds."""

    layers: int
    """Layers that changed and have a delta."""
    kept: float
    """Share of these layers' squared change that the rank holds, 0 to 1."""
    left_out: tuple[str, ...]
    """Tensors that changed and have no place in a LoRA."""
    left_out_share: float
    """Share of the whole squared change that they make, 0 to 1."""


def extract_deltas(
    base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], *, rank: int
) -> tuple[dict[str, LoraDelta], ExtractionReport]:
    """Deltas by layer from two state dicts of the same design, and what they leave out.

    Args:
        base: the model that the training started from.
        tuned: the same after it.
        rank: rank of every delta.

    Raises:
        UnsupportedModel: if the models differ in design.
    """
    check_rank(rank)
    _check_same_design(base, tuned)
    deltas: dict[str, LoraDelta] = {}
    left_out, lost, total, missed = [], 0.0, 0.0, 0.0
    for name in sorted(base):
        change = tuned[name].to(base[name].device).float() - base[name].float()
        size = float(change.double().square().sum())
        if size == 0.0:
            continue
        if not _is_layer(name, change):
            left_out.append(name)
            lost += size
            continue
        delta = truncated_delta(change, rank)
        deltas[name.removesuffix(".weight")] = delta
        total += size
        missed += float((change - delta.weight()).double().square().sum())
    report = ExtractionReport(
        layers=len(deltas),
        kept=1.0 - missed / total if total else 1.0,
        left_out=tuple(left_out),
        left_out_share=lost / (total + lost) if total + lost else 0.0,
    )
    return deltas, report


def _check_same_design(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> None:
    for name in sorted(set(base) ^ set(tuned)):
        where = "base" if name in base else "tuned"
        raise UnsupportedModel(
            f"Only the {where} model has '{name}'. Expected two models of the same design: the one "
            "that the training started from, and the result."
        )
    for name, tensor in base.items():
        if tensor.shape != tuned[name].shape:
            raise UnsupportedModel(
                f"'{name}' is {list(tensor.shape)} in the base model and {list(tuned[name].shape)} "
                "in the tuned one. Expected two models of the same design."
            )


def _is_layer(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is the weight of a linear or convolution layer."""
    is_embedding = name.endswith(("_embedding.weight", "_embeddings.weight"))
    return name.endswith(".weight") and tensor.ndim in (2, 4) and not is_embedding

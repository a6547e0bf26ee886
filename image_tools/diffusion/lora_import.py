"""LyCORIS layers (LoHa, LoKr, CP convolutions, full differences) as exact low-rank deltas.

Stock diffusers rejects them. Nothing is approximated here, because products of products factorise:

    LoHa (arXiv 2108.06098)  (A1 B1) * (A2 B2)   = rows of A1 x A2 times columns of B1 x B2
    LoKr (arXiv 2309.14859)  kron(C, A B)        = kron(C, A) kron(I, B)
    CP convolutions          up . mid . down     = up times (mid . down)

The rank of the result is the product of the ranks; where that is no less than the layer's size,
the dense change stands with the identity as the other factor. ``resized_delta`` makes it smaller.

    delta = delta_from_lycoris(parts, "mid_block.attentions.0.proj_in", alpha=4.0, magnitude=None)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from image_tools.diffusion.lora_deltas import LoraDelta
from image_tools.diffusion.lora_factors import plain_delta, shaped_delta
from image_tools.errors import UnsupportedModel, WeightsMissing

__all__ = ["LYCORIS_PARTS", "delta_from_lycoris", "with_mid"]

LOHA_PARTS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
LOKR_PARTS = (
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b"),
    *("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
)
LYCORIS_PARTS = (*LOHA_PARTS, *LOKR_PARTS, "diff")
"""Names of the tensors of a layer that only LyCORIS writes."""

# Layers whose kernels a flattened file does not tell: 3x3 in every model of the family.
_WIDE_CONVOLUTIONS = ("conv1", "conv2", "conv_in", "conv_out", "samplers.0.conv")


def with_mid(down: Tensor, mid: Tensor) -> Tensor:
    """The down factor of a CP convolution with its middle factor multiplied in: no loss."""
    if mid.ndim != 4 or down.ndim not in (2, 4) or mid.shape[1] != down.shape[0]:
        raise WeightsMissing(
            f"A CP convolution has lora_mid {list(mid.shape)} and lora_down {list(down.shape)}. "
            "Expected [rank, rank, k, k] and [rank, in, 1, 1]: the file is damaged."
        )
    return torch.einsum("ijkl,jc->ickl", mid.float(), down.float().flatten(1))


def delta_from_lycoris(
    parts: Mapping[str, Tensor], layer: str, *, alpha: float | None, magnitude: Tensor | None
) -> LoraDelta:
    """The delta of one layer from its LyCORIS tensors.

    Args:
        parts: tensors by LyCORIS name, such as ``hada_w1_a`` or ``lokr_w2``.
        layer: the layer's name in a diffusers model; tells the kernel where shapes do not.
        alpha: strength as stored, or None where the file has none.
        magnitude: DoRA's lengths, or None.

    Raises:
        WeightsMissing: if tensors are missing or do not fit.
    """
    if "diff" in parts:
        if parts["diff"].ndim not in (2, 4):
            raise UnsupportedModel(
                f"The file changes '{layer}', which is no linear or convolution layer. Expected a "
                "LoRA without changes of norms."
            )
        return plain_delta(parts["diff"].float())
    try:
        factors = _loha if "hada_w1_a" in parts or "hada_w2_a" in parts else _lokr
        up, down, kernel, rank = factors({name: part.float() for name, part in parts.items()})
    except KeyError as error:
        raise WeightsMissing(
            f"The layer '{layer}' has no tensor {error}. Expected all factors of a LoHa or LoKr "
            f"layer, got {', '.join(sorted(parts))}; copy or download the file again."
        ) from error
    except (RuntimeError, IndexError) as error:
        shapes = ", ".join(f"{name} {list(part.shape)}" for name, part in sorted(parts.items()))
        raise WeightsMissing(
            f"The factors of the layer '{layer}' do not fit: {shapes}. The file is damaged."
        ) from error
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    inputs = _inputs(down.shape[1], kernel, layer)
    if down.shape[0] < min(up.shape[0], down.shape[1]):
        strength = scale * down.shape[0]
        return shaped_delta(up, down, inputs, alpha=strength, magnitude=magnitude)
    dense = plain_delta((scale * up @ down).reshape(-1, *inputs))
    return LoraDelta(dense.down, dense.up, dense.alpha, magnitude)


def _loha(parts: dict[str, Tensor]) -> tuple[Tensor, Tensor, tuple[int, ...], int]:
    """Factors, kernel and rank of ``(A1 B1) * (A2 B2)``."""
    up_1, down_1, kernel = _tucker(parts["hada_w1_a"], parts["hada_w1_b"], parts.get("hada_t1"))
    up_2, down_2, _ = _tucker(parts["hada_w2_a"], parts["hada_w2_b"], parts.get("hada_t2"))
    up = torch.einsum("oi,oj->oij", up_1, up_2).flatten(1)
    down = torch.einsum("ic,jc->ijc", down_1, down_2).flatten(0, 1)
    return up, down, kernel, parts["hada_w1_b"].shape[0]


def _lokr(parts: dict[str, Tensor]) -> tuple[Tensor, Tensor, tuple[int, ...], int | None]:
    """Factors, kernel and rank of ``kron(C, W)``; the rank is None where both are dense."""
    is_small = "lokr_w1" not in parts
    coarse = parts["lokr_w1_a"] @ parts["lokr_w1_b"] if is_small else parts["lokr_w1"]
    rank = parts["lokr_w1_b"].shape[0] if is_small else None
    kernel: tuple[int, ...] = ()
    if "lokr_w2" in parts:
        fine = parts["lokr_w2"]
        kernel = tuple(fine.shape[2:])
        fine_up, fine_down = fine.flatten(1), None
    else:
        up, fine_down, kernel = _tucker(
            parts["lokr_w2_a"], parts["lokr_w2_b"], parts.get("lokr_t2")
        )
        rank, fine_up = parts["lokr_w2_b"].shape[0], up
    if fine_down is None:
        fine_down = torch.eye(fine_up.shape[1])
    identity = torch.eye(coarse.shape[1])
    return torch.kron(coarse, fine_up), torch.kron(identity, fine_down), kernel, rank


def _tucker(
    first: Tensor, second: Tensor, core: Tensor | None
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """``first second``, or ``first^T (core . second)``: flat factors, and the kernel."""
    if core is None:
        first @ second[:, :1]  # refuses factors that do not multiply
        return first, second.flatten(1), ()
    down = torch.einsum("ijkl,jr->irkl", core, second.flatten(1))
    return first.T.contiguous(), down.flatten(1), tuple(core.shape[2:])


def _inputs(columns: int, kernel: tuple[int, ...], layer: str) -> torch.Size:
    """Shape of a weight without its outputs."""
    if not kernel and layer.endswith(_WIDE_CONVOLUTIONS):
        kernel = (3, 3)
    elif not kernel and layer.endswith("conv_shortcut"):
        kernel = (1, 1)
    if not kernel:
        return torch.Size((columns,))
    channels, rest = divmod(columns, kernel[0] * kernel[1])
    if rest:
        raise UnsupportedModel(
            f"The layer '{layer}' has {columns} inputs, which is no multiple of its kernel "
            f"{kernel[0]}x{kernel[1]}. Expected a layer of Stable Diffusion 1.x, 2.x or SDXL."
        )
    return torch.Size((channels, *kernel))

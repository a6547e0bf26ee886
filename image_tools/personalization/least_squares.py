"""Several LoRAs as one that acts on each one's own inputs as that one does, in closed form.

The gradient fusion of Mix-of-Show (arXiv 2305.18292, section 3.3) minimises, layer by layer,

    sum_i || (W0 + dW_i) X_i - W X_i ||^2

by LBFGS, X_i being what reaches the layer while LoRA i draws its own subject. The minimum is

    W - W0 = (sum_i dW_i X_i X_i^T) (sum_i X_i X_i^T + eta I)^-1

which is computed here. Written for the changes dW_i, the ridge eta pulls towards the base model
where the inputs say nothing, instead of towards zero. It is relative to the mean square of the
inputs, and each LoRA's inputs count the same, however many were seen.

    with record_grams(modules, subject) as grams_subject:
        ...  # run the model on the subject's prompts, with its LoRA attached
    both = fuse_loras([subject, style], [grams_subject, grams_style], rank=16)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.diffusion.lora_apply import Modules, layers_by_name
from image_tools.diffusion.lora_deltas import LoraDelta, LoraFile, Section
from image_tools.diffusion.lora_factors import truncated_delta
from image_tools.personalization.merging import deltas_by_layer
from renderers.errors import StudioError

__all__ = ["Grams", "fuse_loras", "least_squares_change", "record_grams"]

Grams = dict[tuple[Section, str], Tensor]
"""Mean of x x^T over the inputs x of each layer, float64 [in, in]."""


def least_squares_change(
    changes: Sequence[Float[Tensor, "out in"]],
    grams: Sequence[Float[Tensor, "in in"]],
    *,
    ridge: float = 1e-6,
) -> Float[Tensor, "out in"]:
    """The one change that is closest to each given one on its own inputs.

    Args:
        changes: what each LoRA adds to the weight.
        grams: X_i X_i^T of the inputs on which each is to be met.
        ridge: eta, relative to the mean of the diagonal of the summed grams.
    """
    total = sum(gram.double() for gram in grams)
    wanted = sum(c.double() @ gram.double() for c, gram in zip(changes, grams, strict=True))
    eta = ridge * float(total.diagonal().mean())
    if eta <= 0.0:
        return torch.zeros_like(changes[0])
    regular = total + eta * torch.eye(len(total), dtype=total.dtype)
    return torch.linalg.solve(regular, wanted.T).T.to(changes[0])


def fuse_loras(
    loras: Sequence[LoraFile], grams: Sequence[Grams], *, rank: int, ridge: float = 1e-6
) -> LoraFile:
    """One LoRA of a rank out of several, each met on its own inputs.

    Args:
        loras: what to fuse.
        grams: for each LoRA, the inputs recorded by ``record_grams`` while it acted; with all
            layers that any of the LoRAs changes.
        rank: rank of every layer of the result.
        ridge: see ``least_squares_change``.

    Raises:
        UnsupportedModel: if the LoRAs are for different models, or DoRAs.
        StudioError: if a layer's inputs were not recorded.
    """
    sections: dict[Section, dict[str, LoraDelta]] = {}
    for (section, name), deltas in deltas_by_layer(loras).items():
        shape = next(delta.shape for delta in deltas if delta is not None)
        for number, found in enumerate(grams):
            if (section, name) not in found:
                raise StudioError(
                    f"No inputs of '{name}' were recorded for LoRA {number + 1}. Expected those of "
                    "every layer that any of the LoRAs changes: record with all of them named."
                )
        changes = [
            torch.zeros(shape).flatten(1) if delta is None else delta.weight().flatten(1)
            for delta in deltas
        ]
        own = [found[section, name] for found in grams]
        change = least_squares_change(changes, own, ridge=ridge).reshape(shape)
        sections.setdefault(section, {})[name] = truncated_delta(change, rank)
    return LoraFile(sections, layers_per_block=loras[0].layers_per_block)


@contextmanager
def record_grams(modules: Modules, *loras: LoraFile) -> Iterator[Grams]:
    """Collect the inputs of all layers that any of the LoRAs changes while the models run.

    The result is filled when the context ends; only its means are kept, not the inputs.
    """
    grams: Grams = {}
    counts: dict[tuple[Section, str], int] = {}
    hooks = []

    def watch(key: tuple[Section, str], layer: nn.Module) -> None:
        def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = _rows(layer, inputs[0].detach())
            grams[key] = grams.get(key, 0.0) + (rows.T @ rows).double().cpu()
            counts[key] = counts.get(key, 0) + len(rows)

        hooks.append(layer.register_forward_pre_hook(before))

    wanted = {(section, name) for lora in loras for section, name, _ in lora.deltas()}
    for section, module in modules.items():
        for name, layer in layers_by_name(section, module).items():
            if (section, name) in wanted:
                watch((section, name), layer)
    try:
        yield grams
    finally:
        for hook in hooks:
            hook.remove()
        for key, count in counts.items():
            grams[key] /= count


def _rows(layer: nn.Module, inputs: Tensor) -> Float[Tensor, "n in"]:
    """What a layer multiplies with its flat weight, one row for each place."""
    base = getattr(layer, "base_layer", layer)
    if isinstance(base, nn.Conv2d):
        patches = F.unfold(
            inputs.float(),
            base.kernel_size,
            dilation=base.dilation,
            padding=base.padding,
            stride=base.stride,
        )
        return patches.movedim(1, 2).flatten(0, 1)
    return inputs.float().flatten(0, -2)

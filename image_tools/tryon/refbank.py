"""Features of reference pictures that a denoiser sees in its own self-attention.

One mechanism carries IDM-VTON (arXiv 2403.05139), BootComp (arXiv 2412.16978) and their kin: a pass
of a UNet over a reference records ``norm1(h)``, the input of every self-attention. The denoiser
that draws attends from its own tokens to its own and those, with its own weights:

    K, V = to_k, to_v of [norm1(h); bank],    Q = to_q of norm1(h)

Several references of a picture stand side by side. The order of keys means nothing, so neither does
that of references. A bank of zeros is not the same as none: zero features take part in the softmax
with logit 0 and value 0, which is what "no garment" meant in training.

    bank = record_bank(reference_unet, garment_latents, t, text)
    condition = replace(condition, additions=(*condition.additions, BankAddition(bank)))

Banks compose with everything else on the hub: adapters of the text's attention, LoRAs, and views
that see each other, whose set then sees one bank together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from image_tools.diffusion.additions import DenoiserCall
from image_tools.diffusion.attention import (
    AttentionCall,
    AttentionHub,
    AttentionLayer,
    AttentionOperation,
    attention_operations,
)
from image_tools.diffusion.modified import rows_of
from image_tools.errors import UnsupportedModel
from renderers.errors import ShapeError

__all__ = [
    "BankAddition",
    "BankReader",
    "ReferenceBank",
    "SilentCrossAttention",
    "check_bank_fits",
    "record_bank",
]


@dataclass(frozen=True)
class ReferenceBank:
    """Inputs of the self-attention layers of a reference pass."""

    features: Mapping[str, Float[Tensor, "rows n c"]]
    """By the layer's name. Layers that are absent see no reference."""

    def __len__(self) -> int:
        return len(next(iter(self.features.values())))

    def zeros(self) -> ReferenceBank:
        """The bank that stands for "no reference" in classifier-free guidance."""
        return self._map(torch.zeros_like)

    def scaled(self, factors: Tensor) -> ReferenceBank:
        """Features times factors that fit them, such as [rows, 1, 1]."""
        return self._map(lambda values: values * factors.to(values))

    def select(self, rows: Int[Tensor, " selected"]) -> ReferenceBank:
        """Rows by index, in the order given; an index may repeat."""
        return self._map(lambda values: values[rows.to(values.device)])

    def repeated(self, rows: int) -> ReferenceBank:
        """A batch repeated as a whole to ``rows`` rows.

        Raises:
            ShapeError: if the rows are not whole batches.
        """
        return self._map(lambda values: rows_of(values, rows, "the reference bank"))

    def stack(self, others: Sequence[ReferenceBank]) -> ReferenceBank:
        """Rows of other banks below these; all have as many tokens."""
        return self._join(others, dim=0)

    def beside(self, others: Sequence[ReferenceBank]) -> ReferenceBank:
        """More references of the same pictures: their tokens after these, row by row."""
        return self._join(others, dim=1)

    def grouped(self, references: int) -> ReferenceBank:
        """Rows of ``references`` consecutive references each, as one row for each picture.

        Raises:
            ShapeError: if the rows are not whole groups.
        """
        if len(self) % references:
            raise ShapeError(
                f"{len(self)} rows of references are not whole groups of {references}. Give every "
                "picture as many references."
            )
        return self._map(lambda values: values.unflatten(0, (-1, references)).flatten(1, 2))

    def _map(self, change: Callable[[Tensor], Tensor]) -> ReferenceBank:
        return ReferenceBank({name: change(values) for name, values in self.features.items()})

    def _join(self, others: Sequence[ReferenceBank], *, dim: int) -> ReferenceBank:
        if any(set(other.features) != set(self.features) for other in others):
            raise UnsupportedModel(
                "Reference banks of different denoisers cannot be put together. Record them with "
                "one denoiser."
            )
        banks = (self, *others)
        names = self.features
        return ReferenceBank({n: torch.cat([b.features[n] for b in banks], dim) for n in names})


def record_bank(
    unet: nn.Module,
    latents: Float[Tensor, "rows c h w"],
    t: Int[Tensor, " rows"],
    tokens: Float[Tensor, "rows length width"],
    *,
    added: Mapping[str, Tensor] | None = None,
    operations: Sequence[AttentionOperation] = (),
) -> ReferenceBank:
    """Features of references, from a pass that ends where its last self-attention begins.

    With gradients it runs to its end: blocks that are recomputed must be whole.

    Args:
        unet: a diffusers UNet2DConditionModel.
        latents: of the references, noisy or not, as the UNet was trained.
        t: timestep of each.
        tokens: text of each.
        added: what SDXL is told beside the text.
        operations: change the attention of this pass.
    """
    writer = _BankWriter(unet)
    with attention_operations(unet, [*operations, writer]), suppress(_RecordedAll):
        unet(
            latents,
            t,
            encoder_hidden_states=tokens,
            added_cond_kwargs=None if added is None else dict(added),
        )
    return ReferenceBank(dict(writer.features))


class BankReader(AttentionOperation):
    """Self-attention that also looks at the references of its rows."""

    def __init__(self, bank: ReferenceBank | None = None) -> None:
        """Read from ``bank``; None for nothing, until one is put into its place."""
        self.bank = bank

    def applies_to(self, call: AttentionCall) -> bool:
        """In self-attention of which the bank has features."""
        return self.bank is not None and call.layer.name in self.bank.features

    def inputs(
        self, call: AttentionCall, hidden: Float[Tensor, "rows n c"], context: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Put the references' tokens behind those that are there."""
        own = hidden if context is None else context
        return hidden, torch.cat([own, self._rows(call, own)], dim=1)

    def _rows(self, call: AttentionCall, own: Tensor) -> Float[Tensor, "rows n c"]:
        """Features for each row; views that see each other have those of their set's first."""
        features = self.bank.features[call.layer.name]
        if call.batch.views > 1 and len(features) == len(own) * call.batch.views:
            features = features[:: call.batch.views]
        if len(features) != len(own) or features.shape[-1] != own.shape[-1]:
            raise ShapeError(
                f"The bank has features {list(features.shape)} in {call.layer.name}, whose own are "
                f"{list(own.shape)}. Expected a reference for each row, of a denoiser as wide."
            )
        return features.to(own)


class SilentCrossAttention(AttentionOperation):
    """Cross-attention that says nothing: a pass without text."""

    def applies_to(self, call: AttentionCall) -> bool:
        """In all cross-attention."""
        return call.layer.is_cross

    def output(
        self, call: AttentionCall, output: Float[Tensor, "rows n c"]
    ) -> Float[Tensor, "rows n c"]:
        """Nothing to add."""
        return torch.zeros_like(output)


@dataclass(frozen=True)
class BankAddition:
    """References for the rows of a denoiser call."""

    bank: ReferenceBank

    def __len__(self) -> int:
        return len(self.bank)

    def expand(self, rows: int) -> BankAddition:
        """A batch repeated as a whole."""
        return BankAddition(self.bank.repeated(rows))

    def stack(self, others: Sequence[BankAddition]) -> BankAddition:
        """More rows."""
        return BankAddition(self.bank.stack([other.bank for other in others]))

    def apply(self, call: DenoiserCall) -> DenoiserCall:
        """The call, seeing these."""
        return call.with_operations(BankReader(self.bank))


def check_bank_fits(reference: nn.Module, unet: nn.Module) -> None:
    """Refuse a reference denoiser whose features another one cannot read.

    Raises:
        UnsupportedModel: naming the first layer in which they differ.
    """
    mine, theirs = _widths(reference), _widths(unet)
    for name in sorted({*mine, *theirs}):
        if mine.get(name) != theirs.get(name):
            raise UnsupportedModel(
                f"The reference denoiser has width {mine.get(name, 'none')} in {name}, the one "
                f"that reads it {theirs.get(name, 'none')}. Expected two of the same family."
            )


class _RecordedAll(Exception):
    """Ends a pass that has nothing more to record."""


class _BankWriter(AttentionOperation):
    """Keeps the inputs of self-attention, and ends the pass at the last."""

    def __init__(self, unet: nn.Module) -> None:
        self.features: dict[str, Tensor] = {}
        self._last = None if torch.is_grad_enabled() else _self_attention(unet)[-1].name

    def applies_to(self, call: AttentionCall) -> bool:
        return not call.layer.is_cross

    def inputs(
        self, call: AttentionCall, hidden: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        self.features[call.layer.name] = hidden
        if call.layer.name == self._last:
            raise _RecordedAll
        return hidden, context


def _self_attention(unet: nn.Module) -> list[AttentionLayer]:
    """Self-attention layers in the order in which they run, which is not that of modules."""
    layers = [layer for layer in AttentionHub(unet).layers if not layer.is_cross]
    if not layers:
        raise UnsupportedModel(
            "The denoiser has no self-attention in transformer blocks, which references are seen "
            "by. Expected Stable Diffusion 1.x, 2.x or SDXL."
        )
    return sorted(layers, key=lambda layer: ("down", "mid", "up").index(layer.place))


def _widths(unet: nn.Module) -> dict[str, int]:
    modules = dict(unet.named_modules())
    return {layer.name: modules[layer.name].to_k.in_features for layer in _self_attention(unet)}

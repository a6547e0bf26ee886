"""What images of one style share inside the denoiser (StyleAligned, arXiv 2312.02133, section 3).

Every row of a batch has a reference row; a reference is its own. In self-attention, by head,

    Q, K  <-  (x - mean(x)) / std(x) std(x_ref) + mean(x_ref)     over tokens; V on request
    A     =   softmax([Q K^T, s Q K_ref^T + shift]) [V, V_ref]

with std = sqrt(unbiased variance + 1e-5) (AdaIN); a reference's own keys keep s = 1. So a reference
sees its keys twice and is predicted as without sharing, up to rounding. Group norms take mean and
variance from image and reference side by side. Sharing layer norms would change nothing: they
normalise each token over its channels, and no statistic crosses tokens. There is no such option.

Layers are counted in the denoiser's own order. Full sharing gives every row the keys and values of
all rows of its batch. Nothing counts calls or writes in place: gradients pass, and repeated calls
change nothing.

    rows = StyleRows((0,) * 4)                                # four images in the first one's style
    with style_sharing(unet, rows, StyleSharingConfig()):
        unet(latents, t, encoder_hidden_states=text)          # 4 rows, or [uncond, cond] of 8
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from image_tools.diffusion.attention import (
    AttentionCall,
    AttentionHub,
    AttentionOperation,
    attention_operations,
)
from image_tools.errors import UnsupportedModel
from image_tools.personalization.style_aligned_configs import StyleSharingConfig
from renderers.errors import ShapeError

__all__ = [
    "StyleAttention",
    "StyleRows",
    "adaptive_norm",
    "is_off",
    "shared_group_norms",
    "shared_keys",
    "style_sharing",
    "unshared_layers",
]

EPS = 1e-5


@dataclass(frozen=True)
class StyleRows:
    """Which row of a batch each row takes its style from."""

    references: tuple[int, ...]
    """For each row of a batch its reference's index; a reference has its own."""

    def of(self, rows: int, device: torch.device) -> Int[Tensor, " rows"]:
        """References in a call of whole batches, such as [uncond, cond].

        Raises:
            ShapeError: if the rows are not whole batches.
        """
        batch = len(self.references)
        if rows % batch:
            raise ShapeError(
                f"{rows} rows are not whole batches of {batch} images of one style - expected the "
                "denoiser to see all of them at once."
            )
        own = torch.tensor(self.references, device=device)
        first = torch.arange(0, rows, batch, device=device)
        return (first[:, None] + own).flatten()


def adaptive_norm(
    x: Float[Tensor, "rows heads n d"], references: Int[Tensor, " rows"]
) -> Float[Tensor, "rows heads n d"]:
    """Each head's channels with the mean and deviation over tokens of the reference's."""
    mean = x.mean(dim=-2, keepdim=True)
    variance = x.var(dim=-2, keepdim=True, correction=min(1, x.shape[-2] - 1))
    std = (variance + EPS).sqrt()
    return (x - mean) / std * std[references] + mean[references]


def shared_keys(
    x: Float[Tensor, "rows heads n d"], references: Int[Tensor, " rows"], *, scale: float = 1.0
) -> Float[Tensor, "rows heads m d"]:
    """Keys or values of each row and, behind them, its reference's; ``scale`` is the targets'."""
    theirs = x[references]
    if scale != 1.0:
        is_target = references != torch.arange(len(x), device=x.device)
        factor = torch.where(is_target, scale, 1.0).to(x)
        theirs = theirs * factor[:, None, None, None]
    return torch.cat([x, theirs], dim=-2)


def all_keys(x: Float[Tensor, "rows heads n d"], batch: int) -> Float[Tensor, "rows heads m d"]:
    """For each row the keys or values of all rows of its batch."""
    joined = x.unflatten(0, (-1, batch)).transpose(1, 2).flatten(2, 3)
    return joined.repeat_interleave(batch, dim=0)


def unshared_layers(count: int, level: float) -> list[bool]:
    """Which of ``count`` layers share nothing: every k-th at a level of 1/k, the first among them.

    Above one half it is the shared ones that are spread in this way.
    """
    inverts = level > 0.5
    few = int((1.0 - level if inverts else level) * count)
    chosen = [bool(few) and index % (count // few) == 0 for index in range(count)]
    return [each != inverts for each in chosen]


def is_off(config: StyleSharingConfig, unet: nn.Module) -> bool:
    """Whether nothing is shared at all."""
    attends = config.attention != "off" or config.normalized
    return not _shares_norms(config, unet) and (not attends or config.only_self_level == 1.0)


class StyleAttention(AttentionOperation):
    """Self-attention that also looks at the reference."""

    def __init__(
        self,
        config: StyleSharingConfig,
        rows: StyleRows,
        layers: frozenset[str],
    ) -> None:
        """Act in the layers of these names, on batches of ``rows``."""
        self.config, self.rows, self.layers = config, rows, layers
        self.score_shift = config.score_shift or 0.0

    def applies_to(self, call: AttentionCall) -> bool:
        """In the shared self-attention layers."""
        return call.layer.name in self.layers

    def needs_heads(self, call: AttentionCall) -> bool:
        """Always, where it applies."""
        return True

    def heads(
        self,
        call: AttentionCall,
        query: Float[Tensor, "rows heads n d"],
        key: Float[Tensor, "rows heads n d"],
        value: Float[Tensor, "rows heads n d"],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys and values of the formula above, and what is added to the scores.

        Raises:
            UnsupportedModel: if rows are views that are seen together.
            ShapeError: if the rows are not whole batches.
        """
        config, batch = self.config, len(self.rows.references)
        if call.batch.views > 1:
            raise UnsupportedModel(
                f"{call.layer.name} looks at {call.batch.views} views together - expected single "
                "images. Take the style with a single-view prior."
            )
        references = self.rows.of(len(query), query.device)
        if config.attention == "full":
            return query, all_keys(key, batch), all_keys(value, batch), None
        if "queries" in config.normalized:
            query = adaptive_norm(query, references)
        if "keys" in config.normalized:
            key = adaptive_norm(key, references)
        if "values" in config.normalized:
            value = adaptive_norm(value, references)
        if config.attention == "off":
            return query, key, value, None
        bias = None
        if self.score_shift != 0.0:
            own = key.new_zeros(key.shape[-2])
            bias = torch.cat([own, own + self.score_shift]).reshape(1, 1, 1, -1)
        key = shared_keys(key, references, scale=config.score_scale)
        return query, key, shared_keys(value, references), bias


@contextmanager
def shared_group_norms(unet: nn.Module, rows: StyleRows) -> Iterator[None]:
    """Inside, group norms take their statistics from each row and its reference together."""

    def widen(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
        (x,) = given
        return (torch.cat([x, x[rows.of(len(x), x.device)]], dim=2),)

    def narrow(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.chunk(2, dim=2)[0]

    with ExitStack() as hooks:
        for module in unet.modules():
            if isinstance(module, nn.GroupNorm):
                hooks.callback(module.register_forward_pre_hook(widen).remove)
                hooks.callback(module.register_forward_hook(narrow).remove)
        yield


@contextmanager
def style_sharing(unet: nn.Module, rows: StyleRows, config: StyleSharingConfig) -> Iterator[None]:
    """Inside, rows share with their references what ``config`` says.

    Args:
        unet: a diffusers UNet2DConditionModel.
        rows: the batch; calls are of whole batches.
        config: what is shared; ``with_picture`` where the reference is one.
    """
    if is_off(config, unet):
        yield
        return
    layers = [layer.name for layer in AttentionHub(unet).layers if not layer.is_cross]
    unshared = unshared_layers(len(layers), config.only_self_level)
    chosen = frozenset(name for name, skips in zip(layers, unshared, strict=True) if not skips)
    with ExitStack() as stack:
        if _shares_norms(config, unet):
            stack.enter_context(shared_group_norms(unet, rows))
        operations = [StyleAttention(config, rows, chosen)]
        stack.enter_context(attention_operations(unet, operations))
        yield


def _shares_norms(config: StyleSharingConfig, unet: nn.Module) -> bool:
    if config.group_norm == "auto":
        return unet.config.addition_embed_type != "text_time"
    return config.group_norm == "shared"

"""A prior that is shown images by an IP-Adapter (arXiv 2308.06721), for pictures and for 3D.

Both halves of guidance have attention to images: the unconditional one sees what training showed in
place of a dropped image. In a call whose rows have roles, those called "uncond" are that half.
Where rows know from where an object is seen, the images count by the view:

    scale(azimuth) = scale (least + (1 - least) max(0, cos azimuth))

so that a picture of the front does not become the back. With scale 0, outside of its part of the
denoising, and for an empty choice of blocks the prediction is the inner prior's bit for bit. That
holds for the LoRA of faceid variants too: where only some rows of a call are in that part of the
denoising, the denoiser runs with the LoRA and without it, and each row is taken from its own.

    prior = IPAdapterPrior(prior, adapter, scale=0.6)
    prior.show(*encode_references(images, part="pooled", clip=clip))
    images = sample_images(prior, ["a mug in the snow"], generators=[generator])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from image_tools.diffusion.additions import DenoiserCall
from image_tools.diffusion.conditions import Condition, TextEmbedding, as_condition
from image_tools.diffusion.modified import ModifiedPrior, conditional_rows, rows_of
from image_tools.diffusion.protocol import NoisePrior
from image_tools.errors import UnsupportedModel
from image_tools.personalization.ip_adapter import (
    DecoupledAttention,
    IPAdapter,
    ShownImages,
    layer_numbers,
)
from image_tools.personalization.ip_adapter_configs import (
    BlockScaleConfig,
    ViewFadeConfig,
)
from image_tools.personalization.ip_adapter_lora import SwitchedLora
from image_tools.personalization.reference_features import ReferenceFeatures
from renderers.errors import ShapeError

__all__ = [
    "IPAdapterPrior",
    "ImagePromptAddition",
    "block_scales",
    "view_scale",
]

FADE = ViewFadeConfig()


def view_scale(
    azimuth_deg: Float[Tensor, " rows"] | None, rows: int, *, least: float
) -> Float[Tensor, " rows"]:
    """How much images of the front count in each view: 1 there, ``least`` at the sides and behind.

    Args:
        azimuth_deg: from where each row is seen; NaN in rows without a view, None for all of them.
        rows: their number.
        least: share of the sides and the back.
    """
    if azimuth_deg is None:
        return torch.ones(rows)
    facing = torch.deg2rad(azimuth_deg).cos().clamp(min=0.0)
    scale = least + (1.0 - least) * facing
    return torch.where(azimuth_deg.isnan(), torch.ones_like(scale), scale)


def block_scales(unet: nn.Module, blocks: Sequence[BlockScaleConfig]) -> dict[str, float]:
    """Factor of each layer that looks at text, by its name; without blocks, 1 for all.

    Raises:
        UnsupportedModel: the denoiser has no such block, or another number of transformers in it.
    """
    names = list(layer_numbers(unet))
    if not blocks:
        return dict.fromkeys(names, 1.0)
    places = {name: _place(name) for name in names}
    counts: dict[str, int] = {}
    for block, index in places.values():
        counts[block] = max(counts.get(block, 0), index + 1)
    given = {}
    for one in blocks:
        count = counts.get(one.block)
        if count is None:
            raise UnsupportedModel(
                f"blocks names {one.block}, in which the denoiser has no attention to text - "
                f"expected one of {', '.join(sorted(counts))}."
            )
        if len(one.scales) not in (1, count):
            raise UnsupportedModel(
                f"scales of {one.block} has {len(one.scales)} entries for {count} transformers - "
                f"expected 1 or {count}."
            )
        given[one.block] = one.scales if len(one.scales) == count else one.scales * count
    return {
        name: float(given[block][index]) if block in given else 0.0
        for name, (block, index) in places.items()
    }


@dataclass(frozen=True)
class _Use:
    """How an adapter acts, the same for all rows."""

    adapter: IPAdapter
    numbers: Mapping[str, str]
    layer_scales: Mapping[str, float]
    masks: Float[Tensor, "images h w"] | None
    window: tuple[float, float]
    total: int

    def acts_at(self, t: Int[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        """Whether timesteps are in the adapter's part of the denoising."""
        done = 1.0 - t / self.total
        return (done >= self.window[0]) & (done <= self.window[1])


@dataclass(frozen=True)
class ImagePromptAddition:
    """What an adapter shows to each row of a denoiser call."""

    use: _Use
    tokens: Float[Tensor, "rows images tokens width"]
    scale: Float[Tensor, " rows"]

    def __len__(self) -> int:
        return len(self.tokens)

    def expand(self, rows: int) -> ImagePromptAddition:
        """Itself, which has all rows already.

        Raises:
            ValueError: if it has another number of rows.
        """
        if len(self) != rows:
            raise ValueError(f"images are shown to {len(self)} rows of {rows}. Give {rows}.")
        return self

    def stack(self, others: Sequence[ImagePromptAddition]) -> ImagePromptAddition:
        """More rows of the same adapter."""
        return replace(
            self,
            tokens=torch.cat([self.tokens, *(other.tokens for other in others)]),
            scale=torch.cat([self.scale, *(other.scale for other in others)]),
        )

    def apply(self, call: DenoiserCall) -> DenoiserCall:
        """The call with attention to images, where some row has any at its timestep."""
        use = self.use
        scale = self.scale.to(call.latents) * use.acts_at(call.t).to(call.latents)
        if not bool(scale.any()):
            return call
        shown = ShownImages(self.tokens.to(call.latents), scale, use.masks)
        return call.with_operations(
            DecoupledAttention(use.adapter, use.numbers, shown, use.layer_scales)
        )


class IPAdapterPrior(ModifiedPrior):
    """A prior with an IP-Adapter.

    Attributes:
        scale: factor of the attention to images; 0 switches the adapter off.
    """

    def __init__(
        self,
        plain: NoisePrior,
        adapter: IPAdapter,
        *,
        scale: float = 1.0,
        blocks: Sequence[BlockScaleConfig] = (),
        masks: Float[Tensor, "images h w"] | None = None,
        window: tuple[float, float] = (0.0, 1.0),
        fade: ViewFadeConfig = FADE,
        lora: SwitchedLora | None = None,
    ) -> None:
        """Put an adapter around a prior; ``show`` gives it images.

        Args:
            plain: the prior; it may be wrapped itself.
            adapter: on the prior's device, in its number format.
            scale: see above.
            blocks: factors by block; empty for all of them.
            masks: where each image acts.
            window: first and last share of the denoising in which it acts.
            fade: how images count by the view.
            lora: acts together with the adapter.

        Raises:
            UnsupportedModel: the denoiser has no such block.
        """
        super().__init__(plain)
        self.adapter, self.scale, self.fade, self.lora = adapter, scale, fade, lora
        self._use = _Use(
            adapter,
            layer_numbers(plain.unet),
            block_scales(plain.unet, blocks),
            masks,
            window,
            plain.alphas_cumprod.shape[0],
        )
        self._tokens: Tensor | None = None
        self._absent: Tensor | None = None

    @property
    def is_on(self) -> bool:
        """Whether there is anything to see and any layer to see it."""
        acts = self.scale != 0.0 and any(self._use.layer_scales.values())
        return acts and self._tokens is not None

    @torch.no_grad()
    def show(self, present: ReferenceFeatures, absent: ReferenceFeatures) -> None:
        """Show images to every row, and in their place ``absent`` to the unconditional half."""
        like = next(self.adapter.parameters())
        self.show_tokens(
            self.adapter.tokens(present.to(like))[None], self.adapter.tokens(absent.to(like))[None]
        )

    def show_tokens(
        self,
        present: Float[Tensor, "b images tokens width"],
        absent: Float[Tensor, "b images tokens width"],
    ) -> None:
        """Show tokens: to all rows the same, or to each row of a batch its own.

        Raises:
            ShapeError: there are not as many images as masks.
        """
        masks = self._use.masks
        if masks is not None and len(masks) != present.shape[1]:
            raise ShapeError(
                f"{present.shape[1]} images came with {len(masks)} masks. Give each image its mask."
            )
        self._tokens, self._absent = present, absent

    def modify(self, condition: Condition, rows: int, *, is_cond: bool) -> Condition:
        """The condition with images for each row."""
        if not self.is_on:
            return condition
        condition = condition.expand(rows)
        sees = conditional_rows(condition, rows, is_cond=is_cond)
        present, absent = (
            rows_of(part, rows, "the adapter") for part in (self._tokens, self._absent)
        )
        tokens = torch.where(sees.to(present.device)[:, None, None, None], present, absent)
        addition = ImagePromptAddition(
            self._use, tokens, self.scale * self.view_shares(condition, rows)
        )
        return replace(condition, additions=(*condition.additions, addition))

    def view_shares(self, condition: Condition, rows: int) -> Float[Tensor, " rows"]:
        """How much the images count in each row, by its view."""
        return view_scale(condition.text.azimuth_deg, rows, least=self.fade.least)

    def predict_output(
        self,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        condition: Condition | TextEmbedding,
    ) -> Float[Tensor, "b c s s"]:
        """The denoiser's output; rows without a role count as conditional."""
        predict = partial(super().predict_output, latents, t, condition)
        return self._with_lora(t, predict)

    def guided_noise(
        self,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        cond: Condition | TextEmbedding,
        uncond: Condition | TextEmbedding,
        guidance_scale: float,
        *,
        rescale: float = 0.0,
    ) -> Float[Tensor, "b c s s"]:
        """Guidance in which both halves count images by the same views."""
        cond, uncond = as_condition(cond), as_condition(uncond)
        if cond.text.azimuth_deg is not None and uncond.text.azimuth_deg is None:
            uncond = uncond.expand(len(latents))
            views = cond.text.expand(len(latents)).azimuth_deg
            uncond = replace(uncond, text=uncond.text.seen_from(views))
        predict = partial(
            super().guided_noise, latents, t, cond, uncond, guidance_scale, rescale=rescale
        )
        return self._with_lora(t, predict)

    def _with_lora(
        self, t: Int[Tensor, " b"], predict: Callable[[], Float[Tensor, "b c s s"]]
    ) -> Float[Tensor, "b c s s"]:
        """A prediction in whose rows the LoRA acts where the adapter does."""
        acts = self._use.acts_at(t)
        if self.lora is None or not self.is_on or not bool(acts.any()):
            return predict()
        with self.lora.on():
            changed = predict()
        if bool(acts.all()):
            return changed
        plain = predict()
        return torch.where(acts.to(plain.device)[:, None, None, None], changed, plain)


def _place(layer: str) -> tuple[str, int]:
    """The block of a layer, as configs name it, and its transformer's number in it."""
    parts = layer.split(".")
    block = "mid" if parts[0] == "mid_block" else f"{parts[0].partition('_')[0]}.{parts[1]}"
    return block, int(parts[parts.index("attentions") + 1])

"""Prompts by region of the image (RPG, Yang et al., arXiv 2401.11708, section 3.3).

In every attention layer that sees the text, each region's prompt answers on its own, and

    O = sum_r m_r ((1 - beta_r) O_r + beta_r O_base),      O_base where no region is,

in both halves of guidance. m_r are masks, resized by area to each layer. Three modes:

* ``attn_crop``: O_r = CrossAttention(x, c_r) on the whole image, of which m_r keeps a part. What
  the published code does.
* ``attn_resize``: O_r of the whole image, shrunk into the bounding box of m_r; the paper's formula.
* ``latent``: the denoiser's (guided) prediction in the place of O. One call for each region.

The wrapped prior's embeddings hold the base prompt's tokens and then each region's, so samplers
and guidance rules need not know of it. Tokens that adapters append behind them are seen by all
regions. What runs beside the denoiser (ControlNets, Uni-ControlNet's local adapter) reads the base
prompt and these tokens in the attention modes, and each region's own in mode latent. With beta 1
everywhere the prediction is the plain prior's bit for bit.

    plan = RegionalConfig("1,1", (RegionConfig("a red ball"), RegionConfig("a blue cube")))
    prior = RegionalPrior(prior, plan)
    images = sample_images(prior, ["a ball and a cube"], generators=[generator])
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from image_tools.control.regional_configs import RegionalConfig, RegionRect, parse_ratio
from image_tools.diffusion.additions import DenoiserCall
from image_tools.diffusion.attention import AttentionCall, AttentionOperation
from image_tools.diffusion.conditions import Condition, TextEmbedding, as_condition
from image_tools.diffusion.modified import ModifiedPrior, WrappedPrior, rows_of
from image_tools.diffusion.protocol import NoisePrior
from renderers.errors import ShapeError, check_shape

__all__ = [
    "RegionalAttention",
    "RegionalPrior",
    "latent_regions_of",
    "rect_masks",
    "region_weights",
]

# Shares are sums of fractions: 0.9 of 10 rows must not become 8.
ROUNDING = 1e-6


def rect_masks(rects: Sequence[RegionRect], size: tuple[int, int]) -> Float[Tensor, "regions h w"]:
    """0 or 1; bounds are rounded down, and neighbours share theirs, so that none is left out."""
    masks = torch.zeros(len(rects), *size)
    for mask, rect in zip(masks, rects, strict=True):
        top, bottom = (int(size[0] * share + ROUNDING) for share in (rect.top, rect.bottom))
        left, right = (int(size[1] * share + ROUNDING) for share in (rect.left, rect.right))
        mask[top:bottom, left:right] = 1.0
    return masks


def region_weights(
    masks: Float[Tensor, "*rows regions h w"], base_ratios: Sequence[float], size: tuple[int, int]
) -> Float[Tensor, "*rows prompts height width"]:
    """Weights of base and regions at a resolution; they sum to 1 everywhere.

    Where masks overlap, they share. Where they cover a place in part, the base gets the rest.
    """
    masks = _resized(masks, size)
    masks = masks / masks.sum(dim=-3, keepdim=True).clamp(min=1.0)
    regions = masks * (1.0 - masks.new_tensor(base_ratios))[:, None, None]
    return torch.cat([1.0 - regions.sum(dim=-3, keepdim=True), regions], dim=-3)


@dataclass(frozen=True)
class _Layout:
    """Where regions are: masks of one's own, or rectangles drawn at each layer's resolution."""

    rects: tuple[RegionRect, ...]
    masks: Float[Tensor, "_ regions h w"] | None
    """For all rows of a batch at once, or for each image of it."""
    base_ratios: tuple[float, ...]

    def masks_at(self, size: tuple[int, int], rows: int) -> Float[Tensor, "rows regions h w"]:
        masks = rect_masks(self.rects, size)[None] if self.masks is None else self.masks
        return rows_of(masks, rows, "masks")

    def weights(self, size: tuple[int, int], rows: int) -> Float[Tensor, "rows prompts h w"]:
        return region_weights(self.masks_at(size, rows), self.base_ratios, size)


class RegionalAttention(AttentionOperation):
    """Lets base and regions answer on their own in each layer, and composes what they say."""

    def __init__(
        self,
        layout: _Layout,
        regions: Sequence[Float[Tensor, "rows tokens d"]],
        *,
        shrinks: bool,
    ) -> None:
        """Act on contexts of the base's tokens, and adapters' tokens behind them.

        Args:
            layout: where regions are.
            regions: text of each region, as long as the base's.
            shrinks: whether answers are shrunk into their region instead of cut out.
        """
        self.layout, self.regions, self.shrinks = layout, tuple(regions), shrinks

    def applies_to(self, call: AttentionCall) -> bool:
        """In attention to the text."""
        return call.layer.is_cross

    def inputs(
        self, call: AttentionCall, hidden: Float[Tensor, "rows n c"], context: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The image once for each prompt: all rows with the base, then all with each region."""
        extra = context[:, self.regions[0].shape[1] :]
        told = [torch.cat([region.to(context), extra], dim=1) for region in self.regions]
        return hidden.repeat(1 + len(told), 1, 1), torch.cat([context, *told])

    def output(
        self, call: AttentionCall, output: Float[Tensor, "all n c"]
    ) -> Float[Tensor, "rows n c"]:
        """Base and regions by their weights."""
        size = call.size
        answers = output.unflatten(0, (1 + len(self.regions), -1))
        rows = answers.shape[1]
        if self.shrinks:
            regions = _shrink_all(answers[1:], self.layout.masks_at(size, rows), size)
            answers = torch.cat([answers[:1], regions])
        weights = self.layout.weights(size, rows).to(output).transpose(0, 1)
        return (weights.flatten(2)[..., None] * answers).sum(dim=0)


@dataclass(frozen=True)
class _RegionalText:
    """Takes the regions' text out of a denoiser call, and lets attention see it in its place.

    It comes before all other additions: what they run beside the denoiser then sees one prompt.
    """

    layout: _Layout
    tokens: int
    """Length of one prompt."""
    shrinks: bool
    rows: int

    def __len__(self) -> int:
        return self.rows

    def expand(self, rows: int) -> _RegionalText:
        """For so many rows."""
        return replace(self, rows=rows)

    def stack(self, others: Sequence[_RegionalText]) -> _RegionalText:
        """More rows of the same regions."""
        return replace(self, rows=self.rows + sum(len(other) for other in others))

    def apply(self, call: DenoiserCall) -> DenoiserCall:
        """The call with the base's tokens and those that adapters appended."""
        lengths = [self.tokens] * (1 + len(self.layout.base_ratios))
        appended = call.tokens.shape[1] - sum(lengths)
        base, *regions, extra = call.tokens.split([*lengths, appended], dim=1)
        operation = RegionalAttention(self.layout, regions, shrinks=self.shrinks)
        told = replace(call, tokens=torch.cat([base, extra], dim=1))
        return told.with_operations(operation)


class RegionalPrior(ModifiedPrior):
    """A prior whose image is told by regions."""

    def __init__(
        self,
        plain: NoisePrior,
        config: RegionalConfig,
        *,
        masks: Float[Tensor, "*b regions h w"] | None = None,
    ) -> None:
        """Encode the regions' prompts.

        Args:
            plain: the prior.
            config: regions and their prompts.
            masks: soft masks in 0..1 in the place of ``config.ratio``'s rectangles, for all images
                or for each image of a batch.

        Raises:
            ShapeError: if there are not as many masks as regions.
        """
        super().__init__(plain)
        self.config = config
        self.layout = _Layout(parse_ratio(config.ratio), None, config.base_ratios)
        if masks is not None:
            self.layout = self._laid_out(masks)
        self.is_on = any(ratio < 1.0 for ratio in config.base_ratios)
        common = f"{config.common}, " if config.common else ""
        prompts = [common + region.prompt for region in config.regions]
        self._regions = plain.encode_prompt(prompts)
        self._tokens = self._regions.tokens.shape[1]

    def showing(self, masks: Float[Tensor, "*b regions h w"]) -> RegionalPrior:
        """The same regions at other places.

        Raises:
            ShapeError: if there are not as many masks as regions.
        """
        moved = copy.copy(self)
        moved.layout = self._laid_out(masks)
        return moved

    def encode_prompt(self, prompts: Sequence[str]) -> TextEmbedding:
        """Prompts of whole images, each followed by those of the regions."""
        text = self.plain.encode_prompt(prompts)
        return self._join(text, [self._regions] * len(text)) if self.is_on else text

    def encode_negative(self, prompts: Sequence[str]) -> TextEmbedding:
        """Negative prompts, each followed by the regions' own or itself."""
        text = self.plain.encode_negative(prompts)
        if not self.is_on:
            return text
        own = [region.negative_prompt for region in self.config.regions]
        encoded = [
            self.plain.encode_negative([prompt if one is None else one for one in own])
            for prompt in prompts
        ]
        return self._join(text, encoded)

    @property
    def is_latent(self) -> bool:
        """Whether it blends predictions, each from a call of its own."""
        return self.is_on and self.config.mode == "latent"

    def modify(self, condition: Condition, rows: int, *, is_cond: bool) -> Condition:
        """The condition, which has the regions' text already, and what makes attention see it.

        Raises:
            ShapeError: if it has not.
        """
        if not self.is_on:
            return condition
        condition = self._with_regions(condition).expand(rows)
        shrinks = self.config.mode == "attn_resize"
        text = _RegionalText(self.layout, self._tokens, shrinks, rows)
        return replace(condition, additions=(text, *condition.additions))

    def predict_output(
        self,
        latents: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        condition: Condition | TextEmbedding,
    ) -> Float[Tensor, "b c h w"]:
        """The denoiser's output with regions."""
        if not self.is_latent:
            return super().predict_output(latents, t, condition)
        (parts,) = self._parts(condition)
        return self._blended(
            latents, [lambda c=c: self.plain.predict_output(latents, t, c) for c in parts]
        )

    def guided_noise(
        self,
        latents: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        cond: Condition | TextEmbedding,
        uncond: Condition | TextEmbedding,
        guidance_scale: float,
        *,
        rescale: float = 0.0,
    ) -> Float[Tensor, "b c h w"]:
        """Guidance with regions in both of its halves."""
        if not self.is_latent:
            return super().guided_noise(latents, t, cond, uncond, guidance_scale, rescale=rescale)
        pairs = zip(*self._parts(cond, uncond), strict=True)

        def guided(pair: tuple[Condition, Condition]) -> Tensor:
            return self.plain.guided_noise(latents, t, *pair, guidance_scale, rescale=rescale)

        return self._blended(latents, [lambda p=pair: guided(p) for pair in pairs])

    def _laid_out(self, masks: Tensor) -> _Layout:
        regions = f"{len(self.config.regions)} H W"
        check_shape("masks", masks, regions if masks.ndim == 3 else f"B {regions}")
        return replace(self.layout, masks=masks[None] if masks.ndim == 3 else masks)

    def _with_regions(self, condition: Condition) -> Condition:
        wanted = self._tokens * (1 + len(self.config.regions))
        if condition.text.tokens.shape[1] != wanted:
            raise ShapeError(
                f"The text has {condition.text.tokens.shape[1]} tokens, expected {wanted} for "
                f"{len(self.config.regions)} regions. Encode prompts with the regional prior."
            )
        return condition

    def _parts(self, *conditions: Condition | TextEmbedding) -> tuple[list[Condition], ...]:
        """For each condition, those of the base and of the regions alone."""
        parts = []
        for condition in map(as_condition, conditions):
            told = self._with_regions(condition)
            tokens = told.text.tokens.split(self._tokens, dim=1)
            parts.append([replace(told, text=replace(told.text, tokens=one)) for one in tokens])
        return tuple(parts)

    def _blended(self, latents: Tensor, predictions: Sequence[Callable[[], Tensor]]) -> Tensor:
        """Predictions for base and regions by their weights; those that count are made."""
        weights = self.layout.weights(tuple(latents.shape[-2:]), len(latents)).to(latents)
        total = torch.zeros_like(latents)
        for predict, weight in zip(predictions, weights.unbind(dim=1), strict=True):
            if weight.any():
                total = total + weight[:, None] * predict()
        return total

    def _join(self, text: TextEmbedding, regions: Sequence[TextEmbedding]) -> TextEmbedding:
        """Side by side in their length; the pooled vector is the whole image's."""
        rows = torch.stack([each.tokens.flatten(0, 1) for each in regions])
        return replace(text, tokens=torch.cat([text.tokens, rows], dim=1))


def latent_regions_of(prior: NoisePrior) -> RegionalPrior | None:
    """Regions that blend predictions, in a prior or below whatever modifies it; None for none."""
    while isinstance(prior, WrappedPrior):
        if isinstance(prior, RegionalPrior) and prior.is_latent:
            return prior
        prior = prior.plain
    return None


def _resized(
    masks: Float[Tensor, "*rows h w"], size: tuple[int, int]
) -> Float[Tensor, "*rows height width"]:
    """Masks by area at another size."""
    if masks.shape[-2:] == size:
        return masks
    flat = masks.reshape(-1, 1, *masks.shape[-2:])
    return F.interpolate(flat, size, mode="area").reshape(*masks.shape[:-2], *size)


def _shrink_all(
    answers: Float[Tensor, "regions rows n c"],
    masks: Float[Tensor, "rows regions h w"],
    size: tuple[int, int],
) -> Float[Tensor, "regions rows n c"]:
    """Each answer shrunk into the bounding box of its mask, 0 elsewhere."""
    images = answers.transpose(2, 3).unflatten(3, size)
    result = torch.zeros_like(images)
    for row, own in enumerate(_resized(masks, size)):
        for region, mask in enumerate(own):
            places = mask.nonzero()
            if len(places) == 0:
                continue
            (top, left), (bottom, right) = places.amin(0).tolist(), (places.amax(0) + 1).tolist()
            inside = (bottom - top, right - left)
            shrunk = F.interpolate(images[region, row][None], inside, mode="area")[0]
            result[region, row, :, top:bottom, left:right] = shrunk
    return result.flatten(3).transpose(2, 3)

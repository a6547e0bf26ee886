"""CatVTON (arXiv 2407.15886): try-on by one denoiser that draws person and garment together.

Latents of the person stand above those of the garment, in all nine channels of an inpainting model:

    noise of both | mask above, nothing below | person without the garment above, garment below

so that self-attention, which alone is trained, carries the garment over. There are no words: each
cross-attention gives back its input, and its block adds that, ``h + norm(h)``, as in training. The
upper half is the result. In the unconditional half of guidance the garment's latents beside the
noise are zero; its noisy half stays. The authors take guidance 2.5 and 50 steps with ``eta`` 1.

    tool = CatVtonPrior(TryOnDenoiser(prior, unet, extra_channels=5, image_hw=(1024, 768)))
    tool.dress(sample)
    images = sample.paste_back(tool.draw(generators=[generator], config=config))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from image_tools.configs import DdimConfig
from image_tools.diffusion.additions import DenoiserCall
from image_tools.diffusion.attention import AttentionCall, AttentionOperation
from image_tools.diffusion.conditions import Condition
from image_tools.diffusion.modified import ModifiedPrior, conditional_rows, rows_of
from image_tools.diffusion.sampling import denoise_latents, unit_noise
from image_tools.tryon.extend import ExtraChannels, TryOnDenoiser, latent_mask
from image_tools.tryon.pictures import fitted
from image_tools.tryon.samples import TryOnSample
from renderers.errors import StudioError

__all__ = ["CAT_CHANNELS", "CatChannels", "CatVtonPrior", "SkippedCrossAttention", "above"]

CAT_CHANNELS = 5
MODEL = "CatVTON"


def above(upper: Tensor, lower: Tensor) -> Tensor:
    """Latents of two pictures as those of one that is twice as high."""
    return torch.cat([upper, lower], dim=-2)


class SkippedCrossAttention(AttentionOperation):
    """Cross-attention that gives back its input."""

    def __init__(self) -> None:
        self._input: Tensor | None = None

    def applies_to(self, call: AttentionCall) -> bool:
        """In all cross-attention."""
        return call.layer.is_cross

    def inputs(
        self, call: AttentionCall, hidden: Float[Tensor, "rows n c"], context: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Keep the input until the layer is done."""
        self._input = hidden
        return hidden, context

    def output(
        self, call: AttentionCall, output: Float[Tensor, "rows n c"]
    ) -> Float[Tensor, "rows n c"]:
        """The input of this layer."""
        return self._input


@dataclass(frozen=True)
class CatChannels(ExtraChannels):
    """Channels of a denoiser that reads no words."""

    def expand(self, rows: int) -> CatChannels:
        """A single row repeated, or itself where it has that many."""
        return CatChannels(super().expand(rows).channels)

    def stack(self, others: Sequence[ExtraChannels]) -> CatChannels:
        """More rows."""
        return CatChannels(super().stack(others).channels)

    def apply(self, call: DenoiserCall) -> DenoiserCall:
        """The call with these channels and without words."""
        return super().apply(call).with_operations(SkippedCrossAttention())


class CatVtonPrior(ModifiedPrior):
    """A denoiser that draws a person above a garment."""

    def __init__(self, denoiser: TryOnDenoiser) -> None:
        """Nobody is dressed yet.

        Args:
            denoiser: an inpainting model whose self-attention is trained for this.
        """
        super().__init__(denoiser)
        self.denoiser = denoiser
        self._shown: tuple[Tensor, Tensor, Tensor] | None = None

    @torch.no_grad()
    def dress(self, sample: TryOnSample) -> None:
        """Take people and their garments; rows of calls are theirs, or repeat them.

        Raises:
            ShapeError: pictures are not of the denoiser's size.
            StudioError: there are several garments.
        """
        denoiser = self.denoiser
        sample = sample.to(denoiser.device).hardened
        garment = fitted(sample.only_garment(model=MODEL).images, denoiser.image_hw)
        mask = latent_mask(sample.mask, denoiser.latent_stride)
        person = denoiser.encode_images(sample.agnostic)
        self._shown = (mask, person, denoiser.encode_images(garment))

    def channels(self, rows: int, sees: Bool[Tensor, " rows"]) -> CatChannels:
        """What each row is shown beside the noise; rows that do not see have no garment.

        Raises:
            StudioError: nobody is dressed.
        """
        if self._shown is None:
            raise StudioError(f"{MODEL} has nobody to dress. Call dress(sample) first.")
        mask, person, garment = (rows_of(part, rows, "the person") for part in self._shown)
        garment = garment * sees.to(garment).reshape(-1, 1, 1, 1)
        beside = [above(mask, torch.zeros_like(mask)), above(person, garment)]
        return CatChannels(torch.cat(beside, dim=1))

    def modify(self, condition: Condition, rows: int, *, is_cond: bool) -> Condition:
        """The condition with channels for each row; its words are not read."""
        condition = condition.expand(rows)
        channels = self.channels(rows, conditional_rows(condition, rows, is_cond=is_cond))
        return replace(condition, additions=(*condition.additions, channels))

    @torch.no_grad()
    def draw(
        self, *, generators: Sequence[torch.Generator], config: DdimConfig
    ) -> Float[Tensor, "b h w 3"]:
        """The people in the garments, one picture for each generator."""
        height, width = self.denoiser.latent_hw
        nothing = Condition(self.encode_negative([""])).expand(len(generators))
        shape = (self.latent_channels, 2 * height, width)
        latents = denoise_latents(
            self,
            unit_noise(shape, generators, self.device),
            nothing,
            nothing,
            generators=generators,
            config=config,
        )
        return self.decode_latents(latents[..., :height, :])

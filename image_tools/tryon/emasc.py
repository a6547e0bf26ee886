"""Enhanced mask-aware skip connections of a VAE (EMASC, LaDI-VTON, arXiv 2305.13501, section 3.4).

A latent VAE loses faces and hands. Features of the encoder, seen on the picture without the
garment, go through two convolutions each, are put out inside the mask, and are added in the
decoder, from the finest level:

    conv_in's output -> before conv_out;  input of down block i -> input of up block L-1-i

By hooks on a stock AutoencoderKL, for the time of a call. Features are of whole pictures and whole
batches, so the VAE's slices, tiles and checkpoints are off meanwhile. With zeros in the last
convolutions the decoder is the plain one bit for bit. Lists of features are never changed in place.

    prior = EmascPrior(denoiser, skips)
    with prior.showing(sample.agnostic, sample.mask):
        images = prior.decode_latents(latents)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.diffusion.modified import WrappedPrior, rows_of
from image_tools.diffusion.protocol import NoisePrior
from image_tools.errors import UnsupportedModel
from image_tools.tryon.ladi_configs import EmascSettings
from image_tools.tryon.own_modules import OwnModule
from renderers.errors import check_shape

__all__ = ["EmascPrior", "SkipConnections", "adding", "recording", "skip_settings"]


def skip_settings(vae: nn.Module) -> EmascSettings:
    """Sizes of the skip connections for a VAE."""
    widths = tuple(vae.config.block_out_channels)
    # The decoder's first block has the widest features, each other those of the block before it.
    decoder = (widths[-1], *widths[::-1][:-1])
    return EmascSettings((widths[0], widths[0], *widths[:-1]), (widths[0], *decoder[::-1]))


class SkipConnections(OwnModule):
    """Two convolutions for each level."""

    def __init__(self, settings: EmascSettings) -> None:
        """Untrained connections, which add nothing yet."""
        super().__init__(settings)
        self.conv = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(wide, wide, 3, padding=1), nn.SiLU(), nn.Conv2d(wide, out, 3, padding=1)
            )
            for wide, out in zip(settings.in_channels, settings.out_channels, strict=True)
        )
        for level in self.conv:
            nn.init.zeros_(level[2].weight)
            nn.init.zeros_(level[2].bias)

    def forward(
        self, features: Sequence[Float[Tensor, "b c h w"]], mask: Float[Tensor, "b 1 h w"]
    ) -> list[Float[Tensor, "b d h w"]]:
        """What is added at each level, from the finest.

        Args:
            features: of the encoder, from the finest level.
            mask: 1 where the picture is painted anew and nothing shall be added.
        """
        added = []
        for convolutions, level in zip(self.conv, features, strict=True):
            if mask.shape[-2:] != level.shape[-2:]:
                mask = F.interpolate(mask, level.shape[-2:], mode="nearest")
            added.append(convolutions(level) * (1.0 - mask))
        return added


@contextmanager
def _whole(vae: nn.Module) -> Iterator[None]:
    """Inside, the VAE passes whole batches of whole pictures, each block once.

    Slices and tiles would meet features of other people and other sizes. Checkpoints run blocks
    again in the backward pass, when nothing is added any more.
    """
    switches = [
        (vae, "use_slicing"),
        (vae, "use_tiling"),
        (vae.encoder, "gradient_checkpointing"),
        (vae.decoder, "gradient_checkpointing"),
    ]
    before = [getattr(owner, name) for owner, name in switches]
    try:
        for owner, name in switches:
            setattr(owner, name, False)
        yield
    finally:
        for (owner, name), value in zip(switches, before, strict=True):
            setattr(owner, name, value)


@contextmanager
def recording(vae: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, the list holds the features of the encoder's last pass, from the finest level."""
    places = [vae.encoder.conv_in, *vae.encoder.down_blocks]
    features: list[Tensor] = []

    def first(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        features[:] = [output]

    def later(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features.append(inputs[0])

    with _whole(vae), ExitStack() as stack:
        stack.callback(places[0].register_forward_hook(first).remove)
        for block in places[1:]:
            stack.callback(block.register_forward_pre_hook(later).remove)
        yield features


@contextmanager
def adding(vae: nn.Module, added: Sequence[Float[Tensor, "b c h w"]]) -> Iterator[None]:
    """Inside, the decoder gets these features added, from the finest level."""
    blocks = list(vae.decoder.up_blocks)
    places = [vae.decoder.conv_out, *blocks[::-1]]

    def add(level: Tensor, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] + level.to(inputs[0]), *inputs[1:])

    with _whole(vae), ExitStack() as stack:
        for place, level in zip(places, added, strict=True):
            stack.callback(place.register_forward_pre_hook(partial(add, level)).remove)
        yield


class EmascPrior(WrappedPrior):
    """A prior that decodes with skip connections to a picture that it is shown."""

    def __init__(self, plain: NoisePrior, skips: SkipConnections) -> None:
        """Wrap a prior.

        Raises:
            UnsupportedModel: if the connections do not fit its VAE.
        """
        super().__init__(plain)
        wanted = skip_settings(plain.vae)
        if skips.settings != wanted:
            raise UnsupportedModel(
                f"The skip connections lead from {skips.settings.in_channels} to "
                f"{skips.settings.out_channels} channels, the VAE wants {wanted.in_channels} and "
                f"{wanted.out_channels}. Name those that were trained for this VAE."
            )
        self.skips = skips
        self._added: list[Tensor] | None = None

    @contextmanager
    def showing(
        self, agnostic: Float[Tensor, "b h w 3"], mask: Float[Tensor, "b h w 1"]
    ) -> Iterator[None]:
        """Inside, decoded pictures keep the details of these outside the mask."""
        before = self._added
        self._added = self.added(agnostic, mask)
        try:
            yield
        finally:
            self._added = before

    def added(
        self, agnostic: Float[Tensor, "b h w 3"], mask: Float[Tensor, "b h w 1"]
    ) -> list[Float[Tensor, "b c s t"]]:
        """What these pictures add to the decoder; differentiable in the connections."""
        check_shape("mask", mask, " ".join(str(side) for side in (*agnostic.shape[:3], 1)))
        with torch.no_grad(), recording(self.plain.vae) as features:
            self.plain.encode_images(agnostic)
            found = list(features)
        parameter = next(self.skips.parameters())
        return self.skips(
            [level.to(parameter) for level in found], mask.movedim(-1, 1).to(parameter)
        )

    def decode_latents(self, latents: Float[Tensor, "b c s s"]) -> Float[Tensor, "b h w 3"]:
        """Latents to images, with the connections where a picture is shown."""
        if self._added is None:
            return self.plain.decode_latents(latents)
        rows = [rows_of(level, len(latents), "The picture") for level in self._added]
        with adding(self.plain.vae, rows):
            return self.plain.decode_latents(latents)

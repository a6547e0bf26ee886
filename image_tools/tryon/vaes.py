"""Other VAEs in the place of a prior's, as try-on models come with.

prior = with_vae(prior, read_stock_vae(Path("sd-vae-ft-mse"), prior.vae))
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import nn

from image_tools.diffusion.loading import read_module
from image_tools.diffusion.memory import share_memory_options
from image_tools.diffusion.prior import DiffusionPrior, PriorParts
from image_tools.diffusion.weights import find_weights, only_variant, read_json
from image_tools.tryon.tryon_weights import STEM
from renderers.errors import StudioError

__all__ = ["read_stock_vae", "with_vae"]


def read_stock_vae(folder: Path, like: nn.Module) -> nn.Module:
    """A VAE of a diffusers folder, in the number format of another.

    Raises:
        WeightsMissing: files are absent or damaged; UnsafeWeights if they are pickles.
    """
    from diffusers import AutoencoderKL

    folder, dtype = folder.expanduser(), next(like.parameters()).dtype
    read_json(folder / "config.json", role="VAE")
    variant = only_variant(folder, STEM)
    find_weights(folder, STEM, role="VAE", variant=variant)
    read = partial(AutoencoderKL.from_pretrained, torch_dtype=dtype)
    return read_module(read, folder, variant, "VAE")


def with_vae(prior: DiffusionPrior, vae: nn.Module) -> DiffusionPrior:
    """A plain prior with another VAE.

    Raises:
        UnsupportedModel: if the VAE has latents of another width.
        StudioError: if ``prior`` has tools around it.
    """
    if not isinstance(prior, DiffusionPrior):
        raise StudioError(
            f"Another VAE was named for a {type(prior).__name__} - expected a plain prior. Put "
            "tools around it afterwards."
        )
    share_memory_options(prior.vae, vae)
    return DiffusionPrior(
        PriorParts(
            unet=prior.unet,
            vae=vae.to(prior.device),
            text=prior.text,
            scheduler_config=prior.scheduler_config,
            fingerprint=prior.fingerprint,
            zero_negative=prior.zero_negative,
            aesthetics=prior.aesthetics,
        ),
        prompt_cache=prior.prompt_cache,
        keep_text_encoder=prior.keeps_text_encoder,
    )

"""What the stock pipelines put right in old folders as they open them, and models that do not fit.

Folders written before these values had a file's name for them say what their authors never used.
The pipelines of Stable Diffusion 1.x and 2.x replace them; SDXL's does not.

    correct_sample_size(unet)
    schedule = corrected_schedule(read_json(folder / "scheduler/scheduler_config.json"), unet)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from image_tools.errors import UnsupportedModel

__all__ = ["correct_sample_size", "corrected_schedule", "refuse_edm", "refuse_guidance_embedding"]

FIRST_TRUSTED_VERSION = "0.9.0"
SMALLEST_SIZE = 64
STOCK_SCHEDULE = {"clip_sample": False, "steps_offset": 1}
EDM_NAMES = ("edm_vpred.sigma_max", "edm_mean")


def corrected_schedule(settings: Mapping[str, Any], unet: nn.Module) -> dict[str, Any]:
    """A scheduler's settings as the denoiser's stock pipeline uses them.

    Args:
        settings: of scheduler_config.json.
        unet: a diffusers denoiser, which tells Stable Diffusion from SDXL.
    """
    is_sdxl = unet.config.addition_embed_type is not None
    return dict(settings) if is_sdxl else {**settings, **STOCK_SCHEDULE}


def correct_sample_size(unet: nn.Module) -> None:
    """Latents of 64 x 64 for a Stable Diffusion folder so old that its smaller number is wrong."""
    from packaging.version import Version

    config = unet.config
    written = Version(config.get("_diffusers_version", FIRST_TRUSTED_VERSION)).base_version
    is_old = Version(written) < Version(FIRST_TRUSTED_VERSION)
    is_small = isinstance(config.sample_size, int) and config.sample_size < SMALLEST_SIZE
    if is_old and is_small and config.addition_embed_type is None:
        unet.register_to_config(sample_size=SMALLEST_SIZE)


def refuse_edm(names: Collection[str], path: Path, *, role: str) -> None:
    """Refuse a checkpoint that was trained on continuous noise levels.

    Args:
        names: of its tensors.
        path: where it lies.
        role: what it is for.

    Raises:
        UnsupportedModel: it holds the bounds or the statistics of such levels.
    """
    found = [name for name in EDM_NAMES if name in names]
    if found:
        raise UnsupportedModel(
            f"The {role} '{path}' holds '{found[0]}': it was trained on continuous noise levels "
            "(EDM: CosXL, Playground 2.5). Expected a model trained with DDPM noise (Stable "
            "Diffusion 1.x, 2.x, SDXL)."
        )


def refuse_guidance_embedding(unet: nn.Module) -> None:
    """Refuse a denoiser that is told the guidance scale, as those of latent consistency are.

    Raises:
        UnsupportedModel: it has an embedding for it.
    """
    width = getattr(unet.config, "time_cond_proj_dim", None)
    if width is not None:
        raise UnsupportedModel(
            f"The denoiser is told the guidance scale (time_cond_proj_dim is {width}), as models "
            "distilled for latent consistency (LCM) are. Expected one that is not; name the model "
            "that it was distilled from."
        )

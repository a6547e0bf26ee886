"""Parts that keep their own number format inside of mixed precision.

Autocast computes matrix products in half precision whatever the modules hold. VAEs overflow in it
(SDXL's above 65504), coordinates lose whole pixels, and text that is compared or kept must be the
same inside and outside.

    with full_precision(pixels.device):
        posterior = vae.encode(pixels).latent_dist
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["full_precision"]


def full_precision(device: torch.device) -> AbstractContextManager:
    """Switch autocast off: what is computed inside has the formats of its inputs and weights."""
    if device.type == "meta":  # computes nothing, and autocast refuses it
        return nullcontext()
    return torch.autocast(device.type, enabled=False)

"""Tiny InstructPix2Pix denoisers that look at their image."""

from __future__ import annotations

import torch

from image_tools.editing.instruct_pix2pix import inflate_conv_in

__all__ = ["tiny_edit_unet"]


def tiny_edit_unet(prior, *, seed: int = 8):
    """A prior's denoiser with more input channels, and numbers in their weights."""
    unet = inflate_conv_in(prior.unet, 4)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        new = unet.conv_in.weight[:, 4:]
        new.copy_(0.3 * torch.randn(new.shape, generator=generator))
    return unet

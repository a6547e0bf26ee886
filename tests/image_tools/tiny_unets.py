"""Tiny stock UNets with random weights and a fixed input."""

from __future__ import annotations

import torch
from torch import Tensor

from image_tools.diffusion.camera_embedding import add_camera_embedding

__all__ = ["call_unet", "inputs", "tiny_multiview_unet", "tiny_unet"]

TEXT_WIDTH = 16


def tiny_unet():
    """Two levels, attention in all parts, two heads."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2,
            norm_num_groups=8,
            cross_attention_dim=TEXT_WIDTH,
        ).eval()


def tiny_multiview_unet():
    """The same weights with a camera embedding that does something."""
    unet = tiny_unet()
    generator = torch.Generator().manual_seed(12)
    add_camera_embedding(unet, generator)
    with torch.no_grad():
        for parameter in unet.class_embedding.linear_2.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return unet.eval()


def inputs(rows: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timesteps and text of a batch: the first rows of always the same eight."""
    generator = torch.Generator().manual_seed(13)
    latents = torch.randn(8, 4, 8, 8, generator=generator)
    t = torch.randint(0, 1000, (8,), generator=generator)
    text = torch.randn(8, 5, TEXT_WIDTH, generator=generator)
    return latents[:rows], t[:rows], text[:rows]


@torch.no_grad()
def call_unet(unet, rows: int = 4, cameras: Tensor | None = None) -> Tensor:
    """The UNet's output for the fixed input."""
    latents, t, text = inputs(rows)
    return unet(latents, t, encoder_hidden_states=text, class_labels=cameras).sample

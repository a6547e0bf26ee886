"""What StableVITON's denoiser is told in the place of words: one token of the garment.

CLIP's class token of the product picture goes through five residual transformer blocks and a
projection, as in Paint-by-Example (arXiv 2211.13227). Their attention has one token to look at, so
its softmax is 1 and its output is the token's own value. "Nothing" is a vector that is learnt.

    token = context(class_token(clip, garment.images))
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.tryon.own_modules import OwnModule
from image_tools.tryon.stable_viton_configs import ContextSettings
from image_tools.vision.clip_images import ClipImages

__all__ = ["ContextHead", "ContextMapper", "class_token"]


class ContextMapper(OwnModule):
    """Residual blocks over one token."""

    def __init__(self, settings: ContextSettings) -> None:
        """Untrained blocks."""
        super().__init__(settings)
        self.resblocks = nn.ModuleList(_Block(settings.image_width) for _ in range(settings.blocks))
        self.final_ln = nn.LayerNorm(settings.image_width)

    def forward(self, token: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        """The token after all blocks."""
        for block in self.resblocks:
            token = block(token)
        return self.final_ln(token)


class ContextHead(OwnModule):
    """The token in the denoiser's width, and the token for nothing."""

    def __init__(self, settings: ContextSettings) -> None:
        """An untrained projection."""
        super().__init__(settings)
        self.proj_out = nn.Linear(settings.image_width, settings.text_width)
        self.learnable_vector = nn.Parameter(torch.randn(1, 1, settings.text_width))

    def forward(self, token: Float[Tensor, "b c"]) -> Float[Tensor, "b 1 width"]:
        """The garment's context."""
        return self.proj_out(token)[:, None]

    def nothing(self, rows: int) -> Float[Tensor, "rows 1 width"]:
        """The context without a garment."""
        return self.learnable_vector.expand(rows, -1, -1)


class _Block(nn.Module):
    """One residual attention block for a single token and a single head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.ModuleDict(
            {"c_qkv": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)}
        )
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )
        self.gelu = nn.GELU()

    def forward(self, token: Tensor) -> Tensor:
        value = self.attn["c_qkv"](self.ln_1(token)).chunk(3, dim=-1)[2]
        token = token + self.attn["c_proj"](value)
        return token + self.mlp["c_proj"](self.gelu(self.mlp["c_fc"](self.ln_2(token))))


@torch.no_grad()
def class_token(clip: ClipImages, images: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b c"]:
    """CLIP's normalised class token, before any projection, of pictures pressed into squares.

    Without antialiasing, as the authors resize tensors.
    """
    parameter = next(clip.model.parameters())
    pictures = images.to(parameter.device).movedim(-1, 1)
    pressed = F.interpolate(pictures, (clip.side, clip.side), mode="bilinear").movedim(1, -1)
    pixels = clip.preprocess(pressed).to(parameter)
    return clip.model.vision_model(pixel_values=pixels).pooler_output

"""Where a prior sees the words of a prompt in a finished image: heat maps of its attention.

The image is noised to a few timesteps and looked at again, as self-guidance does with real images
(arXiv 2306.00986, section 3.3); attention to a word's tokens is averaged over heads, layers and
timesteps, as in DAAM (arXiv 2210.04885). So maps are had of any image, drawn, edited or
photographed, and whatever tool made it. They are not those of the sampling that drew it.

    maps = word_maps(prior, latents, "a red duck", ["duck"], generator=generator)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.attention import AttentionHub, attention_operations
from image_tools.diffusion.conditions import Condition
from image_tools.diffusion.parametrization import add_noise, alpha_sigma
from image_tools.diffusion.protocol import NoisePrior
from image_tools.editing.align import tokenize_prompt, word_tokens
from image_tools.editing.local_blend import WordMapRecorder

__all__ = ["word_maps"]

TIMES = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of the training length: where layouts are decided, and a little after."""


@torch.no_grad()
def word_maps(
    prior: NoisePrior,
    latents: Float[Tensor, "b c h w"],
    prompt: str,
    words: Sequence[str | int],
    *,
    generator: torch.Generator,
) -> Float[Tensor, "words b h w"]:
    """Attention to each word, from 0 to 1, the largest of each map.

    Args:
        prior: sees the images.
        latents: clean latents of images.
        prompt: what they show.
        words: of the prompt; see ``word_tokens``.
        generator: of the noise.

    Raises:
        WordsError: the prompt has no such word.
    """
    tokens = tokenize_prompt(prior.text.tokenizers[0], prompt)
    factors = []
    for word in words:
        factor = torch.zeros(tokens.length)
        factor[list(word_tokens(tokens, word))] = 1.0
        factors.append(factor)
    layers = [layer for layer in AttentionHub(prior.unet).layers if layer.is_cross]
    levels = sorted({layer.level for layer in layers if layer.place != "mid"})
    recorders = [[WordMapRecorder([factor], level) for level in levels] for factor in factors]
    condition = Condition(prior.encode_prompt([prompt]), roles=("cond:0",)).expand(len(latents))
    operations = [recorder for own in recorders for recorder in own]
    for step, share in enumerate(TIMES):
        t = torch.full((len(latents),), round(share * len(prior.alphas_cumprod)))
        t = t.clamp(max=len(prior.alphas_cumprod) - 1).to(latents.device)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        alpha, sigma = alpha_sigma(prior.alphas_cumprod, t, latents)
        with attention_operations(prior.unet, operations, step=step):
            prior.predict_output(add_noise(latents, noise, alpha, sigma), t, condition)
    size = tuple(latents.shape[-2:])
    return torch.stack([_joined(own, size) for own in recorders])


def _joined(recorders: Sequence[WordMapRecorder], size: tuple[int, int]) -> Float[Tensor, "b h w"]:
    """All levels at one size, each with the same weight."""
    total = torch.zeros(())
    for recorder in recorders:
        maps = recorder.sum_until(len(TIMES) - 1)[0][:, None].float()
        large = F.interpolate(maps, size, mode="bilinear")[:, 0]
        total = total.to(large) + large / large.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    low = total.amin(dim=(1, 2), keepdim=True)
    high = total.amax(dim=(1, 2), keepdim=True)
    return (total - low) / (high - low).clamp(min=1e-12)

"""What an autoencoder does not see of a render, and a pull that takes it away.

A rule's gradient reaches pixels through the encoder, so whatever the encoder does not tell apart
gets no gradient. An encoder learns to see the images it was trained on: one that never met magenta
objects may read them as grey. A render can then drift that way for ever while the prior believes
that it sees, and asks for, a grey castle.

What it was read as shows when the latents are decoded: the loss here is half the squared distance
of a render to ``decode(encode(render))``, summed over an image as the gradient of a rule is over
its latents. Its gradient treats the decoded image as given. The image loss of HiFA (arXiv
2305.18766) compares with the decoded *prediction* instead, which brings the over-saturation of a
guided prediction with it; this one asks for nothing but that what is rendered is what is read.

    loss = read_back_loss(prior, images, latents)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from guidance.gradient import gradient_loss
from image_tools.diffusion.protocol import NoisePrior

__all__ = ["read_back_loss"]


def read_back_loss(
    prior: NoisePrior, images: Float[Tensor, "b h w 3"], latents: Float[Tensor, "b c s s"]
) -> Float[Tensor, ""]:
    """A loss with gradient ``(images - decode(latents)) / b``.

    Images of different sizes are compared at the smaller one, so that no render is asked to be as
    blurred as what was read small.

    Args:
        prior: decodes.
        images: renders in 0..1, with gradient.
        latents: what ``prior`` encoded them to.
    """
    with torch.no_grad():
        read = prior.decode_latents(latents.detach()).to(images)
    size = (min(images.shape[1], read.shape[1]), min(images.shape[2], read.shape[2]))
    images = _shrink(images, size)
    return gradient_loss(images, images.detach() - _shrink(read, size))


def _shrink(images: Float[Tensor, "b h w 3"], size: tuple[int, int]) -> Float[Tensor, "b i j 3"]:
    if images.shape[1:3] == size:
        return images
    pixels = images.movedim(-1, 1)
    return functional.interpolate(pixels, size, mode="bilinear", antialias=True).movedim(1, -1)

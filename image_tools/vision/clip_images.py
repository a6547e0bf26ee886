"""What a CLIP vision model sees of images: the encoder of IP-Adapter and its relatives.

Images are brought to the model's size as CLIP was trained (arXiv 2103.00020): the shorter side is
resized (bicubic), the middle cut out, CLIP's mean and deviation taken off. All of it is torch, so
gradients reach the images; the model itself is frozen.

Deviation: colours are not rounded to whole levels, so that gradients pass; pixels differ from those
of transformers' PIL processor by up to 1.5 of 255 levels. ``fit: pad`` keeps what the cut loses.

    clip = load_clip_images("~/models/image_encoder", torch.device("cpu"))
    tokens = clip.hidden(images)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.diffusion.loading import read_module
from image_tools.diffusion.weights import find_weights, read_json
from image_tools.errors import UnsupportedModel
from renderers.errors import check_shape

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "ClipFeatures",
    "ClipImages",
    "ImageFit",
    "clip_pixels",
    "load_clip_images",
]

ROLE = "CLIP vision model"
KINDS = ("CLIPVisionModelWithProjection", "CLIPModel")
# Of the pictures that CLIP was trained on.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

ImageFit = Literal["crop", "pad"]
"""crop keeps the middle square, as CLIP was trained; pad puts white around, which loses nothing."""


@dataclass(frozen=True)
class ClipFeatures:
    """All that one pass over images gives; n is the number of patches and the class token."""

    pooled: Float[Tensor, "b e"]
    """The projected embedding, not normalised."""
    hidden: Float[Tensor, "b n c"]
    """Tokens after the last layer but one."""
    last_hidden: Float[Tensor, "b n c"]
    """Tokens after the last layer, before any further normalisation."""


class ClipImages:
    """A frozen CLIP vision model and how it is shown images."""

    def __init__(self, model: nn.Module, *, fit: ImageFit = "crop") -> None:
        """Freeze a transformers CLIPVisionModelWithProjection."""
        self.model, self.fit = model.eval().requires_grad_(False), fit

    @property
    def side(self) -> int:
        """Rows and columns of pixels that the model sees."""
        return self.model.config.image_size

    @property
    def width(self) -> int:
        """Channels of its tokens."""
        return self.model.config.hidden_size

    @property
    def pooled_width(self) -> int:
        """Numbers of its embedding."""
        return self.model.config.projection_dim

    def preprocess(self, images: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b 3 s s"]:
        """Images in 0..1 as the model sees them.

        Raises:
            ShapeError: if ``images`` is not [b, h, w, 3].
        """
        return clip_pixels(images, self.side, fit=self.fit)

    def see(self, pixels: Float[Tensor, "b 3 s s"]) -> ClipFeatures:
        """Features of preprocessed images, in their number format and on their device."""
        parameter = next(self.model.parameters())
        seen = self.model(pixel_values=pixels.to(parameter), output_hidden_states=True)
        features = (seen.image_embeds, seen.hidden_states[-2], seen.last_hidden_state)
        return ClipFeatures(*(part.to(pixels) for part in features))

    def features(self, images: Float[Tensor, "b h w 3"]) -> ClipFeatures:
        """Features of images in 0..1."""
        return self.see(self.preprocess(images))

    def pooled(self, images: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b e"]:
        """The projected embedding of images in 0..1, not normalised."""
        return self.features(images).pooled

    def hidden(self, images: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b n c"]:
        """Tokens of images in 0..1 after the last layer but one (``hidden_states[-2]``)."""
        return self.features(images).hidden

    def last_hidden(self, images: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b n c"]:
        """Tokens of images in 0..1 after the last layer, before any further normalisation."""
        return self.features(images).last_hidden

    def black(self, rows: int) -> Float[Tensor, "b 3 s s"]:
        """Zero pixels after normalisation: what IP-Adapter shows where there is no image."""
        parameter = next(self.model.parameters())
        return torch.zeros(rows, 3, self.side, self.side, device=parameter.device)


def clip_pixels(
    images: Float[Tensor, "b h w 3"], side: int, *, fit: ImageFit = "crop"
) -> Float[Tensor, "b 3 s s"]:
    """Images in 0..1 as a CLIP model of ``side`` pixels sees them.

    Raises:
        ShapeError: if ``images`` is not [b, h, w, 3].
    """
    check_shape("images", images, "B H W 3")
    pixels = images.movedim(-1, 1)
    if fit == "pad":
        pixels = _padded(pixels)
    pixels = _resized(pixels, side)
    top, left = ((length - side) // 2 for length in pixels.shape[-2:])
    pixels = pixels[..., top : top + side, left : left + side]
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


def load_clip_images(
    folder: Path | str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    fit: ImageFit = "crop",
) -> ClipImages:
    """Read a vision model from a local folder in transformers' layout.

    Args:
        folder: holds config.json and model.safetensors.
        device: where it runs.
        dtype: its number format.
        fit: what happens to images that are not square.

    Raises:
        WeightsMissing: files are absent or damaged; UnsafeWeights if they are pickles.
        UnsupportedModel: another kind of model.
    """
    from transformers import CLIPVisionModelWithProjection

    folder = Path(folder).expanduser()
    kinds = read_json(folder / "config.json", role=ROLE).get("architectures") or KINDS[:1]
    if not set(kinds) & set(KINDS):
        raise UnsupportedModel(
            f"'{folder}' holds a {', '.join(kinds)}. Expected a {KINDS[0]}, such as the folder "
            "image_encoder beside an IP-Adapter."
        )
    find_weights(folder, "model", role=ROLE)
    read = partial(CLIPVisionModelWithProjection.from_pretrained, dtype=dtype)
    return ClipImages(read_module(read, folder, None, ROLE).to(device), fit=fit)


def _resized(pixels: Float[Tensor, "b 3 h w"], side: int) -> Float[Tensor, "b 3 rows columns"]:
    """The shorter axis at ``side`` pixels: columns, then rows, overshoots cut off as PIL does."""
    height, width = pixels.shape[-2:]
    short = min(height, width)
    rows, columns = side * height // short, side * width // short
    for size in ((height, columns), (rows, columns)):
        if size != tuple(pixels.shape[-2:]):
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True)
        pixels = pixels.clamp(0.0, 1.0)
    return pixels


def _padded(pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
    """White on both sides of the shorter axis."""
    height, width = pixels.shape[-2:]
    missing = (max(0, width - height), max(0, height - width))
    top, left = missing[0] // 2, missing[1] // 2
    return F.pad(pixels, (left, missing[1] - left, top, missing[0] - top), value=1.0)

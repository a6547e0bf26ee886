"""IP-Adapter (arXiv 2308.06721): attention to images beside attention to text.

    Z = Attention(Q, K, V) + scale Attention(Q, K', V'),   K' = c W'_k,  V' = c W'_v     (Eq. 5)

with the layer's own Q, and c the tokens that a projector makes of what an encoder sees in images:

    base         CLIP's embedding                                     4 tokens
    plus         CLIP's tokens, read by a perceiver                   16 tokens
    full         CLIP's tokens, one by one                            257 tokens
    faceid       the identity of a face                               4 tokens, portraits 16
    faceid_plus  identity, which a perceiver completes with CLIP's tokens of the face:
                 the perceiver's answer (version 1), or identity + structure x answer (version 2)

Modules have the names of the public checkpoints, so that their tensors load strictly. Tokens of
several images stand beside each other in one attention; with masks each image has an attention of
its own, and they add up.

Deviation: masks are averaged over a layer's cells, so that a cell which is covered in part counts
in part; diffusers samples them.

    adapter = new_ip_adapter(unet, "base", image_width=1024, generator=generator)
    operation = DecoupledAttention(adapter, layer_numbers(unet), shown)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.diffusion.attention import AttentionHub
from image_tools.diffusion.attention_calls import AttentionCall, AttentionOperation
from image_tools.diffusion.attention_processor import attend, split_heads
from image_tools.diffusion.modified import rows_of
from image_tools.personalization.ip_adapter_configs import IPVariant
from image_tools.personalization.perceiver import (
    Perceiver,
    PerceiverResampler,
    PerceiverSettings,
    draw_weights,
)
from image_tools.personalization.reference_features import ClipPart, ReferenceFeatures

__all__ = [
    "DecoupledAttention",
    "EmbedProjector",
    "FacePlusProjector",
    "FaceProjector",
    "FullProjector",
    "IPAdapter",
    "ImageKeys",
    "PlusProjector",
    "ShownImages",
    "layer_numbers",
    "layer_widths",
    "new_ip_adapter",
    "start_from_text",
]

HEAD_WIDTH = 64
BASE_TOKENS = 4
FACE_WIDTH = 512


class EmbedProjector(nn.Module):
    """Tokens of CLIP's embedding."""

    variant: IPVariant = "base"
    clip: ClipPart = "pooled"

    def __init__(self, image_width: int, text_width: int, tokens: int = BASE_TOKENS) -> None:
        super().__init__()
        self.tokens = tokens
        self.proj = nn.Linear(image_width, tokens * text_width)
        self.norm = nn.LayerNorm(text_width)

    def forward(self, features: ReferenceFeatures) -> Float[Tensor, "images tokens width"]:
        """Tokens of each image."""
        return self.norm(self.proj(features.clip).unflatten(-1, (self.tokens, -1)))


class PlusProjector(PerceiverResampler):
    """Tokens that a perceiver makes of CLIP's."""

    variant: IPVariant = "plus"
    clip: ClipPart = "hidden"

    def forward(self, features: ReferenceFeatures) -> Float[Tensor, "images tokens width"]:
        """Tokens of each image."""
        return super().forward(features.clip)


class FullProjector(nn.Module):
    """CLIP's tokens, each by itself."""

    variant: IPVariant = "full"
    clip: ClipPart = "hidden"

    def __init__(self, image_width: int, text_width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Linear(image_width, image_width),
            nn.GELU(),
            nn.Linear(image_width, text_width),
            nn.LayerNorm(text_width),
        )

    def forward(self, features: ReferenceFeatures) -> Float[Tensor, "images tokens width"]:
        """Tokens of each image."""
        return self.proj(features.clip)


class FaceProjector(nn.Module):
    """Tokens of a face's identity."""

    variant: IPVariant = "faceid"
    clip: ClipPart = "nothing"

    def __init__(
        self, text_width: int, tokens: int = BASE_TOKENS, face_width: int = FACE_WIDTH
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.proj = nn.Sequential(
            nn.Linear(face_width, 2 * face_width),
            nn.GELU(),
            nn.Linear(2 * face_width, tokens * text_width),
        )
        self.norm = nn.LayerNorm(text_width)

    def forward(self, features: ReferenceFeatures) -> Float[Tensor, "images tokens width"]:
        """Tokens of each face."""
        return self.norm(self.proj(features.face).unflatten(-1, (self.tokens, -1)))


class FacePlusProjector(FaceProjector):
    """Tokens of a face's identity, completed by what CLIP sees of it."""

    variant: IPVariant = "faceid_plus"
    clip: ClipPart = "hidden"

    def __init__(
        self,
        settings: PerceiverSettings,
        tokens: int = BASE_TOKENS,
        face_width: int = FACE_WIDTH,
        structure: float | None = None,
    ) -> None:
        super().__init__(settings.width, tokens, face_width)
        self.perceiver_resampler = Perceiver(settings)
        self.structure = structure

    def forward(self, features: ReferenceFeatures) -> Float[Tensor, "images tokens width"]:
        """Tokens of each face."""
        identity = super().forward(features)
        answer = self.perceiver_resampler(identity, features.clip)
        return answer if self.structure is None else identity + self.structure * answer


class ImageKeys(nn.Module):
    """Keys and values of images in one layer."""

    def __init__(self, text_width: int, inner: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(text_width, inner, bias=False)
        self.to_v_ip = nn.Linear(text_width, inner, bias=False)


class IPAdapter(nn.Module):
    """A projector, and keys and values for every layer that looks at text."""

    def __init__(self, projector: nn.Module, widths: Mapping[str, tuple[int, int]]) -> None:
        """Untrained keys and values.

        Args:
            projector: one of this module's.
            widths: of text and of keys, by the layer's number.
        """
        super().__init__()
        self.image_proj = projector
        self.ip_adapter = nn.ModuleDict({k: ImageKeys(*pair) for k, pair in widths.items()})

    def tokens(self, features: ReferenceFeatures) -> Float[Tensor, "images tokens width"]:
        """Tokens of images beside the text."""
        return self.image_proj(features)


def layer_numbers(unet: nn.Module) -> dict[str, str]:
    """The number of each layer that looks at text in checkpoints, by the layer's name.

    Layers of attention are counted in the UNet's own order (down, up, mid); those that look at text
    are the odd ones.
    """
    crossing = [layer.name for layer in AttentionHub(unet).layers if layer.is_cross]
    return {name: str(2 * index + 1) for index, name in enumerate(crossing)}


def layer_widths(unet: nn.Module) -> dict[str, tuple[int, int]]:
    """Widths of text and of keys of each layer that looks at text, by its number."""
    widths = {}
    for name, number in layer_numbers(unet).items():
        inner, text = _key_weight(unet, name).shape
        widths[number] = (text, inner)
    return widths


def new_ip_adapter(
    unet: nn.Module,
    variant: IPVariant,
    *,
    image_width: int,
    generator: torch.Generator,
    tokens: int | None = None,
    face_width: int = FACE_WIDTH,
    width: int | None = None,
) -> IPAdapter:
    """An untrained adapter, on the CPU, whose keys and values are the text's (section 3.2.2).

    Args:
        unet: the denoiser.
        variant: what the adapter reads.
        image_width: channels of CLIP's embedding (base) or of its tokens; faceid reads none.
        generator: draws the projector.
        tokens: of each image; None for the variant's own number.
        face_width: numbers of an identity.
        width: channels inside of plus's resampler; None for as many as the public ones have.
    """
    text_width = unet.config.cross_attention_dim
    is_large = unet.config.addition_embed_type == "text_time"
    # The public resamplers: 12 heads in 768 channels for Stable Diffusion 1.x, 20 in 1280 for SDXL.
    width = width or (1280 if is_large and variant == "plus" else text_width)
    settings = PerceiverSettings(
        image_width=image_width,
        width=width,
        text_width=text_width,
        heads=max(1, width // HEAD_WIDTH),
        tokens=tokens or PerceiverSettings.tokens,
    )
    builders = {
        "base": lambda: EmbedProjector(image_width, text_width, tokens or BASE_TOKENS),
        "plus": lambda: PlusProjector(settings),
        "full": lambda: FullProjector(image_width, text_width),
        "faceid": lambda: FaceProjector(text_width, tokens or BASE_TOKENS, face_width),
        "faceid_plus": lambda: FacePlusProjector(settings, tokens or BASE_TOKENS, face_width),
    }
    with torch.device("meta"):  # or its layers would draw from PyTorch's own generator
        adapter = IPAdapter(builders[variant](), layer_widths(unet))
    adapter.to_empty(device="cpu")
    draw_weights(adapter.image_proj, generator)
    start_from_text(adapter.ip_adapter, unet)
    return adapter


@torch.no_grad()
def start_from_text(keys: nn.ModuleDict, unet: nn.Module) -> None:
    """Make an adapter's keys and values, by the layer's number, those of the text."""
    for name, number in layer_numbers(unet).items():
        own = keys[number]
        own.to_k_ip.weight.copy_(_key_weight(unet, name))
        own.to_v_ip.weight.copy_(_key_weight(unet, name, part="to_v"))


@dataclass(frozen=True)
class ShownImages:
    """What each row of a denoiser call is shown."""

    tokens: Float[Tensor, "rows images tokens width"]
    scale: Float[Tensor, " rows"]
    """Factor of the attention to images."""
    masks: Float[Tensor, "images h w"] | None = None
    """Where each image acts; None for everywhere, in one attention for all."""

    def repeated(self, rows: int) -> ShownImages:
        """For a batch that is repeated as a whole."""
        return ShownImages(
            rows_of(self.tokens, rows, "shown images"),
            rows_of(self.scale, rows, "shown images"),
            self.masks,
        )


class DecoupledAttention(AttentionOperation):
    """Adds attention to images where a layer looks at text."""

    def __init__(
        self,
        adapter: IPAdapter,
        numbers: Mapping[str, str],
        shown: ShownImages,
        layer_scales: Mapping[str, float] | None = None,
    ) -> None:
        """Act with an adapter for one call.

        Args:
            adapter: keys and values.
            numbers: as of ``layer_numbers``.
            shown: what each row sees.
            layer_scales: factors by the layer's name; None for 1 everywhere.
        """
        self.adapter, self.numbers, self.shown = adapter, numbers, shown
        self.layer_scales = layer_scales

    def applies_to(self, call: AttentionCall) -> bool:
        """In attention to the text, where the factor is not 0."""
        return call.layer.is_cross and self._factor(call) != 0.0

    def needs_heads(self, call: AttentionCall) -> bool:
        """Always, where it applies."""
        return True

    def added(
        self, call: AttentionCall, attn: nn.Module, query: Float[Tensor, "rows heads n d"]
    ) -> Float[Tensor, "rows n inner"]:
        """Attention of the layer's queries to the images."""
        shown, keys = self.shown.repeated(len(query)), self._keys(call)

        def look(tokens: Float[Tensor, "rows m width"]) -> Float[Tensor, "rows n inner"]:
            key, value = (split_heads(p(tokens), attn.heads) for p in (keys.to_k_ip, keys.to_v_ip))
            return attend(query, key, value)

        scale = (shown.scale.to(query) * self._factor(call))[:, None, None]
        if shown.masks is None:
            return scale * look(shown.tokens.flatten(1, 2))
        covered = F.adaptive_avg_pool2d(shown.masks.to(query), call.size).flatten(1)[..., None]
        each = (mask * look(shown.tokens[:, k]) for k, mask in enumerate(covered))
        return scale * torch.stack(list(each)).sum(dim=0)

    def _factor(self, call: AttentionCall) -> float:
        return 1.0 if self.layer_scales is None else self.layer_scales[call.layer.name]

    def _keys(self, call: AttentionCall) -> ImageKeys:
        return self.adapter.ip_adapter[self.numbers[call.layer.name]]


def _key_weight(unet: nn.Module, layer: str, part: str = "to_k") -> Float[Tensor, "inner text"]:
    """The layer's own weight, without adapters on it."""
    linear = getattr(unet.get_submodule(layer), part)
    return getattr(linear, "base_layer", linear).weight

"""The two networks of Uni-ControlNet (arXiv 2305.16322, sections 3.2 and 3.3).

The local adapter copies the denoiser's encoder. All maps enter it together, stacked on channels,
absent ones as zeros. A small extractor makes features of them for each level, which modulate the
normalisation in the first ResNet of the level (feature denormalisation, FDN):

    FDN(x, f) = GroupNorm(x) (1 + conv_gamma(f)) + conv_beta(f)

The global adapter turns an image embedding into a few tokens beside the text.

Deviation: strides of the extractor follow the VAE's factor, so that features have the latents'
size for VAEs of factor 2 and 4 too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from image_tools.control.uni_configs import GlobalAdapterSettings, LocalAdapterSettings
from image_tools.errors import UnsupportedModel

__all__ = ["FDN", "FDNResnet", "FeatureExtractor", "GlobalAdapter", "LocalAdapter"]

ENCODER_SETTINGS = (
    *("in_channels", "flip_sin_to_cos", "freq_shift", "down_block_types", "block_out_channels"),
    *("layers_per_block", "downsample_padding", "mid_block_scale_factor", "act_fn"),
    *("norm_num_groups", "norm_eps", "cross_attention_dim", "attention_head_dim"),
    *("num_attention_heads", "use_linear_projection", "upcast_attention"),
    *("transformer_layers_per_block", "resnet_time_scale_shift", "only_cross_attention"),
)
DROPOUTS = (0.1, 0.3)


class FDN(nn.Module):
    """Normalisation whose scale and shift are made of features, pixel by pixel."""

    def __init__(self, channels: int, features: int, *, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.conv_gamma = nn.Conv2d(features, channels, 3, padding=1)
        self.conv_beta = nn.Conv2d(features, channels, 3, padding=1)

    def forward(
        self, x: Float[Tensor, "b c h w"], features: Float[Tensor, "b f h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Normalise and modulate."""
        normalised = F.group_norm(x, self.groups)
        return normalised * (1.0 + self.conv_gamma(features)) + self.conv_beta(features)


class FDNResnet(nn.Module):
    """A stock ResNet block with FDN for its two normalisations."""

    def __init__(self, resnet: nn.Module, features: int, *, groups: int) -> None:
        """Take the layers of a stock block; the second convolution becomes zero."""
        super().__init__()
        self.norm_in = FDN(resnet.conv1.in_channels, features, groups=groups)
        self.conv1 = resnet.conv1
        self.time_emb_proj = resnet.time_emb_proj
        self.norm_out = FDN(resnet.conv1.out_channels, features, groups=groups)
        self.conv2 = resnet.conv2
        self.conv_shortcut = resnet.conv_shortcut
        _zero(self.conv2)

    def forward(self, x: Tensor, emb: Tensor, features: Tensor) -> Tensor:
        """As the stock block."""
        h = self.conv1(F.silu(self.norm_in(x, features)))
        h = h + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm_out(h, features)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class FeatureExtractor(nn.Module):
    """Maps to features of the sizes of the denoiser's levels, zero before training."""

    def __init__(self, settings: LocalAdapterSettings) -> None:
        super().__init__()
        channels, layers = 3 * len(settings.conditions), []
        # The first extractor halves once; these do the rest.
        halvings = settings.image_factor.bit_length() - 2
        for index, width in enumerate(settings.stem_widths):
            stride = 2 if index in (1, 3)[:halvings] else 1
            layers += [nn.Conv2d(channels, width, 3, padding=1, stride=stride), nn.SiLU()]
            channels = width
        self.pre_extractor = nn.Sequential(*layers)
        self.extractors, self.zero_convs = nn.ModuleList(), nn.ModuleList()
        for width in settings.level_widths:
            conv = nn.Conv2d(channels, width, 3, padding=1, stride=2)
            self.extractors.append(nn.Sequential(conv, nn.SiLU()))
            self.zero_convs.append(_zero(nn.Conv2d(width, width, 3, padding=1)))
            channels = width

    def forward(self, maps: Float[Tensor, "b k h w"]) -> list[Tensor]:
        """Features of each level, the finest first."""
        hidden, features = self.pre_extractor(maps), []
        for extractor, zero_conv in zip(self.extractors, self.zero_convs, strict=True):
            hidden = extractor(hidden)
            features.append(zero_conv(hidden))
        return features


class LocalAdapter(nn.Module):
    """A copy of a denoiser's encoder that sees all maps and gives residuals, as a ControlNet does.

    Its modules have the names of a stock ``ControlNetModel``.
    """

    def __init__(self, unet_config: Mapping[str, Any], settings: LocalAdapterSettings) -> None:
        """Build it for a denoiser.

        Raises:
            UnsupportedModel: more inputs than text and time, or another number of levels.
        """
        from diffusers import ControlNetModel

        super().__init__()
        _check_design(unet_config, settings)
        known = {k: unet_config[k] for k in ENCODER_SETTINGS if unet_config.get(k) is not None}
        stock = ControlNetModel(**known)
        self.unet_config, self.settings = dict(unet_config), settings
        self.time_proj, self.time_embedding = stock.time_proj, stock.time_embedding
        self.conv_in, self.down_blocks = stock.conv_in, stock.down_blocks
        self.mid_block = stock.mid_block
        self.controlnet_down_blocks = stock.controlnet_down_blocks
        self.controlnet_mid_block = stock.controlnet_mid_block
        self.feature_extractor = FeatureExtractor(settings)
        groups = unet_config["norm_num_groups"]
        for block, width in zip(self.down_blocks, settings.level_widths, strict=True):
            block.resnets[0] = FDNResnet(block.resnets[0], width, groups=groups)

    @classmethod
    def from_unet(cls, unet: nn.Module, settings: LocalAdapterSettings) -> LocalAdapter:
        """An untrained adapter that copies a denoiser's weights where both have the same layer."""
        adapter = cls(unet.config, settings)
        own, theirs = adapter.state_dict(), unet.state_dict()
        shared = {name: tensor.clone() for name, tensor in theirs.items() if name in own}
        adapter.load_state_dict(shared, strict=False)
        return adapter.to(unet.conv_in.weight)

    def forward(
        self,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        tokens: Float[Tensor, "b n d"],
        maps: Float[Tensor, "b k h w"],
    ) -> tuple[list[Tensor], Tensor]:
        """Residuals of the encoder's outputs and of the middle block."""
        emb = self.time_embedding(self.time_proj(t).to(latents))
        features = self.feature_extractor(maps)
        hidden = self.conv_in(latents)
        outputs = [hidden]
        for block, level in zip(self.down_blocks, features, strict=True):
            attentions = getattr(block, "attentions", None)
            for index, resnet in enumerate(block.resnets):
                hidden = resnet(hidden, emb, level) if index == 0 else resnet(hidden, emb)
                if attentions is not None:
                    attention = attentions[index]
                    hidden = attention(hidden, encoder_hidden_states=tokens, return_dict=False)[0]
                outputs.append(hidden)
            for downsampler in block.downsamplers or ():
                hidden = downsampler(hidden)
                outputs.append(hidden)
        hidden = self.mid_block(hidden, emb, encoder_hidden_states=tokens)
        down = [
            conv(output) for conv, output in zip(self.controlnet_down_blocks, outputs, strict=True)
        ]
        return down, self.controlnet_mid_block(hidden)


class GlobalAdapter(nn.Module):
    """An image embedding as tokens beside the text."""

    def __init__(self, settings: GlobalAdapterSettings) -> None:
        from diffusers.models.attention import FeedForward

        super().__init__()
        self.settings = settings
        width, middle, wide = settings.width, 2 * settings.width, settings.tokens * settings.width
        self.norm1 = nn.LayerNorm(width)
        inner = int(settings.expansion * width), int(settings.expansion * middle)
        options = {"activation_fn": "geglu"}
        self.ff1 = FeedForward(width, middle, inner_dim=inner[0], dropout=DROPOUTS[0], **options)
        self.norm2 = nn.LayerNorm(middle)
        self.ff2 = FeedForward(middle, wide, inner_dim=inner[1], dropout=DROPOUTS[1], **options)

    def forward(self, content: Float[Tensor, "b d"]) -> Float[Tensor, "b n d"]:
        """Tokens of embeddings, which are not normalised."""
        hidden = self.ff2(self.norm2(self.ff1(self.norm1(content))))
        return hidden.unflatten(-1, (self.settings.tokens, self.settings.width))


def _check_design(unet_config: Mapping[str, Any], settings: LocalAdapterSettings) -> None:
    for name in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
        if unet_config.get(name) is not None:
            raise UnsupportedModel(
                f"The denoiser has {name} '{unet_config[name]}'. Expected one that sees text and "
                "time alone (Stable Diffusion 1.x, 2.x, pocket) for Uni-ControlNet."
            )
    levels: Sequence[int] = unet_config["block_out_channels"]
    if len(levels) != len(settings.level_widths):
        raise UnsupportedModel(
            f"The denoiser has {len(levels)} levels, the adapter's level_widths are "
            f"{list(settings.level_widths)}. Expected one width for each level."
        )


def _zero(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module

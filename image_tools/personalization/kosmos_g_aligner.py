"""KOSMOS-G's aligner: from a language model's states to a prior's text states (arXiv 2310.02992).

    u = M(s): enc layers over s, then dec layers that let 77 queries look at it
    s' = N(u): dec layers that let T queries look at u, then enc layers; training only

All layers are pre-norm with Magneto's extra norms (arXiv 2210.06423): one inside self-attention
before its output projection, one before the last projection of the feed-forward network. Names and
shapes are those of the authors' code, so the public checkpoint's ``aligner.*`` load strictly.
Positions are learned and begin at row 2; rows 0 and 1 are never read.

    aligner = new_aligner(AlignerSettings(), generator=generator)
    text_states = aligner(states, is_token)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from image_tools.personalization.kosmos_g_configs import AlignerSettings
from renderers.errors import ShapeError, check_shape

__all__ = ["AlignerNet", "AlignerTrainer", "new_aligner"]

FIRST_POSITION = 2


class AlignerNet(nn.Module):
    """M, the half that is used: any number of states to a fixed number of text states."""

    def __init__(self, settings: AlignerSettings) -> None:
        """Build it with whatever weights torch draws; see ``new_aligner``."""
        super().__init__()
        self.settings = settings
        self.encoder_proj = _Encoder(settings)
        self.encoder_proj.embed_tokens = nn.Linear(settings.input_width, settings.width)
        self.encoder_query = nn.Parameter(torch.empty(settings.queries, settings.width))
        self.encoder = _Decoder(settings)

    def forward(
        self, states: Float[Tensor, "b t d"], is_token: Bool[Tensor, "b t"]
    ) -> Float[Tensor, "b q w"]:
        """Text states.

        Args:
            states: of the language model.
            is_token: False where a row is padded.

        Raises:
            ShapeError: states of another width, or more than there are positions for.
        """
        check_shape("states", states, f"b t {self.settings.input_width}")
        memory = self.encoder_proj(self.encoder_proj.embed_tokens(states), is_token)
        queries = self.encoder_query.expand(len(states), -1, -1)
        return self.encoder(queries, memory, is_query=None, is_token=is_token)


class AlignerTrainer(AlignerNet):
    """M with N beside it, which reads the states back and exists for training alone."""

    def __init__(self, settings: AlignerSettings) -> None:
        """Build both halves."""
        super().__init__(settings)
        self.decoder_query = nn.Parameter(torch.empty(settings.positions, settings.width))
        self.decoder = _Decoder(settings)
        self.decoder_proj = _Encoder(settings)
        self.decoder_proj.output_projection = nn.Linear(settings.width, settings.input_width)

    def read_back(
        self, text_states: Float[Tensor, "b q w"], is_token: Bool[Tensor, "b t"]
    ) -> Float[Tensor, "b t d"]:
        """The states that the text states were made of, as far as they tell.

        Args:
            text_states: of ``forward``.
            is_token: where each row had states.
        """
        queries = self.decoder_query[: is_token.shape[1]].expand(len(text_states), -1, -1)
        x = self.decoder(queries, text_states, is_query=is_token, is_token=None)
        return self.decoder_proj.output_projection(self.decoder_proj(x, is_token))


def new_aligner(settings: AlignerSettings, *, generator: torch.Generator) -> AlignerTrainer:
    """An untrained aligner with Magneto's initialisation (arXiv 2210.06423, figure 2)."""
    with torch.device("meta"):
        aligner = AlignerTrainer(settings)
    aligner.to_empty(device="cpu")
    gains = _gains(settings.layers)
    with torch.no_grad():
        for name, parameter in aligner.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1.0)
            elif name.endswith("_query") or "embed_positions" in name:
                parameter.normal_(generator=generator)
            else:
                nn.init.xavier_uniform_(parameter, _gain(name, gains), generator=generator)
    return aligner


class _Encoder(nn.Module):
    """Layers over a sequence with learned positions."""

    def __init__(self, settings: AlignerSettings) -> None:
        super().__init__()
        self.embed_positions = nn.Embedding(settings.positions, settings.width)
        self.layers = nn.ModuleList(_EncoderLayer(settings) for _ in range(settings.layers))
        self.layer_norm = nn.LayerNorm(settings.width)

    def forward(self, x: Float[Tensor, "b t w"], is_token: Bool[Tensor, "b t"]) -> Tensor:
        longest = self.embed_positions.num_embeddings - FIRST_POSITION
        if x.shape[1] > longest:
            raise ShapeError(
                f"A sequence has {x.shape[1]} states - expected at most {longest}, the aligner's "
                "positions. Shorten the prompt."
            )
        x = x + self.embed_positions.weight[FIRST_POSITION : FIRST_POSITION + x.shape[1]]
        x = x * is_token[..., None]
        for layer in self.layers:
            x = layer(x, is_token)
        return self.layer_norm(x)


class _Decoder(nn.Module):
    """Layers of queries that look at each other and at a memory."""

    def __init__(self, settings: AlignerSettings) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_DecoderLayer(settings) for _ in range(settings.layers))
        self.layer_norm = nn.LayerNorm(settings.width)

    def forward(
        self, x: Tensor, memory: Tensor, *, is_query: Tensor | None, is_token: Tensor | None
    ) -> Tensor:
        for layer in self.layers:
            x = layer(x, memory, is_query, is_token)
        return self.layer_norm(x)


class _EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network."""

    def __init__(self, settings: AlignerSettings) -> None:
        super().__init__()
        self.self_attn = _SelfAttention(settings)
        self.self_attn_layer_norm = nn.LayerNorm(settings.width)
        self.ffn = _FeedForward(settings)
        self.final_layer_norm = nn.LayerNorm(settings.width)

    def forward(self, x: Tensor, is_token: Tensor) -> Tensor:
        inner = self.self_attn_layer_norm(x)
        x = x + self.self_attn(inner, inner, is_token)
        return x + self.ffn(self.final_layer_norm(x))


class _DecoderLayer(nn.Module):
    """The same with a look at the memory between the two; not causal."""

    def __init__(self, settings: AlignerSettings) -> None:
        super().__init__()
        self.self_attn = _SelfAttention(settings)
        self.self_attn_layer_norm = nn.LayerNorm(settings.width)
        self.encoder_attn = _Attention(settings)
        self.encoder_attn_layer_norm = nn.LayerNorm(settings.width)
        self.ffn = _FeedForward(settings)
        self.final_layer_norm = nn.LayerNorm(settings.width)

    def forward(
        self, x: Tensor, memory: Tensor, is_query: Tensor | None, is_token: Tensor | None
    ) -> Tensor:
        inner = self.self_attn_layer_norm(x)
        x = x + self.self_attn(inner, inner, is_query)
        x = x + self.encoder_attn(self.encoder_attn_layer_norm(x), memory, is_token)
        return x + self.ffn(self.final_layer_norm(x))


class _Attention(nn.Module):
    """Multi-head attention; keys that are padding are not seen."""

    def __init__(self, settings: AlignerSettings) -> None:
        super().__init__()
        self.heads, width = settings.heads, settings.width
        self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, is_token: Tensor | None) -> Tensor:
        return self.out_proj(self.attended(x, memory, is_token))

    def attended(self, x: Tensor, memory: Tensor, is_token: Tensor | None) -> Tensor:
        """Values by attention, before the output projection."""
        projected = (self.q_proj(x), self.k_proj(memory), self.v_proj(memory))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projected)
        mask = None if is_token is None else is_token[:, None, None, :]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class _SelfAttention(_Attention):
    """Attention with Magneto's norm before the output projection."""

    def __init__(self, settings: AlignerSettings) -> None:
        super().__init__(settings)
        self.inner_attn_ln = nn.LayerNorm(settings.width)

    def forward(self, x: Tensor, memory: Tensor, is_token: Tensor | None) -> Tensor:
        return self.out_proj(self.inner_attn_ln(self.attended(x, memory, is_token)))


class _FeedForward(nn.Module):
    """Two layers with Magneto's norm before the second."""

    def __init__(self, settings: AlignerSettings) -> None:
        super().__init__()
        self.fc1 = nn.Linear(settings.width, settings.ffn_width)
        self.fc2 = nn.Linear(settings.ffn_width, settings.width)
        self.ffn_layernorm = nn.LayerNorm(settings.ffn_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.ffn_layernorm(F.gelu(self.fc1(x))))


def _gains(layers: int) -> dict[str, float]:
    """Magneto's gains of the parts: encoders beside decoders, decoders, an encoder alone."""
    decoder = math.sqrt(math.log(3 * layers))
    beside = math.sqrt(math.log(3 * layers) * math.log(2 * layers) / 3.0)
    alone = math.sqrt(math.log(2 * layers))
    return {
        "encoder_proj": beside,
        "encoder": decoder,
        "decoder": decoder,
        "decoder_proj": alone,
    }


def _gain(name: str, gains: dict[str, float]) -> float:
    """The gain of one matrix: values and whatever writes to the residual, but not to the memory."""
    is_scaled = any(part in name for part in (".fc1.", ".fc2.", ".out_proj.", ".v_proj."))
    if not is_scaled or ".encoder_attn." in name:
        return 1.0
    return gains[name.partition(".")[0]]

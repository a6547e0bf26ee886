"""KOSMOS-G's aligner against a reference in loops, and the public names and shapes at full size."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from image_tools.personalization.kosmos_g_aligner import AlignerTrainer, new_aligner
from image_tools.personalization.kosmos_g_configs import AlignerSettings
from renderers.errors import ShapeError
from tests.image_tools.personalization.tiny_kosmos import TEXT_WIDTH, WIDTH, tiny_aligner

FIRST_POSITION = 2


@pytest.fixture(scope="module")
def aligner():
    """Tiny, with numbers in every norm and bias, so that none can be left out unseen."""
    net = tiny_aligner(queries=5)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net.eval().double()


@pytest.fixture(scope="module")
def states():
    return torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(6), dtype=torch.double)


class Reference:
    """The same networks written out: one row, one head and one token at a time."""

    def __init__(self, net: AlignerTrainer):
        self.w = {name: value.detach() for name, value in net.state_dict().items()}
        self.heads, self.layers = net.settings.heads, net.settings.layers

    def linear(self, x: Tensor, name: str) -> Tensor:
        return self.w[f"{name}.weight"] @ x + self.w[f"{name}.bias"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean()
        unit = centred / torch.sqrt((centred**2).mean() + 1e-5)
        return unit * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def attention(self, x: list, memory: list, name: str, *, inner_norm: bool) -> list:
        k = [self.linear(m, f"{name}.k_proj") for m in memory]
        v = [self.linear(m, f"{name}.v_proj") for m in memory]
        size = len(k[0]) // self.heads
        out = []
        for token in x:
            q, parts = self.linear(token, f"{name}.q_proj"), []
            for head in range(self.heads):
                own = slice(head * size, (head + 1) * size)
                logits = [float(q[own] @ key[own]) / math.sqrt(size) for key in k]
                weights = [math.exp(z - max(logits)) for z in logits]
                total = sum(weights)
                parts.append(sum(w / total * value[own] for w, value in zip(weights, v)))
            joined = torch.cat(parts)
            if inner_norm:
                joined = self.norm(joined, f"{name}.inner_attn_ln")
            out.append(self.linear(joined, f"{name}.out_proj"))
        return out

    def feed_forward(self, x: Tensor, name: str) -> Tensor:
        h = self.linear(x, f"{name}.fc1")
        h = 0.5 * h * (1.0 + torch.erf(h / math.sqrt(2.0)))
        return self.linear(self.norm(h, f"{name}.ffn_layernorm"), f"{name}.fc2")

    def layer(self, x: list, memory: list | None, name: str) -> list:
        inner = [self.norm(token, f"{name}.self_attn_layer_norm") for token in x]
        said = self.attention(inner, inner, f"{name}.self_attn", inner_norm=True)
        x = [token + s for token, s in zip(x, said)]
        if memory is not None:
            inner = [self.norm(token, f"{name}.encoder_attn_layer_norm") for token in x]
            said = self.attention(inner, memory, f"{name}.encoder_attn", inner_norm=False)
            x = [token + s for token, s in zip(x, said)]
        fed = [
            self.feed_forward(self.norm(t, f"{name}.final_layer_norm"), f"{name}.ffn") for t in x
        ]
        return [token + f for token, f in zip(x, fed)]

    def stack(self, x: list, memory: list | None, name: str) -> list:
        for index in range(self.layers):
            x = self.layer(x, memory, f"{name}.layers.{index}")
        return [self.norm(token, f"{name}.layer_norm") for token in x]

    def placed(self, x: list, name: str) -> list:
        places = self.w[f"{name}.embed_positions.weight"]
        return [token + places[FIRST_POSITION + k] for k, token in enumerate(x)]

    def text_states(self, states: Tensor) -> Tensor:
        x = [self.linear(s, "encoder_proj.embed_tokens") for s in states]
        memory = self.stack(self.placed(x, "encoder_proj"), None, "encoder_proj")
        return torch.stack(self.stack(list(self.w["encoder_query"]), memory, "encoder"))

    def read_back(self, text_states: Tensor, length: int) -> Tensor:
        queries = list(self.w["decoder_query"][:length])
        x = self.stack(queries, list(text_states), "decoder")
        x = self.stack(self.placed(x, "decoder_proj"), None, "decoder_proj")
        return torch.stack([self.linear(t, "decoder_proj.output_projection") for t in x])


@torch.no_grad()
def test_both_halves_equal_the_reference(aligner, states):
    reference, is_token = Reference(aligner), torch.ones(1, 7, dtype=torch.bool)
    text_states = aligner(states[:1], is_token)
    assert text_states.shape == (1, 5, TEXT_WIDTH)
    torch.testing.assert_close(text_states[0], reference.text_states(states[0]))
    back = aligner.read_back(text_states, is_token)
    torch.testing.assert_close(back[0], reference.read_back(text_states[0], 7))


@torch.no_grad()
def test_padding_is_not_seen(aligner, states):
    is_token = torch.ones(2, 7, dtype=torch.bool)
    is_token[1, 4:] = False
    together = aligner(states, is_token)
    alone = aligner(states[1:, :4], is_token[1:, :4])
    torch.testing.assert_close(together[1:], alone)
    other = states.clone()
    other[1, 4:] = 9.0
    assert torch.equal(aligner(other, is_token), together)
    back = aligner.read_back(together, is_token)
    torch.testing.assert_close(back[1:, :4], aligner.read_back(alone, is_token[1:, :4]))


def test_every_parameter_has_a_gradient_but_those_of_unused_positions(aligner, states):
    is_token = torch.ones(2, 7, dtype=torch.bool)
    text_states = aligner(states, is_token)
    back = aligner.read_back(text_states, is_token)
    (text_states.square().mean() + back.square().mean()).backward()
    for name, parameter in aligner.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith("k_proj.bias"):  # a constant of all logits of a query
            assert parameter.grad.abs().sum() > 0.0, name
    used = aligner.encoder_proj.embed_positions.weight.grad.abs().sum(dim=1) > 0.0
    assert used.nonzero().flatten().tolist() == list(range(FIRST_POSITION, FIRST_POSITION + 7))
    aligner.zero_grad()


def test_the_public_checkpoint_has_these_names_and_shapes():
    """Read from the authors' code: 12 + 12 layers in M, the same again in N."""
    with torch.device("meta"):
        net = AlignerTrainer(AlignerSettings())
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    square, wide, narrow, line = (768, 768), (3072, 768), (768, 3072), (768,)
    attention = {
        f"{part}_proj.{kind}": shape
        for part in ("k", "v", "q", "out")
        for kind, shape in (("weight", square), ("bias", line))
    }
    norms = {f"{kind}": line for kind in ("weight", "bias")}
    feed = {
        "ffn.fc1.weight": wide,
        "ffn.fc1.bias": (3072,),
        "ffn.fc2.weight": narrow,
        "ffn.fc2.bias": line,
        "ffn.ffn_layernorm.weight": (3072,),
        "ffn.ffn_layernorm.bias": (3072,),
    }

    def below(prefix, table):
        return {f"{prefix}.{name}": shape for name, shape in table.items()}

    encoder_layer = {
        **below("self_attn", attention),
        **below("self_attn.inner_attn_ln", norms),
        **below("self_attn_layer_norm", norms),
        **feed,
        **below("final_layer_norm", norms),
    }
    looks = {**below("encoder_attn", attention), **below("encoder_attn_layer_norm", norms)}
    expected = {
        "encoder_query": (77, 768),
        "decoder_query": (32768, 768),
        "encoder_proj.embed_tokens.weight": (768, 2048),
        "encoder_proj.embed_tokens.bias": line,
        "encoder_proj.embed_positions.weight": (32768, 768),
        "decoder_proj.embed_positions.weight": (32768, 768),
        "decoder_proj.output_projection.weight": (2048, 768),
        "decoder_proj.output_projection.bias": (2048,),
    }
    for name in ("encoder_proj", "decoder_proj", "encoder", "decoder"):
        layer = encoder_layer if name.endswith("_proj") else {**encoder_layer, **looks}
        expected |= below(f"{name}.layer_norm", norms)
        for index in range(12):
            expected |= below(f"{name}.layers.{index}", layer)
    assert shapes == expected


def test_a_new_aligner_is_the_same_for_the_same_seed():
    first, second = tiny_aligner(), tiny_aligner()
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values()):
        assert torch.equal(a, b), name
        assert torch.isfinite(a).all()
    other = new_aligner(first.settings, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(other.encoder_query, first.encoder_query)


def test_states_that_do_not_fit_are_refused(aligner):
    with pytest.raises(ShapeError, match=r"states has shape \(1, 3, 8\), expected \[b, t, 64\]"):
        aligner(torch.zeros(1, 3, 8), torch.ones(1, 3, dtype=torch.bool))
    long = torch.zeros(1, 79, WIDTH, dtype=torch.double)
    with pytest.raises(ShapeError, match="has 79 states - expected at most 78"):
        aligner(long, torch.ones(1, 79, dtype=torch.bool))


def test_settings_that_cannot_be_built_are_refused():
    with pytest.raises(ValueError, match="width is 100 with 12 heads - expected a multiple"):
        AlignerSettings(width=100)
    with pytest.raises(ValueError, match="queries is 0 - expected at least 1"):
        AlignerSettings(queries=0)

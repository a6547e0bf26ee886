"""The attention hub: what it changes, in which order, and that it leaves nothing behind."""

from __future__ import annotations

import copy

import pytest
import torch

from image_tools.diffusion.attention import (
    AttentionCall,
    AttentionHub,
    AttentionLayer,
    AttentionOperation,
    BatchLayout,
    attention_operations,
    batch_roles,
)
from image_tools.errors import UnsupportedModel
from renderers.errors import ShapeError
from tests.image_tools.tiny_unets import call_unet, tiny_unet


class Scale(AttentionOperation):
    """Multiplies the output of all layers."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def output(self, call, output):
        return output * self.factor


class Shift(Scale):
    """Adds to the output of all layers."""

    def output(self, call, output):
        return output + self.factor


class Watch(AttentionOperation):
    """Sees probabilities without changing them, in the layers of one kind and one step."""

    def __init__(self, *, is_cross: bool, step: int | None = None) -> None:
        self.is_cross, self.step, self.seen = is_cross, step, {}

    def applies_to(self, call: AttentionCall) -> bool:
        return call.layer.is_cross == self.is_cross and call.batch.step == self.step

    def needs_probabilities(self, call: AttentionCall) -> bool:
        return True

    def probabilities(self, call, probabilities):
        self.seen[call.layer.name] = probabilities
        return probabilities


def test_layers_are_described_in_the_order_of_the_unet():
    hub = AttentionHub(tiny_unet())
    assert [layer.index for layer in hub.layers] == list(range(len(hub.layers)))
    assert {layer.place for layer in hub.layers} == {"down", "mid", "up"}
    for layer in hub.layers:
        assert layer.is_cross == layer.name.endswith("attn2")
        assert layer.heads == 2
    assert len(hub.layers) == len(tiny_unet().attn_processors)


def test_without_operations_the_prediction_is_the_same_bit_for_bit():
    unet = tiny_unet()
    plain = call_unet(unet)
    with AttentionHub(unet), torch.no_grad():
        assert torch.equal(call_unet(unet), plain)


def test_restore_puts_back_the_same_processor_objects():
    unet = tiny_unet()
    before, plain = dict(unet.attn_processors), call_unet(unet)
    hub = AttentionHub(unet, [Scale(0.0)])
    hub.install()
    assert not torch.equal(call_unet(unet), plain)
    hub.restore()
    after = unet.attn_processors
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert torch.equal(call_unet(unet), plain)
    hub.restore()  # a second time changes nothing
    assert all(unet.attn_processors[name] is before[name] for name in before)


def test_restore_also_after_an_error():
    unet = tiny_unet()
    before = dict(unet.attn_processors)
    with pytest.raises(RuntimeError, match="stop"), AttentionHub(unet, [Scale(2.0)]):
        raise RuntimeError("stop")
    assert all(unet.attn_processors[name] is before[name] for name in before)


def test_processors_with_weights_come_back_into_the_state():
    class Weighted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def __call__(self, attn, hidden_states, *rest):
            return self.weight * hidden_states

    unet = tiny_unet()
    unet.set_attn_processor({name: Weighted() for name in unet.attn_processors})
    keys = list(unet.state_dict())
    with AttentionHub(unet, [Shift(1.0)]):
        call_unet(unet)
    assert sorted(unet.state_dict()) == sorted(keys)


def test_a_second_hub_is_refused():
    unet = tiny_unet()
    with AttentionHub(unet), pytest.raises(UnsupportedModel, match="has a hub already"):
        AttentionHub(unet).install()


def test_outputs_unwind_in_reverse_order():
    unet = tiny_unet()
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    hidden = torch.randn(2, 6, attention.query_dim, generator=torch.Generator().manual_seed(1))
    plain = attention(hidden)
    with AttentionHub(unet, [Scale(3.0), Shift(1.0)]):
        torch.testing.assert_close(attention(hidden), 3.0 * (plain + 1.0))


@pytest.mark.parametrize("is_cross", [True, False])
def test_visible_probabilities_are_those_of_fused_attention(is_cross):
    unet = tiny_unet()
    plain = call_unet(unet)
    watch = Watch(is_cross=is_cross)
    with AttentionHub(unet, [watch]) as hub:
        torch.testing.assert_close(call_unet(unet), plain, atol=1e-5, rtol=1e-5)
    assert set(watch.seen) == {layer.name for layer in hub.layers if layer.is_cross == is_cross}
    for probabilities in watch.seen.values():
        assert probabilities.shape[:2] == (4, 2)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:3]))


def test_operations_are_keyed_by_the_step_that_is_told():
    unet, watch = tiny_unet(), Watch(is_cross=True, step=3)
    with AttentionHub(unet, [watch]) as hub:
        call_unet(unet)
        assert watch.seen == {}
        with hub.batch(BatchLayout(roles=("uncond", "cond"), step=3)):
            call_unet(unet)
            assert watch.seen
        assert hub.layout == BatchLayout()


def test_probabilities_of_unknown_processors_are_refused():
    unet = tiny_unet()
    unet.set_attn_processor({n: Plain() for n in unet.attn_processors})
    with AttentionHub(unet, [Open()]), pytest.raises(UnsupportedModel, match="computed by Plain"):
        call_unet(unet)
    with (
        AttentionHub(unet, [Watch(is_cross=True)]),
        pytest.raises(UnsupportedModel, match="computed by Plain"),
    ):
        call_unet(unet)


class Plain:
    """A processor that no one knows."""

    def __call__(self, attn, hidden_states, *rest):
        return hidden_states


class Open(AttentionOperation):
    """Looks at the heads of cross-attention and leaves them as they are."""

    def applies_to(self, call: AttentionCall) -> bool:
        return call.layer.is_cross

    def needs_heads(self, call: AttentionCall) -> bool:
        return True


class MoreKeys(Open):
    """Keys and values behind the text's, with a bias of their own."""

    def __init__(self, bias: float, extra: int = 2) -> None:
        self.bias, self.extra = bias, extra

    def heads(self, call, query, key, value):
        more = torch.ones_like(key[:, :, :1]).expand(-1, -1, self.extra, -1)
        bias = key.new_zeros(1, 1, 1, key.shape[2] + self.extra)
        bias[..., key.shape[2] :] = self.bias
        return query, torch.cat([key, more], dim=2), torch.cat([value, more], dim=2), bias


class AddValues(Open):
    """Adds the queries, heads side by side, to the attended values."""

    def added(self, call, attn, query):
        assert query.shape[1] == attn.heads
        return 0.5 * query.transpose(1, 2).flatten(2)


def test_opened_heads_that_nothing_changes_give_the_same_bit_for_bit():
    unet = tiny_unet()
    plain = call_unet(unet)
    with AttentionHub(unet, [Open()]):
        assert torch.equal(call_unet(unet), plain)


@pytest.mark.parametrize("watched", [False, True])
def test_keys_that_a_bias_forbids_change_nothing(watched):
    unet = tiny_unet()
    plain = call_unet(unet)
    watch = [Watch(is_cross=True)] if watched else []
    with AttentionHub(unet, [MoreKeys(-1e9), MoreKeys(-1e9, extra=3), *watch]):
        torch.testing.assert_close(call_unet(unet), plain, atol=1e-5, rtol=1e-5)
    with AttentionHub(unet, [MoreKeys(0.0), *watch]):
        assert not torch.allclose(call_unet(unet), plain, atol=1e-4)
    assert all(p.shape[-1] == 7 for w in watch for p in w.seen.values())


def test_biases_of_two_operations_add_up_as_probabilities_show():
    unet, watch = tiny_unet(), Watch(is_cross=True)
    with AttentionHub(unet, [MoreKeys(0.7), MoreKeys(-0.4), watch]):
        seen_output = call_unet(unet)
        for probabilities in watch.seen.values():  # equal keys differ by their biases alone
            ratio = probabilities[..., 5:7] / probabilities[..., 7:9]
            torch.testing.assert_close(
                ratio, torch.full_like(ratio, 1.1).exp(), atol=1e-3, rtol=1e-3
            )
    with AttentionHub(unet, [MoreKeys(0.7), MoreKeys(-0.4)]):
        torch.testing.assert_close(call_unet(unet), seen_output, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("watched", [False, True])
def test_added_values_go_through_the_last_projection(watched):
    unet = tiny_unet()
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 6, attention.query_dim, generator=generator)
    text = torch.randn(2, 5, attention.cross_attention_dim, generator=generator)
    plain = attention(hidden, text)
    more = 0.5 * attention.to_q(hidden) @ attention.to_out[0].weight.T
    watch = [Watch(is_cross=True)] if watched else []
    with AttentionHub(unet, [AddValues(), *watch]):
        torch.testing.assert_close(attention(hidden, text), plain + more)
    with AttentionHub(unet, [*watch, AddValues(), AddValues()]):
        torch.testing.assert_close(attention(hidden, text), plain + 2 * more)


@pytest.mark.parametrize(
    "norm", [{"qk_norm": "layer_norm"}, {"cross_attention_norm": "layer_norm"}]
)
def test_norms_of_a_layer_act_as_in_stock_attention(norm):
    from diffusers.models.attention_processor import Attention

    unet = tiny_unet()
    block = unet.mid_block.attentions[0].transformer_blocks[0]
    generator = torch.Generator().manual_seed(2)
    block.attn2 = Attention(32, cross_attention_dim=16, heads=2, dim_head=16, **norm)
    for parameter in block.attn2.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    hidden = torch.randn(2, 6, 32, generator=generator)
    text = torch.randn(2, 5, 16, generator=generator)
    mask = torch.zeros(2, 1, 5)
    mask[1, :, 3:] = -1e4
    plain = block.attn2(hidden, text, attention_mask=mask)
    with AttentionHub(unet, [Open()]):
        assert torch.equal(block.attn2(hidden, text, attention_mask=mask), plain)
    with AttentionHub(unet, [Watch(is_cross=True)]):
        torch.testing.assert_close(block.attn2(hidden, text, attention_mask=mask), plain)


def test_gradients_flow_and_given_tensors_are_not_written_to():
    unet = tiny_unet()
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    hidden = torch.randn(2, 6, attention.query_dim, requires_grad=True)
    kept = copy.deepcopy(hidden.detach())
    with AttentionHub(unet, [Watch(is_cross=False)]):
        attention(hidden).square().sum().backward()
    assert torch.equal(hidden.detach(), kept)
    assert hidden.grad.abs().sum() > 0


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (12, 4)])
def test_layers_know_the_size_of_their_image(size):
    unet, seen = tiny_unet(), {}

    class Sizes(AttentionOperation):
        def inputs(self, call, hidden, context):
            seen[call.layer.level] = (call.size, hidden.shape[1])
            return hidden, context

    with AttentionHub(unet, [Sizes()]), torch.no_grad():
        unet(
            torch.randn(1, 4, *size), torch.tensor([5]), encoder_hidden_states=torch.ones(1, 3, 16)
        )
    halved = (-(-size[0] // 2), -(-size[1] // 2))
    assert seen == {0: (size, size[0] * size[1]), 1: (halved, halved[0] * halved[1])}
    assert not unet._forward_pre_hooks


def test_operations_for_one_call_join_the_hub_that_is_there():
    unet = tiny_unet()
    plain = call_unet(unet)
    with AttentionHub(unet, [Scale(1.0)]) as hub:
        with attention_operations(unet, [Scale(0.0)], step=3) as joined:
            assert joined is hub
            assert hub.layout.step == 3
            assert not torch.equal(call_unet(unet), plain)
        assert len(hub.operations) == 1
        assert hub.layout == BatchLayout()
    with attention_operations(unet, [Scale(0.0)]):
        assert not torch.equal(call_unet(unet), plain)
    assert torch.equal(call_unet(unet), plain)


def test_two_tools_must_agree_about_the_step():
    unet = tiny_unet()
    with attention_operations(unet, [], step=3):
        with attention_operations(unet, []) as hub:
            assert hub.layout.step == 3
        with (
            pytest.raises(UnsupportedModel, match="at steps 3 and 4"),
            attention_operations(unet, [], step=4),
        ):
            pass
        assert hub.layout.step == 3


def test_roles_reach_the_rows():
    unet = tiny_unet()
    with batch_roles(unet, ("uncond",)):  # nobody asks
        assert not unet._forward_pre_hooks
    with AttentionHub(unet) as hub:
        with batch_roles(unet, ("uncond", "cond")):
            assert hub.layout.roles == ("uncond", "cond")
        assert hub.layout.roles == ()


def test_rows_of_a_role():
    layer = AttentionLayer("mid_block.attn1", 0, "mid", False, 2)
    roles = ("uncond", "uncond", "cond", "cond")
    call = AttentionCall(layer, BatchLayout(roles=roles))
    assert call.rows_of("cond", 4) == [2, 3]
    assert call.rows_of("cond", 12) == [2, 3]  # an operation put its rows behind
    assert call.rows_of("other", 4) == []
    assert AttentionCall(layer, BatchLayout(roles=roles, views=2)).rows_of("cond", 2) == [1]
    with pytest.raises(ShapeError, match="has 3 rows and the batch 4 roles"):
        call.rows_of("cond", 3)
    with pytest.raises(UnsupportedModel, match="called alone"):
        _ = call.size

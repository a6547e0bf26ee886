"""Attention to subjects in boxes: against loops, against diffusers' masks, and what is inert."""

from __future__ import annotations

import math

import pytest
import torch

from image_tools.diffusion.attention import AttentionHub
from image_tools.diffusion.attention_calls import AttentionCall, AttentionLayer, BatchLayout
from image_tools.personalization.ip_adapter import ImageKeys
from image_tools.personalization.ms_diffusion_attention import (
    PhraseMaps,
    SubjectAttention,
    SubjectRows,
    box_cells,
    map_cells,
    subject_attention,
)
from image_tools.personalization.ms_diffusion_configs import AutoLayoutConfig
from tests.image_tools.tiny_unets import TEXT_WIDTH, tiny_unet

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
SIZE, DUMMIES, TOKENS = (8, 8), 3, 4
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.25, 1.0, 1.0)


def seeded(seed: int = 0) -> torch.Generator:
    """A generator."""
    return torch.Generator().manual_seed(seed)


def subjects(*boxes, rows: int = 1, scale: float = 0.6, seed: int = 1) -> SubjectRows:
    """Random tokens in the same boxes in all rows."""
    count = len(boxes)
    return SubjectRows(
        torch.randn(rows, count, TOKENS, TEXT_WIDTH, generator=seeded(seed)),
        torch.tensor(boxes).expand(rows, -1, -1),
        torch.full((rows, count), scale),
        torch.zeros(rows, count, 5),
    )


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


@pytest.fixture(scope="module")
def keys(unet):
    """Random keys for the images of one layer."""
    index = next(layer.index for layer in AttentionHub(unet).layers if layer.name == LAYER)
    own = ImageKeys(TEXT_WIDTH, 16)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=seeded(2)))
    return {index: own}


@torch.no_grad()
def layer_output(unet, operation=None, *, rows: int = 2, size=SIZE):
    """What the layer makes of fixed image tokens and text."""
    hidden = torch.randn(rows, math.prod(size), 16, generator=seeded(3))
    text = torch.randn(rows, 5, TEXT_WIDTH, generator=seeded(4))
    with AttentionHub(unet, [] if operation is None else [operation]) as hub:
        hub.latent_size = size
        return unet.get_submodule(LAYER)(hidden, encoder_hidden_states=text)


def operation(keys, rows: SubjectRows, *, dummies: float = 1.0) -> SubjectAttention:
    """Attention to subjects, with dummy tokens of some size."""
    extra = dummies * torch.randn(1, DUMMIES, TEXT_WIDTH, generator=seeded(5))
    return SubjectAttention(keys, extra, rows)


@pytest.mark.parametrize("size", [(8, 8), (5, 9), (1, 3)])
def test_cells_are_those_that_a_box_touches(size):
    boxes = torch.rand(20, 4, generator=seeded(6))
    cells = box_cells(boxes, size)
    for box, own in zip(boxes.tolist(), cells, strict=True):
        for row in range(size[0]):
            for column in range(size[1]):
                is_in = math.floor(box[0] * size[1]) <= column < math.ceil(box[2] * size[1])
                is_in &= math.floor(box[1] * size[0]) <= row < math.ceil(box[3] * size[0])
                assert bool(own[row, column]) == is_in


def test_bounds_on_the_grid_are_exact_and_empty_boxes_have_no_cells():
    shares = torch.arange(11) / 10
    for first in range(10):
        box = torch.tensor([shares[first], 0.0, shares[first + 1], 1.0])
        assert box_cells(box, (1, 10))[0].nonzero().tolist() == [[first]]
    assert not box_cells(torch.zeros(2, 4), (7, 5)).any()
    assert box_cells(torch.tensor([0.0, 0.0, 1.0, 1.0]), (7, 5)).all()


def test_it_is_one_softmax_over_all_subjects_by_loops():
    heads, n, width, count = 2, 6, 3, 2
    generator = seeded(7)
    query = torch.randn(1, heads, n, width, generator=generator, dtype=torch.float64)
    all_tokens = DUMMIES + count * TOKENS
    key, value = torch.randn(
        2, 1, heads, all_tokens, width, generator=generator, dtype=torch.float64
    )
    cells = torch.tensor([[[1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 0]]]).bool()
    scales = torch.tensor([[0.3, 2.0]], dtype=torch.float64)
    found = subject_attention(query, key, value, cells, scales, dummies=DUMMIES)
    expected = torch.zeros(n, heads * width, dtype=torch.float64)
    for i in range(n):
        inside = [r for r in range(count) if cells[0, r, i]]
        for h in range(heads):
            places = [(r, DUMMIES + r * TOKENS + k) for r in inside for k in range(TOKENS)]
            scores = [float(query[0, h, i] @ key[0, h, j]) / width**0.5 for _, j in places]
            total = sum(math.exp(score) for score in scores)
            for (r, j), score in zip(places, scores, strict=True):
                part = scales[0, r] * math.exp(score) / total * value[0, h, j]
                expected[i, h * width : (h + 1) * width] += part
    torch.testing.assert_close(found[0], expected)
    assert not found[0, 5].any(), "nobody is in the last cell"


def test_separate_boxes_on_the_grid_are_the_stock_masks(unet, keys):
    """A public implementation of masked images, each with a softmax of its own."""
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    rows = subjects(LEFT, RIGHT, rows=2)
    found = layer_output(unet, operation(keys, rows))
    stock = IPAdapterAttnProcessor2_0(16, TEXT_WIDTH, num_tokens=(TOKENS,), scale=[0.6])
    own = next(iter(keys.values()))
    stock.to_k_ip[0], stock.to_v_ip[0] = own.to_k_ip, own.to_v_ip
    masks = box_cells(rows.boxes[:1], SIZE).float()
    hidden = torch.randn(2, 64, 16, generator=seeded(3))
    text = torch.randn(2, 5, TEXT_WIDTH, generator=seeded(4))
    with torch.no_grad():
        layer = unet.get_submodule(LAYER)
        expected = stock(layer, hidden, (text, [rows.tokens]), ip_adapter_masks=[masks])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - layer_output(unet)).abs().max() > 0.05
    shared = subjects(LEFT, (0.25, 0.0, 1.0, 1.0), rows=2)
    with torch.no_grad():
        masks = box_cells(shared.boxes[:1], SIZE).float()
        apart = stock(layer, hidden, (text, [shared.tokens]), ip_adapter_masks=[masks])
    gap = (layer_output(unet, operation(keys, shared)) - apart).abs().unflatten(1, SIZE)
    assert gap[:, :, 2:4].max() > 0.01, "where boxes overlap, subjects share one softmax"
    assert gap[:, :, :2].max() < 1e-5


def test_without_boxes_it_is_text_alone_bit_for_bit(unet, keys):
    plain = layer_output(unet)
    rows = subjects(LEFT, RIGHT, rows=2)
    empty = operation(keys, rows.kept(torch.tensor([False, False])))
    assert torch.equal(layer_output(unet, empty), plain)
    outside = subjects((0.0, 0.0, 0.5, 0.5), rows=2)
    found = layer_output(unet, operation(keys, outside)).unflatten(1, SIZE)
    plain = plain.unflatten(1, SIZE)
    assert torch.equal(found[:, 4:], plain[:, 4:])
    assert torch.equal(found[:, :, 4:], plain[:, :, 4:])
    assert not torch.equal(found[:, :4, :4], plain[:, :4, :4])


def test_dummy_tokens_have_no_effect(unet, keys):
    rows = subjects(LEFT, (0.25, 0.5, 0.75, 1.0), rows=2)
    first, other = (operation(keys, rows, dummies=size) for size in (1.0, 30.0))
    assert torch.equal(layer_output(unet, first), layer_output(unet, other))


def test_rows_do_not_see_each_other_and_padding_changes_nothing(unet, keys):
    one, two = subjects(LEFT), subjects(RIGHT, (0.0, 0.0, 1.0, 0.5), seed=8)
    both = one.padded(2).below([two])
    found = layer_output(unet, operation(keys, both))
    for row, own in enumerate((one, two)):
        alone = layer_output(unet, operation(keys, own.repeated(2)))
        torch.testing.assert_close(found[row], alone[row], atol=1e-6, rtol=1e-6)


def test_grids_need_not_be_square(unet, keys):
    rows = subjects((0.0, 0.0, 1.0, 0.5), rows=2)
    found = layer_output(unet, operation(keys, rows), size=(4, 6)).unflatten(1, (4, 6))
    plain = layer_output(unet, size=(4, 6)).unflatten(1, (4, 6))
    changed = (found != plain).any(dim=(0, 3))
    assert changed[:2].all()
    assert not changed[2:].any()


def test_maps_are_stretched_over_the_image_before_the_threshold():
    maps = torch.tensor([[0.01, 0.02, 0.03, 0.05], [0.4, 0.4, 0.4, 0.4]])
    assert map_cells(maps, 0.4).tolist() == [[False, False, True, True], [False] * 4]


def test_words_tell_places_after_enough_steps():
    """By the definition: means over heads, words and all steps so far."""
    maps, words = PhraseMaps(AutoLayoutConfig(threshold=0.5, start_step=3)), torch.zeros(2, 2, 5)
    words[0, 0, [1, 2]], words[0, 1, 4] = 1.0, 1.0
    seen = torch.rand(4, 2, 2, 9, 6, generator=seeded(9))
    for step in range(2):
        maps.see(7, step, seen[step], words)
        assert maps.cells(7) is None
    for _ in range(2):  # asked again, the same step counts once
        maps.see(7, 2, seen[2], words)
        cells = maps.cells(7)
        mean = seen[:3, 0].mean(dim=(0, 1))
        for subject, places in enumerate(([1, 2], [4])):
            own = mean[:, places].mean(dim=1)
            stretched = (own - own.min()) / (own.max() - own.min() + 1e-5)
            assert torch.equal(cells[0, subject], stretched > 0.5)
        assert not cells[1].any(), "a row without words has its subjects nowhere"
    maps.see(7, 1, seen[3], words)
    assert maps.cells(7) is None, "another picture has begun"
    assert maps.cells(8) is None


def test_seen_words_move_a_subject(unet, keys):
    """From the step on at which enough is seen, where its box was counts no more."""
    rows = subjects(LEFT, rows=2)
    words = torch.zeros(2, 1, 5)
    words[1, 0, 2] = 1.0
    rows = SubjectRows(rows.tokens, rows.boxes, rows.scales, words)
    maps = PhraseMaps(AutoLayoutConfig(start_step=2))
    boxed = layer_output(unet, operation(keys, rows))
    outputs = []
    for step in range(2):
        acting = operation(keys, rows)
        acting.maps, acting.step = maps, step
        outputs.append(layer_output(unet, acting))
    torch.testing.assert_close(outputs[0], boxed, atol=1e-5, rtol=1e-5)
    (index,) = keys
    cells = maps.cells(index)
    changed = (outputs[1] - layer_output(unet)).abs().amax(dim=-1) > 1e-5
    assert not changed[0].any()
    assert torch.equal(changed[1], cells[1, 0])
    assert 0 < int(cells[1, 0].sum()) < 64


def test_only_layers_with_keys_are_touched(keys):
    (index,) = keys
    acting = operation(keys, subjects(LEFT))
    layer = AttentionLayer("x", index, "down", True, 2)
    assert acting.applies_to(AttentionCall(layer, BatchLayout()))
    other = AttentionLayer("x", index + 2, "down", True, 2)
    assert not acting.applies_to(AttentionCall(other, BatchLayout()))

"""Shared attention and norms: against loops over rows, heads and channels, and by invariants."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from image_tools.diffusion.attention import (
    AttentionHub,
    BatchLayout,
    attention_operations,
)
from image_tools.errors import UnsupportedModel
from image_tools.personalization.style_aligned_configs import StyleSharingConfig
from image_tools.personalization.style_sharing import (
    StyleRows,
    adaptive_norm,
    is_off,
    shared_group_norms,
    style_sharing,
    unshared_layers,
)
from renderers.errors import ShapeError
from tests.image_tools.tiny_unets import inputs, tiny_unet

ROWS = 4
FIRST = StyleRows((0,) * ROWS)
PAIRS = StyleRows((2, 3, 2, 3))
OFF = StyleSharingConfig(attention="off", normalized=(), group_norm="own")
PLAIN_NORMS = StyleSharingConfig(group_norm="own")
CONFIGS = {
    "as published": StyleSharingConfig(),
    "with a picture": StyleSharingConfig().with_picture(),
    "own norms": PLAIN_NORMS,
    "values too": replace(PLAIN_NORMS, normalized=("queries", "keys", "values")),
    "keys alone": replace(PLAIN_NORMS, normalized=("keys",)),
    "scaled and shifted": replace(PLAIN_NORMS, score_scale=0.5, score_shift=-0.7),
    "normalisation alone": replace(PLAIN_NORMS, attention="off"),
    "norms alone": replace(OFF, group_norm="shared"),
    "some layers": replace(PLAIN_NORMS, only_self_level=0.5),
}


@pytest.fixture(scope="module")
def unet():
    """In float64, where equal formulas give equal numbers."""
    return tiny_unet().double()


@torch.no_grad()
def called(unet, rows=ROWS, latents=None):
    noisy, t, text = inputs(rows)
    noisy = (noisy if latents is None else latents).double()
    return unet(noisy, t, encoder_hidden_states=text.double()).sample


def shared(unet, config, rows=FIRST, *, count=ROWS, latents=None):
    with style_sharing(unet, rows, config):
        return called(unet, count, latents)


class Loops:
    """Self-attention of the paper for one image, one head and one channel after another."""

    def __init__(self, config, references):
        self.config, self.references = config, references
        self.shift = config.score_shift or 0.0

    def __call__(self, attn, hidden_states, *rest, **others):
        parts = {
            name: project(hidden_states).unflatten(-1, (attn.heads, -1))
            for name, project in (
                ("queries", attn.to_q),
                ("keys", attn.to_k),
                ("values", attn.to_v),
            )
        }
        outputs = []
        for row, reference in enumerate(self.references):
            heads = [self._head(parts, row, reference, head) for head in range(attn.heads)]
            outputs.append(torch.cat(heads, dim=-1))
        return attn.to_out[0](torch.stack(outputs))

    def _head(self, parts, row, reference, head):
        own, theirs = {}, {}
        for name, part in parts.items():
            own[name], theirs[name] = part[row, :, head], part[reference, :, head]
            if name in self.config.normalized:
                own[name] = self._like(own[name], theirs[name])
                theirs[name] = self._like(theirs[name], theirs[name])
        scale = own["queries"].shape[-1] ** -0.5
        scores, values = [own["queries"] @ own["keys"].T * scale], [own["values"]]
        if self.config.attention == "reference":
            factor = self.config.score_scale if row != reference else 1.0
            scores.append(own["queries"] @ (factor * theirs["keys"]).T * scale + self.shift)
            values.append(theirs["values"])
        return torch.cat(scores, dim=-1).softmax(dim=-1) @ torch.cat(values)

    def _like(self, x, reference):
        columns = []
        for mine, theirs in zip(x.unbind(1), reference.unbind(1), strict=True):
            variances = [
                ((each - each.mean()) ** 2).sum() / (len(each) - 1) for each in (mine, theirs)
            ]
            factor = ((variances[1] + 1e-5) / (variances[0] + 1e-5)).sqrt()
            columns.append((mine - mine.mean()) * factor + theirs.mean())
        return torch.stack(columns, dim=1)


def loop_norm(norm, references):
    """A group norm of image and reference, image by image and group by group."""

    def forward(x):
        images = []
        for row, reference in enumerate(references):
            groups = []
            for mine, theirs in zip(
                x[row].chunk(norm.num_groups), x[reference].chunk(norm.num_groups), strict=True
            ):
                both = torch.cat([mine.flatten(), theirs.flatten()])
                variance = both.var(correction=0)
                groups.append((mine - both.mean()) / (variance + norm.eps).sqrt())
            weight, bias = norm.weight[:, None, None], norm.bias[:, None, None]
            images.append(torch.cat(groups) * weight + bias)
        return torch.stack(images)

    return forward


@pytest.mark.parametrize("name", CONFIGS)
def test_sharing_equals_loops(name):
    config, rows = CONFIGS[name], PAIRS
    unet, by_loops = tiny_unet().double(), tiny_unet().double()
    layers = [n for n in by_loops.attn_processors if "attn1" in n]
    skipped = unshared_layers(len(layers), config.only_self_level)
    loops = Loops(config, rows.references)
    processors = dict(by_loops.attn_processors)
    processors |= {n: loops for n, skips in zip(layers, skipped, strict=True) if not skips}
    by_loops.set_attn_processor(processors)
    if config.group_norm != "own":
        for module in by_loops.modules():
            if isinstance(module, nn.GroupNorm):
                module.forward = loop_norm(module, rows.references)
    found, plain = shared(unet, config, rows), called(unet)
    torch.testing.assert_close(found, called(by_loops), atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(found[2:], plain[2:], atol=1e-10, rtol=0.0)  # the references
    assert not torch.allclose(found[1], plain[1], atol=1e-4)


def test_in_float32_references_move_by_rounding_only():
    unet = tiny_unet()
    noisy, t, text = inputs(ROWS)
    with torch.no_grad():
        plain = unet(noisy, t, encoder_hidden_states=text).sample
        with style_sharing(unet, FIRST, StyleSharingConfig().with_picture()):
            found = unet(noisy, t, encoder_hidden_states=text).sample
    torch.testing.assert_close(found[0], plain[0], atol=2e-6, rtol=0.0)
    assert (found[1:] - plain[1:]).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_full_sharing_is_attention_over_the_tokens_of_all_images():
    unet, joined = tiny_unet().double(), tiny_unet().double()
    config = replace(PLAIN_NORMS, attention="full")

    class Joined:
        def __call__(self, attn, hidden_states, *rest, **others):
            tokens = hidden_states.shape[1]
            halves = hidden_states.unflatten(0, (2, -1)).flatten(1, 2)
            return self.inner(attn, halves).unflatten(1, (-1, tokens)).flatten(0, 1)

    processor = Joined()
    processor.inner = next(iter(joined.attn_processors.values()))
    joined.set_attn_processor(
        {n: processor if "attn1" in n else p for n, p in joined.attn_processors.items()}
    )
    halves = StyleRows((0, 0))
    found = shared(unet, config, halves)
    torch.testing.assert_close(found, called(joined), atol=1e-10, rtol=1e-8)
    assert not torch.allclose(found[0], called(unet)[0], atol=1e-4)  # the first one changes too


@pytest.mark.parametrize("attention", ["reference", "full"])
def test_halves_of_a_call_do_not_see_each_other(unet, attention):
    config, rows = StyleSharingConfig(attention=attention), StyleRows((0, 0))
    noisy, t, text = inputs(ROWS)
    both = shared(unet, config, rows)
    for half in (slice(0, 2), slice(2, 4)):
        with torch.no_grad(), style_sharing(unet, rows, config):
            alone = unet(
                noisy[half].double(), t[half], encoder_hidden_states=text[half].double()
            ).sample
        torch.testing.assert_close(both[half], alone, atol=1e-10, rtol=0.0)


def test_targets_do_not_see_each_other(unet):
    noisy = inputs(ROWS)[0].clone()
    before = shared(unet, StyleSharingConfig())
    noisy[3] += 1.0
    after = shared(unet, StyleSharingConfig(), latents=noisy)
    torch.testing.assert_close(after[:3], before[:3], atol=1e-10, rtol=0.0)
    noisy[0] += 1.0
    assert not torch.allclose(shared(unet, StyleSharingConfig(), latents=noisy)[1], before[1])


def test_far_below_all_scores_the_reference_is_not_seen(unet):
    config = replace(OFF, attention="reference", score_shift=-1e5)
    torch.testing.assert_close(shared(unet, config), called(unet), atol=1e-10, rtol=0.0)


def test_a_reference_that_is_the_image_itself_changes_nothing(unet):
    alone = StyleRows(tuple(range(ROWS)))
    found = shared(unet, StyleSharingConfig(score_scale=0.5, score_shift=0.4), alone)
    torch.testing.assert_close(found, called(unet), atol=1e-10, rtol=0.0)


def test_what_is_off_is_not_there(unet):
    plain = called(unet)
    for config in (OFF, replace(PLAIN_NORMS, only_self_level=1.0)):
        assert is_off(config, unet)
        with style_sharing(unet, FIRST, replace(config, score_shift=0.5)):
            processors = unet.attn_processors.values()
            assert not any("Hub" in type(processor).__name__ for processor in processors)
            assert torch.equal(called(unet), plain)


def test_processors_and_norms_are_put_back_after_an_error():
    unet = tiny_unet().double()
    before, plain = dict(unet.attn_processors), called(unet)
    with (
        pytest.raises(RuntimeError, match="stop"),
        style_sharing(unet, FIRST, StyleSharingConfig()),
    ):
        raise RuntimeError("stop")
    assert all(unet.attn_processors[name] is before[name] for name in before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())
    assert torch.equal(called(unet), plain)


# What the authors' notebooks for SDXL set (google/style-aligned): style_aligned_sdxl, a set without
# a picture, and style_aligned_transfer_sdxl, one in the style of a picture.
PUBLISHED_SDXL = {
    "set": {"share_group_norm": False, "shared_score_shift": 0.0},
    "picture": {"share_group_norm": True, "shared_score_shift": math.log(2.0)},
}


@pytest.mark.parametrize("kind", PUBLISHED_SDXL)
def test_what_sdxl_shares_is_as_published(kind):
    published = PUBLISHED_SDXL[kind]
    unet = tiny_unet().double()
    config = StyleSharingConfig()
    config = config.with_picture() if kind == "picture" else config
    said = StyleSharingConfig(
        group_norm="shared" if published["share_group_norm"] else "own",
        score_shift=published["shared_score_shift"],
    )
    other = replace(said, group_norm="own" if published["share_group_norm"] else "shared")
    found = called_as_sdxl(unet, config)
    assert torch.equal(found, called_as_sdxl(unet, said))
    assert not torch.equal(found, called_as_sdxl(unet, other))


def called_as_sdxl(unet, config):
    """A call that shares as SDXL does; the tiny UNet has no inputs of SDXL's own."""
    unet.register_to_config(addition_embed_type="text_time")
    with style_sharing(unet, FIRST, config):
        unet.register_to_config(addition_embed_type=None)
        return called(unet)


def test_norms_of_sdxl_stay_its_own_without_a_picture():
    unet = tiny_unet()
    unet.register_to_config(addition_embed_type="text_time")
    attention_off = StyleSharingConfig(attention="off", normalized=())
    assert is_off(attention_off, unet)
    assert not is_off(attention_off.with_picture(), unet)
    assert not is_off(attention_off, tiny_unet())
    assert not is_off(replace(attention_off, group_norm="shared"), unet)
    assert is_off(replace(attention_off, group_norm="own").with_picture(), unet)


def test_the_normalised_have_the_statistics_of_their_reference():
    x = torch.randn(3, 2, 50, 4, generator=torch.Generator().manual_seed(0)).double()
    x[1] = 5.0 * x[1] + 3.0
    found = adaptive_norm(x, torch.tensor([1, 1, 2]))
    torch.testing.assert_close(found[0].mean(dim=-2), x[1].mean(dim=-2))
    torch.testing.assert_close(found[0].std(dim=-2), x[1].std(dim=-2), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1:], x[1:])
    order = x[0].argsort(dim=-2)  # the pattern over tokens is the image's own
    assert torch.equal(found[0].argsort(dim=-2), order)


def test_one_token_has_no_deviation():
    x = torch.randn(2, 1, 1, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(adaptive_norm(x, torch.tensor([0, 0]))[1], x[0])


def test_gradients_pass():
    x = torch.randn(2, 1, 5, 2, generator=torch.Generator().manual_seed(0)).double()
    references = torch.tensor([0, 0])
    torch.autograd.gradcheck(lambda each: adaptive_norm(each, references), x.requires_grad_())


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (0.0, "ssssssss"),
        (0.25, "osssosss"),
        (0.5, "osososos"),
        (0.75, "soooso" + "oo"),
        (1.0, "oooooooo"),
        (0.1, "ssssssss"),  # less than one layer
    ],
)
def test_layers_that_keep_to_themselves_are_spread(level, expected):
    found = "".join("o" if skips else "s" for skips in unshared_layers(8, level))
    assert found == expected


def test_norms_see_image_and_reference_as_one(unet):
    norm = nn.GroupNorm(2, 4).double()
    holder = nn.Sequential(norm)
    x = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    tokens = x.flatten(2)  # attention blocks normalise [rows, channels, tokens]
    with shared_group_norms(holder, StyleRows((1, 1))):
        found, found_tokens = holder(x), holder(tokens)
    torch.testing.assert_close(found[1], norm(x)[1])
    torch.testing.assert_close(found.flatten(2), found_tokens)
    torch.testing.assert_close(found[0], loop_norm(norm, (1, 1))(x)[0])


def test_parts_of_a_batch_are_refused(unet):
    with pytest.raises(ShapeError, match="4 rows are not whole batches of 3 images"):
        shared(unet, StyleSharingConfig(), StyleRows((0, 0, 0)))


def test_views_that_are_seen_together_are_refused(unet):
    with (
        AttentionHub(unet) as hub,
        hub.batch(BatchLayout(views=2)),
        pytest.raises(UnsupportedModel, match="looks at 2 views together"),
    ):
        shared(unet, PLAIN_NORMS)


def test_an_outer_tool_keeps_its_operations(unet):
    with attention_operations(unet, []) as hub:
        found = shared(unet, StyleSharingConfig())
        assert hub.operations == []
    torch.testing.assert_close(found, shared(unet, StyleSharingConfig()))

"""StableVITON: untrained it is its denoiser; trained it equals a decoder walked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from image_tools.configs import DdimConfig
from image_tools.diffusion.conditions import Condition, TextEmbedding
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.sampling import ddim_steps, unit_noise
from image_tools.tryon.samples import TryOnSample
from image_tools.tryon.stable_viton import StableViton, keep_mask, viton_channels
from image_tools.tryon.stable_viton_context import class_token
from image_tools.tryon.stable_viton_nets import (
    SpatialEncoder,
    WarpBlocks,
    WarpSettings,
    warp_widths,
)
from renderers.errors import StudioError
from tests.image_tools.tryon.tiny_viton import tiny_viton, viton_sample

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prior(tiny_pipelines) -> DiffusionPrior:
    return load_folder(tiny_pipelines["sd1"], CPU)


@pytest.fixture(scope="module")
def model(prior) -> StableViton:
    return tiny_viton(prior)


@pytest.fixture(scope="module")
def sample() -> TryOnSample:
    return viton_sample()


def call(channels: int, context: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input of the network with all channels, timesteps, one context token."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, channels, 16, 12, generator=generator)
    return x, torch.tensor([800, 30]), torch.randn(2, 1, context, generator=generator)


def generators(seeds: tuple[int, ...] = (1, 2)) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_widths_for_stable_diffusion_are_the_authors() -> None:
    class Unet:
        class config:  # noqa: N801
            block_out_channels, layers_per_block = (320, 640, 1280, 1280), 2
            attention_head_dim, num_attention_heads = 8, None
            norm_num_groups, use_linear_projection = 32, False

    assert warp_widths(Unet()) == WarpSettings(
        (1280, 1280, 1280, 1280, 640, 640, 640, 320, 320),
        (1280, 1280, 640, 640, 640, 320, 320, 320, 320),
        heads=8,
    )


@torch.no_grad()
def test_untrained_it_is_its_denoiser_bit_for_bit(prior) -> None:
    net = tiny_viton(prior, trained=False).denoiser.unet
    x, t, context = call(17)
    plain = net.unet(x[:, :13], t, encoder_hidden_states=context).sample
    assert torch.equal(net(x, t, encoder_hidden_states=context).sample, plain)


@torch.no_grad()
def test_trained_it_equals_a_walk_through_the_denoiser(model) -> None:
    """Encoder, middle and decoder block by block, hints taken from the coarsest."""
    net = model.denoiser.unet
    unet, encoder, warps = net.unet, net.encoder, net.warps
    x, t, context = call(17)
    seen, garment = x[:, :13], x[:, 13:]
    hints = encoder(seen, t, context, garment)
    emb = unet.time_embedding(unet.time_proj(t))
    h = unet.conv_in(seen)
    skips = [h]
    h, states = unet.down_blocks[0](h, emb, encoder_hidden_states=context)
    skips += states
    h, states = unet.down_blocks[1](h, emb)
    skips += states
    h = unet.mid_block(h, emb, encoder_hidden_states=context)
    hints.pop(), hints.pop()  # the coarsest decoder block looks at none
    h = unet.up_blocks[0](h, (skips[-2], skips[-1]), emb)
    del skips[-2:]
    block = unet.up_blocks[1]
    for k, (resnet, attention) in enumerate(zip(block.resnets, block.attentions, strict=True)):
        hint = hints.pop().flatten(2).transpose(1, 2)
        looked = warps.blocks[k](h, encoder_hidden_states=hint, return_dict=False)[0]
        h = h + warps.zero_convs[k](looked)
        h = resnet(torch.cat([h, skips.pop()], dim=1), emb)
        h = attention(h, encoder_hidden_states=context, return_dict=False)[0]
    wanted = unet.conv_out(F.silu(unet.conv_norm_out(h)))
    found = net(x, t, encoder_hidden_states=context).sample
    assert torch.allclose(found, wanted, atol=1e-5)
    plain = unet(seen, t, encoder_hidden_states=context).sample
    assert not torch.allclose(found, plain, atol=1e-3)


@torch.no_grad()
def test_a_copied_encoder_gives_the_denoisers_own_skips(model) -> None:
    unet = model.denoiser.unet.unet
    x, t, context = call(13)
    hints = SpatialEncoder.from_unet(unet)(x, t, context, torch.randn(2, 4, 16, 12))
    emb = unet.time_embedding(unet.time_proj(t))
    h = unet.conv_in(x)
    h, states = unet.down_blocks[0](h, emb, encoder_hidden_states=context)
    assert torch.equal(hints[0], unet.conv_in(x))
    assert all(torch.equal(a, b) for a, b in zip(hints[1:], states, strict=False))


@torch.no_grad()
def test_the_denoiser_is_left_as_it_was(model) -> None:
    net = model.denoiser.unet
    x, t, context = call(17)
    before = net.unet(x[:, :13], t, encoder_hidden_states=context).sample
    net(x, t, encoder_hidden_states=context)
    assert torch.equal(net.unet(x[:, :13], t, encoder_hidden_states=context).sample, before)


def test_channels_are_person_mask_parts_and_garment(model, sample) -> None:
    denoiser = model.denoiser
    seen = viton_channels(denoiser, sample).channels
    assert seen.shape == (2, 13, 16, 12)
    assert torch.equal(seen[:, :4], denoiser.encode_images(sample.agnostic))
    assert torch.equal(seen[:, 5:9], denoiser.encode_images(sample.densepose))
    assert torch.equal(seen[:, 9:], denoiser.encode_images(sample.garments[0].images))
    assert torch.equal(seen[:, 4:5], keep_mask(sample.mask, (16, 12)))


def test_the_mask_is_one_where_the_person_is_kept_and_read_at_the_middle_of_cells() -> None:
    """The release resizes a tensor with torchvision 0.15, whose default is no antialiasing: a cell
    of 8 pixels is the mean of the four at its middle, whatever the others are."""
    mask = (torch.rand(1, 64, 48, 1, generator=generators()[0]) > 0.5).float()
    kept = keep_mask(mask, (8, 6))[0, 0]
    cells = 1.0 - mask[0, ..., 0].unflatten(0, (8, 8)).unflatten(2, (6, 8))
    middles = cells[:, 3:5, :, 3:5].mean(dim=(1, 3))
    assert torch.allclose(kept, middles, atol=1e-6)
    straight = torch.zeros(1, 64, 48, 1)
    straight[:, :, 19:] = 1.0  # the rim lies off the middle of a cell, which is soft nowhere
    assert keep_mask(straight, (8, 6))[0, 0, 0].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_clip_sees_the_product_without_antialiasing(model) -> None:
    """Only pixels between which a sample lies are seen: here columns 3 and 4 of each 8."""
    clip = model.parts.clip
    side = clip.side
    picture = torch.rand(1, 8 * side, 8 * side, 3, generator=generators()[0])
    other = torch.rand(1, 8 * side, 8 * side, 3, generator=generators()[1])
    seen = torch.zeros(8, dtype=torch.bool)
    seen[3:5] = True
    seen = seen.repeat(side)
    inside = (seen[:, None] & seen)[None, ..., None]
    token = class_token(clip, picture)
    assert torch.equal(token, class_token(clip, torch.where(inside, picture, other)))
    assert not torch.allclose(token, class_token(clip, other), atol=1e-3)


def test_warping_blocks_have_the_epsilons_of_the_original_code() -> None:
    """1e-6 in GroupNorm and torch's 1e-5 in LayerNorm, as in latent diffusion's transformer."""
    (block,) = WarpBlocks(WarpSettings((64,), (64,), 8)).blocks
    layers = [m for m in block.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert block.norm.eps == 1e-6
    assert len(layers) == 3
    assert {layer.eps for layer in layers} == {1e-5}


def test_the_context_is_one_token_and_nothing_is_another(model, sample) -> None:
    cond, uncond = model.conditions(sample)
    assert cond.text.tokens.shape == uncond.text.tokens.shape == (2, 1, 16)
    head = model.parts.head
    assert torch.equal(uncond.text.tokens, head.learnable_vector.expand(2, -1, -1))
    assert torch.equal(uncond.additions[0].channels, cond.additions[0].channels)


def test_one_token_attends_to_itself(model, sample) -> None:
    """The blocks equal ones whose attention is computed in full."""
    mapper = model.parts.mapper
    token = class_token(model.parts.clip, sample.garments[0].images)
    wanted = token[:, None]
    for block in mapper.resblocks:
        q, k, v = block.attn["c_qkv"](block.ln_1(wanted)).chunk(3, dim=-1)
        seen = F.scaled_dot_product_attention(q, k, v)
        wanted = wanted + block.attn["c_proj"](seen)
        inner = F.gelu(block.mlp["c_fc"](block.ln_2(wanted)))
        wanted = wanted + block.mlp["c_proj"](inner)
    wanted = mapper.final_ln(wanted)[:, 0]
    assert torch.allclose(mapper(token), wanted, atol=1e-5)


def test_people_outside_the_mask_are_their_own_bit_for_bit(model, sample) -> None:
    images = model.dress(sample, generators=generators(), config=DdimConfig(steps=2))
    keeps = (sample.mask == 0.0).expand_as(images)
    assert torch.equal(images[keeps], sample.person[keeps])
    alone = sample.select(torch.tensor([1]))
    again = model.dress(alone, generators=generators((2,)), config=DdimConfig(steps=2))
    assert torch.allclose(again[0], images[1], atol=1e-5)


def test_only_parity_lets_the_picture_leak(model, sample) -> None:
    """What is painted anew must not depend on what it covers."""
    inside = sample.mask.expand_as(sample.person)
    other = replace(sample, person=torch.lerp(sample.person, 1.0 - sample.person, inside))
    config = DdimConfig(steps=2, guidance_scale=1.0)

    def drawn(which: TryOnSample, start: str) -> torch.Tensor:
        images = model.dress(which, generators=generators(), config=config, start=start)
        return images * inside

    assert torch.equal(drawn(sample, "noise"), drawn(other, "noise"))
    assert not torch.equal(drawn(sample, "person"), drawn(other, "person"))


def test_parity_begins_with_the_person_at_the_last_timestep_of_all(model, sample) -> None:
    """The release calls q_sample(z, 999), wherever its sampler's steps begin."""
    denoiser = model.denoiser
    seen = []
    hook = denoiser.unet.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0][:, :4])
    )
    config = DdimConfig(steps=3, guidance_scale=1.0)
    model.dress(sample, generators=generators(), config=config, start="person")
    hook.remove()
    own = denoiser.encode_images(sample.person)
    noise = unit_noise(tuple(own.shape[1:]), generators(), CPU)
    last = denoiser.alphas_cumprod[-1]
    assert ddim_steps(denoiser, 3)[0].t < denoiser.num_train_timesteps - 1
    assert torch.allclose(seen[0], last.sqrt() * own + (1.0 - last).sqrt() * noise, atol=1e-5)


def test_unguided_sampling_asks_the_denoiser_once_a_step(model, sample) -> None:
    before = model.denoiser.denoiser_evaluations
    model.dress(sample, generators=generators(), config=DdimConfig(steps=2, guidance_scale=1.0))
    assert model.denoiser.denoiser_evaluations - before == 2 * 2


def test_masks_are_seen_hard_and_products_whole(model, sample) -> None:
    shirt = sample.garments[0]
    wide = replace(shirt, images=torch.rand(2, 9, 40, 3, generator=generators()[0]))
    other = replace(sample, mask=sample.mask * 0.75, garments=(wide,))
    known = replace(sample, garments=(wide.sized(sample.size),))
    found, wanted = (model.conditions(one)[0] for one in (other, known))
    assert torch.equal(found.additions[0].channels, wanted.additions[0].channels)
    assert torch.equal(found.text.tokens, wanted.text.tokens)


def test_several_garments_are_refused(model, sample) -> None:
    with pytest.raises(StudioError, match="StableVITON got 2 garments for each person"):
        model.conditions(replace(sample, garments=sample.garments * 2))


def test_a_sample_without_body_parts_is_refused(model, sample) -> None:
    with pytest.raises(StudioError, match="StableVITON needs the people's densepose"):
        model.conditions(replace(sample, densepose=None))


def test_rows_have_their_own_garments(model, sample) -> None:
    channels = viton_channels(model.denoiser, sample)
    text = TextEmbedding(model.parts.context(sample.garments[0]))
    latents = torch.randn(2, 4, 16, 12, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([500, 500])
    with torch.no_grad():
        both = model.denoiser.predict_output(latents, t, Condition(text, additions=(channels,)))
        turned = replace(channels, channels=channels.channels.flip(0))
        other = model.denoiser.predict_output(
            latents.flip(0), t, Condition(text.select(torch.tensor([1, 0])), additions=(turned,))
        )
    assert torch.allclose(both, other.flip(0), atol=1e-5)

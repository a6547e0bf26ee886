"""Skip connections: nothing added is the plain decoder, and what is added lands where it should."""

from __future__ import annotations

import copy

import pytest
import torch

from image_tools.configs import PriorMemoryConfig
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.memory import apply_memory_options
from image_tools.errors import UnsupportedModel
from image_tools.tryon.emasc import EmascPrior, SkipConnections, recording, skip_settings
from image_tools.tryon.extend import TryOnDenoiser
from image_tools.tryon.ladi_configs import EmascSettings
from tests.image_tools.tryon.tiny_idm import shaken
from tests.image_tools.tryon.tiny_ladi import SIZE, ladi_sample

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def denoiser(tiny_pipelines) -> TryOnDenoiser:
    prior = load_folder(tiny_pipelines["pocket"], CPU)  # its VAE has three levels
    return TryOnDenoiser(prior, prior.unet, extra_channels=0, image_hw=(32, 24))


def latents_of(denoiser: TryOnDenoiser) -> torch.Tensor:
    return torch.randn(2, 4, *denoiser.latent_hw, generator=torch.Generator().manual_seed(5))


def test_sizes_for_stable_diffusion_are_the_authors() -> None:
    class Vae:
        class config:  # noqa: N801
            block_out_channels = (128, 256, 512, 512)

    assert skip_settings(Vae()) == EmascSettings()


def test_untrained_connections_decode_bit_for_bit_as_the_vae(denoiser) -> None:
    prior = EmascPrior(denoiser, SkipConnections(skip_settings(denoiser.vae)))
    latents, sample = latents_of(denoiser), ladi_sample()
    plain = denoiser.decode_latents(latents)
    with prior.showing(sample.agnostic, sample.mask):
        assert torch.equal(prior.decode_latents(latents), plain)
    assert torch.equal(prior.decode_latents(latents), plain)


def test_decoding_equals_a_decoder_called_block_by_block(denoiser) -> None:
    skips = shaken(SkipConnections(skip_settings(denoiser.vae)), 3)
    prior, sample, latents = EmascPrior(denoiser, skips), ladi_sample(), latents_of(denoiser)
    vae, decoder = denoiser.vae, denoiser.vae.decoder
    with torch.no_grad():
        added = prior.added(sample.agnostic, sample.mask)
        h = decoder.mid_block(
            decoder.conv_in(vae.post_quant_conv(latents / vae.config.scaling_factor))
        )
        for level, block in zip(added[:0:-1], decoder.up_blocks, strict=True):
            h = block(h + level)
        h = decoder.conv_act(decoder.conv_norm_out(h)) + added[0]
        wanted = (decoder.conv_out(h) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
        with prior.showing(sample.agnostic, sample.mask):
            first, second = prior.decode_latents(latents), prior.decode_latents(latents)
    assert torch.allclose(first, wanted, atol=1e-6)
    assert torch.equal(first, second)  # nothing was turned round in place


def test_features_are_those_of_the_last_pass(denoiser) -> None:
    images = torch.rand(3, 32, 24, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), recording(denoiser.vae) as features:
        denoiser.encode_images(images[:2])
        denoiser.encode_images(images)
    widths = skip_settings(denoiser.vae).in_channels
    assert [tuple(f.shape) for f in features] == [
        (3, widths[0], 32, 24),
        (3, widths[1], 32, 24),
        (3, widths[2], 16, 12),
        (3, widths[3], 8, 6),
    ]
    assert torch.equal(features[0], features[1])


def test_nothing_is_added_where_the_picture_is_painted_anew(denoiser) -> None:
    skips = shaken(SkipConnections(skip_settings(denoiser.vae)), 3)
    sample = ladi_sample()
    with torch.no_grad():
        whole = EmascPrior(denoiser, skips).added(sample.agnostic, torch.ones_like(sample.mask))
        some = EmascPrior(denoiser, skips).added(sample.agnostic, sample.mask)
    assert all(float(level.abs().max()) == 0.0 for level in whole)
    for level in some:
        step = SIZE[0] // level.shape[-2]
        keeps = 1.0 - sample.mask[:, ::step, ::step, 0]  # nearest
        assert float((level * (1.0 - keeps)[:, None]).abs().max()) == 0.0
        assert float((level * keeps[:, None]).abs().max()) > 0.0


def test_gradients_reach_the_connections_alone(denoiser) -> None:
    skips = shaken(SkipConnections(skip_settings(denoiser.vae)), 3)
    prior, sample = EmascPrior(denoiser, skips), ladi_sample()
    with prior.showing(sample.agnostic, sample.mask):
        prior.decode_latents(latents_of(denoiser)).mean().backward()
    assert all(p.grad is not None for p in skips.parameters())
    assert all(p.grad is None for p in denoiser.vae.parameters())


def lighter(denoiser: TryOnDenoiser, option: str) -> TryOnDenoiser:
    """The same with a VAE that fits into less memory."""
    other = copy.deepcopy(denoiser)
    apply_memory_options(other.vae, other.unet, PriorMemoryConfig(**{option: True}))
    return other


@pytest.mark.parametrize("option", ["vae_slicing", "vae_tiling", "vae_checkpointing"])
def test_a_vae_that_saves_memory_decodes_whole_people_all_the_same(denoiser, option) -> None:
    """Tiles and slices would meet features of other sizes and other people."""
    skips = shaken(SkipConnections(skip_settings(denoiser.vae)), 3)
    sample, latents, pictures, gradients = ladi_sample(), latents_of(denoiser), [], []
    other = lighter(denoiser, option)
    before = switches(other.vae)
    for plain in (denoiser, other):
        prior = EmascPrior(plain, skips)
        with prior.showing(sample.agnostic, sample.mask):
            pictures.append(prior.decode_latents(latents))
        skips.zero_grad()
        pictures[-1].mean().backward()  # after the hooks are gone, as in a training
        gradients.append([p.grad.clone() for p in skips.parameters()])
    assert torch.equal(*pictures)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert switches(other.vae) == before != switches(denoiser.vae)


def switches(vae: torch.nn.Module) -> tuple[bool, ...]:
    """What of the ways to save memory is on."""
    return (vae.use_slicing, vae.use_tiling, vae.is_gradient_checkpointing)


def test_connections_of_another_vae_are_refused(denoiser) -> None:
    with pytest.raises(UnsupportedModel, match="skip connections lead from"):
        EmascPrior(denoiser, SkipConnections(EmascSettings((4, 4), (4, 4))))

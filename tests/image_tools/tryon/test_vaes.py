"""Another VAE in the place of a prior's: it is read from its folder, and all else stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from image_tools.configs import DiffusersPriorConfig, PriorMemoryConfig
from image_tools.diffusion.loading import load_folder, load_prior
from image_tools.errors import UnsupportedModel, WeightsMissing
from image_tools.tryon.extend import TryOnDenoiser, widen_conv_in
from image_tools.tryon.vaes import read_stock_vae, with_vae
from renderers.errors import StudioError
from tests.image_tools.tryon.tiny_idm import shaken

CPU = torch.device("cpu")


def test_a_folders_vae_takes_the_place_of_the_priors(tiny_pipelines, tmp_path) -> None:
    prior = load_folder(tiny_pipelines["sd1"], CPU)
    moved = shaken(prior.vae, 2)
    moved.save_pretrained(tmp_path / "vae")
    other = with_vae(prior, read_stock_vae(tmp_path / "vae", prior.vae))
    images = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(other.encode_images(images), with_vae(prior, moved).encode_images(images))
    assert not torch.allclose(other.encode_images(images), prior.encode_images(images), atol=1e-3)
    assert other.unet is prior.unet
    assert torch.equal(other.encode_prompt(["a"]).tokens, prior.encode_prompt(["a"]).tokens)
    with pytest.raises(WeightsMissing, match=r"VAE .*no config\.json"):
        read_stock_vae(tmp_path, prior.vae)
    (tmp_path / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(WeightsMissing, match=r"no diffusion_pytorch_model\.safetensors"):
        read_stock_vae(tmp_path / "vae", prior.vae)


def test_the_one_variant_of_a_folder_is_read(tiny_pipelines, tmp_path) -> None:
    prior = load_folder(tiny_pipelines["sd1"], CPU)
    prior.vae.save_pretrained(tmp_path, variant="fp16")
    read = read_stock_vae(tmp_path, prior.vae).state_dict()
    assert all(torch.equal(tensor, read[name]) for name, tensor in prior.vae.state_dict().items())


def test_memory_switches_pass_to_what_takes_a_priors_place(tiny_pipelines) -> None:
    memory = PriorMemoryConfig(
        vae_slicing=True, vae_tiling=True, vae_checkpointing=True, text_encoder="drop"
    )
    config = DiffusersPriorConfig(model=str(tiny_pipelines["sd1"]), memory=memory)
    prior = load_prior(config, CPU)
    bare = load_prior(replace(config, memory=PriorMemoryConfig()), CPU)
    other = with_vae(prior, bare.vae)
    for name in ("use_slicing", "use_tiling", "is_gradient_checkpointing", "tile_latent_min_size"):
        assert getattr(other.vae, name) == getattr(prior.vae, name), name
    wide = widen_conv_in(bare.unet, 9)
    wearing = TryOnDenoiser(other, wide, extra_channels=5, image_hw=(16, 16))
    assert not any(one.keeps_text_encoder for one in (prior, other, wearing))


def test_what_does_not_fit_is_refused(tiny_pipelines) -> None:
    from diffusers import AutoencoderKL

    prior = load_folder(tiny_pipelines["sd1"], CPU)
    wide = AutoencoderKL.from_config({**prior.vae.config, "latent_channels": 8})
    with pytest.raises(UnsupportedModel, match="takes 4 channels, the VAE makes 8"):
        with_vae(prior, wide)
    with pytest.raises(StudioError, match="named for a object - expected a plain prior"):
        with_vae(object(), wide)

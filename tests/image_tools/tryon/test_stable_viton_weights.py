"""StableVITON's checkpoint: names and shapes at full size, and a tiny one read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from image_tools.diffusion.ldm_names import decoder_names, encoder_names, translate
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.errors import UnsafeWeights, UnsupportedModel, WeightsMissing
from image_tools.tryon.stable_viton import StableViton
from image_tools.tryon.stable_viton_configs import ContextSettings, StableVitonConfig
from image_tools.tryon.stable_viton_context import ContextHead, ContextMapper
from image_tools.tryon.stable_viton_nets import (
    EncoderSettings,
    SpatialEncoder,
    WarpBlocks,
    warp_widths,
)
from image_tools.tryon.stable_viton_weights import (
    StableVitonTensors,
    read_stable_viton,
    read_vae,
)
from tests.image_tools.tryon.tiny_viton import SIZE, tiny_viton, viton_sample
from tests.tiny_models import write_single_file

CPU = torch.device("cpu")
SD14 = {
    "in_channels": 13,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "sample_size": 64,
}
WANTED = {
    "model.diffusion_model.input_blocks.0.0.weight": (320, 13, 3, 3),
    "model.diffusion_model.out.2.weight": (4, 320, 3, 3),
    "model.diffusion_model.warp_flow_blks.0.norm.weight": (1280,),
    "model.diffusion_model.warp_flow_blks.0.proj_in.weight": (1280, 1280, 1, 1),
    "model.diffusion_model.warp_flow_blks.1.transformer_blocks.0.attn2.to_k.weight": (1280, 1280),
    "model.diffusion_model.warp_flow_blks.3.transformer_blocks.0.attn2.to_k.weight": (1280, 640),
    "model.diffusion_model.warp_flow_blks.4.transformer_blocks.0.attn2.to_v.weight": (640, 640),
    "model.diffusion_model.warp_flow_blks.6.transformer_blocks.0.attn2.to_k.weight": (640, 320),
    "model.diffusion_model.warp_flow_blks.8.transformer_blocks.0.ff.net.0.proj.weight": (2560, 320),
    "model.diffusion_model.warp_flow_blks.8.proj_out.bias": (320,),
    "model.diffusion_model.warp_zero_convs.5.weight": (640, 640, 1, 1),
    "control_model.input_blocks.0.0.weight": (320, 13, 3, 3),
    "control_model.cond_first_block.0.weight": (320, 4, 3, 3),
    "control_model.middle_block.0.in_layers.2.weight": (1280, 1280, 3, 3),
    "cond_stage_model.mapper.resblocks.4.attn.c_qkv.weight": (3072, 1024),
    "cond_stage_model.mapper.resblocks.0.mlp.c_fc.weight": (4096, 1024),
    "cond_stage_model.final_ln.weight": (1024,),
    "proj_out.weight": (768, 1024),
    "learnable_vector": (1, 1, 768),
}


def original(parts: Mapping[str, nn.Module], config: Mapping) -> dict[str, Tensor]:
    """All parts by the authors' names, with what the forward pass does not use."""
    names = {
        ours: theirs for theirs, ours in (encoder_names(config) | decoder_names(config)).items()
    }

    def ldm(module: nn.Module) -> dict[str, Tensor]:
        return {translate(k, names) or k: t for k, t in module.state_dict().items()}

    unet, control = ldm(parts["unet"]), ldm(parts["encoder"])
    control = {k.replace("cond_first_block.", "cond_first_block.0."): t for k, t in control.items()}
    control |= {k: t for k, t in unet.items() if k.startswith("middle_block.")}
    warps = {
        k.replace("blocks.", "warp_flow_blks.", 1) if k.startswith("blocks.") else f"warp_{k}": t
        for k, t in parts["warps"].state_dict().items()
    }
    mapper = {
        k if k.startswith("final_ln.") else f"mapper.{k}": t
        for k, t in parts["mapper"].state_dict().items()
    }
    return {
        **{f"model.diffusion_model.{k}": t for k, t in {**unet, **warps}.items()},
        **{f"control_model.{k}": t for k, t in control.items()},
        **{f"cond_stage_model.{k}": t for k, t in mapper.items()},
        **parts["head"].state_dict(),
        "betas": torch.zeros(1),
        "lastzc.weight": torch.zeros(1),
    }


def parts_of(model: StableViton) -> dict[str, nn.Module]:
    net = model.denoiser.unet
    return {
        "unet": net.unet,
        "encoder": net.encoder,
        "warps": net.warps,
        "mapper": model.parts.mapper,
        "head": model.parts.head,
    }


@pytest.fixture(scope="module")
def full() -> tuple[dict[str, nn.Module], dict]:
    """All networks at full size, without memory."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD14)
        config = {k: v for k, v in unet.config.items() if not k.startswith("_")}
        context = ContextSettings()
        parts = {
            "unet": unet,
            "encoder": SpatialEncoder(EncoderSettings(config, 4)),
            "warps": WarpBlocks(warp_widths(unet)),
            "mapper": ContextMapper(context),
            "head": ContextHead(context),
        }
    return parts, config


def test_names_and_shapes_are_the_authors(full) -> None:
    parts, config = full
    tensors = original(parts, config)
    assert {k: tuple(tensors[k].shape) for k in WANTED} == WANTED
    found = StableVitonTensors(tensors, config)
    for name, module in parts.items():
        own = {k: tuple(t.shape) for k, t in module.state_dict().items()}
        assert {k: tuple(t.shape) for k, t in getattr(found, name).items()} == own, name


def test_the_denoisers_names_are_those_of_the_stock_conversion(full) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    parts, config = full
    tensors = original(parts, config)
    prefix = "model.diffusion_model."
    own = {k: t for k, t in tensors.items() if k.startswith(prefix) and "warp_" not in k}
    stock = convert_ldm_unet_checkpoint(dict(own), config)
    ours = StableVitonTensors(tensors, config).unet
    assert {k: tuple(t.shape) for k, t in ours.items()} == {
        k: tuple(t.shape) for k, t in stock.items()
    }
    assert all(ours[k] is stock[k] for k in ours)


def test_a_tiny_checkpoint_is_read_back(tiny_pipelines, tmp_path) -> None:
    prior = load_folder(tiny_pipelines["sd1"], CPU)
    model = tiny_viton(prior)
    unet = model.denoiser.unet.unet
    # The authors' mapper has five blocks.
    with torch.random.fork_rng(devices=[]):
        mapper = ContextMapper(ContextSettings(model.parts.clip.width, 5, 16))
    parts = {**parts_of(model), "mapper": mapper}
    tensors = original(parts, unet.config)
    path = tmp_path / "VITONHD.ckpt"
    torch.save({"state_dict": tensors, "global_step": 3}, path)
    model.parts.clip.model.save_pretrained(tmp_path / "clip")
    config = StableVitonConfig(str(path), str(tmp_path / "clip"))
    again = read_stable_viton(config, prior, image_hw=SIZE)
    for name, module in parts_of(again).items():
        wanted = parts[name].state_dict()
        assert all(torch.equal(t, wanted[k]) for k, t in module.state_dict().items()), name
    cond, _ = again.conditions(viton_sample(1))
    latents, t = torch.randn(1, 4, 16, 12), torch.tensor([500])
    outputs = [m.denoiser.predict_output(latents, t, cond) for m in (model, again)]
    assert torch.equal(*outputs)


def moved_vae(tiny_pipelines, tmp_path) -> dict[str, Tensor]:
    """A VAE that is not the prior's, by its original names."""
    whole = load_file(write_single_file(tiny_pipelines["sd1"], tmp_path / "sd1.safetensors"))
    prefix = "first_stage_model."
    return {k.removeprefix(prefix): t + 0.5 for k, t in whole.items() if k.startswith(prefix)}


def is_moved(vae: nn.Module, prior: DiffusionPrior) -> bool:
    before = prior.vae.state_dict()
    return all(torch.equal(t, before[k] + 0.5) for k, t in vae.state_dict().items())


def test_the_tuned_vae_is_read_from_a_file_of_its_own_or_of_the_model(
    tiny_pipelines, tmp_path
) -> None:
    """The authors' file has no prefixes, and its training's loss beside the VAE."""
    prior = load_folder(tiny_pipelines["sd1"], CPU)
    own = moved_vae(tiny_pipelines, tmp_path)
    alone = {
        **own,
        "loss.logvar": torch.zeros(()),
        "loss.discriminator.main.0.bias": own["quant_conv.bias"],
    }
    torch.save({"state_dict": alone}, tmp_path / "alone.ckpt")
    torch.save({f"first_stage_model.{k}": t for k, t in own.items()}, tmp_path / "whole.ckpt")
    for name in ("alone", "whole"):
        assert is_moved(read_vae(tmp_path / f"{name}.ckpt", prior.vae), prior)
    torch.save({"a": torch.zeros(1)}, tmp_path / "none.ckpt")
    with pytest.raises(WeightsMissing, match=r"holds no VAE: neither first_stage_model\.\*"):
        read_vae(tmp_path / "none.ckpt", prior.vae)
    del own["decoder.conv_out.bias"]
    torch.save(own, tmp_path / "part.ckpt")
    with pytest.raises(UnsupportedModel, match=r"decoder\.conv_out\.bias \(absent"):
        read_vae(tmp_path / "part.ckpt", prior.vae)


def test_the_checkpoints_own_vae_serves_unless_another_is_named(tiny_pipelines, tmp_path) -> None:
    prior = load_folder(tiny_pipelines["sd1"], CPU)
    model = tiny_viton(prior)
    with torch.random.fork_rng(devices=[]):
        mapper = ContextMapper(ContextSettings(model.parts.clip.width, 5, 16))
    tensors = original({**parts_of(model), "mapper": mapper}, model.denoiser.unet.unet.config)
    own = {f"first_stage_model.{k}": t for k, t in moved_vae(tiny_pipelines, tmp_path).items()}
    torch.save({**tensors, **own}, tmp_path / "VITONHD.ckpt")
    model.parts.clip.model.save_pretrained(tmp_path / "clip")
    config = StableVitonConfig(str(tmp_path / "VITONHD.ckpt"), str(tmp_path / "clip"))
    assert is_moved(read_stable_viton(config, prior, image_hw=SIZE).denoiser.vae, prior)
    named = replace(config, vae=str(tmp_path / "sd1.safetensors"))
    vae = read_stable_viton(named, prior, image_hw=SIZE).denoiser.vae
    assert torch.equal(vae.quant_conv.weight, prior.vae.quant_conv.weight)


def test_other_files_are_refused(tiny_pipelines, tmp_path) -> None:
    prior = load_folder(tiny_pipelines["sd1"], CPU)
    tiny_viton(prior).parts.clip.model.save_pretrained(tmp_path / "clip")

    def read(name: str) -> None:
        config = StableVitonConfig(str(tmp_path / name), str(tmp_path / "clip"))
        read_stable_viton(config, prior, image_hw=SIZE)

    torch.save(
        {"state_dict": {"model.diffusion_model.foo.weight": torch.zeros(1)}}, tmp_path / "a.ckpt"
    )
    with pytest.raises(UnsupportedModel, match="belong nowhere in a StableVITON"):
        read("a.ckpt")
    torch.save({"state_dict": {}, "callbacks": StableVitonConfig("a", "b")}, tmp_path / "b.ckpt")
    with pytest.raises(UnsafeWeights, match="more than tensors"):
        read("b.ckpt")

"""Builders of tiny real diffusers and transformers models, written to disk as stock pipelines.

Weights are random but fixed by a seed. Nothing here imitates a model: each folder opens with
``DiffusionPipeline.from_pretrained``. Recipe of the CLIP tokenizer: 256 bytes, the same with the
end-of-word mark and two specials, no merges.

    folder = write_pipeline(tmp_path / "sd1", "sd1")
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Literal

import pytest
import torch

__all__ = [
    "PIPELINE_KINDS",
    "LatentSpec",
    "tiny_pipelines",
    "write_pipeline",
    "write_refiner",
    "write_single_file",
]

PipelineKind = Literal["sd1", "sd2_v", "sdxl", "pocket"]
PIPELINE_KINDS: tuple[PipelineKind, ...] = ("sd1", "sd2_v", "sdxl", "pocket")

LatentSpec = {"sample_size": 8, "latent_channels": 4}
TEXT_WIDTH = 16
SEED = 7


@pytest.fixture(scope="session")
def tiny_pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stock pipeline folders by kind. Tests copy a folder before they change it."""
    root = tmp_path_factory.mktemp("pipelines")
    return {kind: write_pipeline(root / kind, kind) for kind in PIPELINE_KINDS}


def write_pipeline(folder: Path, kind: PipelineKind) -> Path:
    """Write a stock pipeline folder of the given kind and return the folder."""
    builders = {"sd1": _sd1, "sd2_v": _sd2_v, "sdxl": _sdxl, "pocket": _pocket}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        builders[kind](folder).save_pretrained(folder)
    return folder


def _sd1(folder: Path):
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    scheduler = PNDMScheduler(**_sd_betas(), skip_prk_steps=True, steps_offset=1)
    scheduler.register_to_config(clip_sample=False)
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_clip(folder),
        tokenizer=_clip_tokenizer(folder),
        unet=_unet(),
        scheduler=scheduler,
        **_no_safety(),
    )


def _sd2_v(folder: Path):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    scheduler = DDIMScheduler(
        **_sd_betas(), prediction_type="v_prediction", clip_sample=False, steps_offset=1
    )
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_clip(folder),
        tokenizer=_clip_tokenizer(folder),
        unet=_unet(use_linear_projection=True),
        scheduler=scheduler,
        **_no_safety(),
    )


def _sdxl(folder: Path):
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    ids = 6
    unet = _unet(
        cross_attention_dim=2 * TEXT_WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=TEXT_WIDTH + ids * 8,
        use_linear_projection=True,
    )
    scheduler = EulerDiscreteScheduler(**_sd_betas(), steps_offset=1)
    scheduler.register_to_config(clip_sample=False)
    return StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025),
        text_encoder=_clip(folder),
        text_encoder_2=_clip(folder, projection=True),
        tokenizer=_clip_tokenizer(folder),
        tokenizer_2=_clip_tokenizer(folder),
        unet=unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def write_refiner(folder: Path) -> Path:
    """Write an SDXL refiner's folder: one text encoder, the second, and quality scores."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline

    ids = 5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        unet = _unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=TEXT_WIDTH + ids * 8,
            use_linear_projection=True,
        )
        scheduler = EulerDiscreteScheduler(**_sd_betas(), steps_offset=1)
        scheduler.register_to_config(clip_sample=False)
        StableDiffusionXLImg2ImgPipeline(
            vae=_vae(scaling_factor=0.13025),
            text_encoder=None,
            text_encoder_2=_clip(folder, projection=True),
            tokenizer=None,
            tokenizer_2=_clip_tokenizer(folder),
            unet=unet,
            scheduler=scheduler,
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        ).save_pretrained(folder)
    return folder


def _pocket(folder: Path):
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import BertConfig, BertModel

    tokenizer = _bert_tokenizer(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    config.use_attention_mask = True
    scheduler = DDIMScheduler(
        **_sd_betas(), prediction_type="v_prediction", clip_sample=False, steps_offset=1
    )
    return StableDiffusionPipeline(
        vae=_vae(widths=(8, 8, 16)),
        text_encoder=BertModel(config).eval(),
        tokenizer=tokenizer,
        unet=_unet(),
        scheduler=scheduler,
        **_no_safety(),
    )


def _sd_betas() -> dict:
    return {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _no_safety() -> dict:
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _unet(cross_attention_dim: int = TEXT_WIDTH, **overrides):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LatentSpec["sample_size"],
        in_channels=LatentSpec["latent_channels"],
        out_channels=LatentSpec["latent_channels"],
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=8,
        cross_attention_dim=cross_attention_dim,
        **overrides,
    ).eval()


def _vae(widths: tuple[int, ...] = (8, 16), scaling_factor: float = 0.18215):
    from diffusers import AutoencoderKL

    levels = len(widths)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=LatentSpec["latent_channels"],
        norm_num_groups=8,
        scaling_factor=scaling_factor,
        sample_size=LatentSpec["sample_size"] * 2 ** (levels - 1),
    ).eval()


def _clip(folder: Path, *, projection: bool = False):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    size = len(_clip_tokenizer(folder))
    config = CLIPTextConfig(
        vocab_size=size,
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=TEXT_WIDTH,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def _clip_tokenizer(folder: Path):
    from transformers import CLIPTokenizer

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + n for n in range(256 - len(printable))]
    symbols = [chr(code) for code in (*printable, *others)]
    words = [*symbols, *(s + "</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    vocab, merges = folder.parent / "clip_vocab.json", folder.parent / "clip_merges.txt"
    folder.parent.mkdir(parents=True, exist_ok=True)
    vocab.write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    merges.write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer(str(vocab), str(merges), model_max_length=77)


def _bert_tokenizer(folder: Path):
    from transformers import BertTokenizer

    letters = string.ascii_lowercase + string.digits
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *string.punctuation]
    words += [f"##{letter}" for letter in letters]
    words += ["duck", "mushroom", "red", "purple", "front", "back", "side", "overhead", "view"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    return BertTokenizer(vocab={w: i for i, w in enumerate(words)}, model_max_length=24)


def write_single_file(pipeline_folder: Path, target: Path) -> Path:
    """Write an ``sd1`` pipeline folder as one original-layout (LDM) ``.safetensors`` file."""
    from safetensors.torch import load_file, save_file

    unet = load_file(pipeline_folder / "unet" / "diffusion_pytorch_model.safetensors")
    vae = load_file(pipeline_folder / "vae" / "diffusion_pytorch_model.safetensors")
    text = load_file(pipeline_folder / "text_encoder" / "model.safetensors")
    tensors = {f"model.diffusion_model.{_ldm_unet_key(k)}": v for k, v in unet.items()}
    for key, value in vae.items():
        is_attention = ".attentions." in key and value.ndim == 2
        tensors[f"first_stage_model.{_ldm_vae_key(key)}"] = (
            value[:, :, None, None] if is_attention else value
        )
    for key, value in text.items():
        name = key if key.startswith("text_model.") else f"text_model.{key}"
        tensors[f"cond_stage_model.transformer.{name}"] = value
    save_file({k: v.contiguous() for k, v in tensors.items()}, target)
    return target


_UNET_PREFIXES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
}
_RESNET_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _ldm_unet_key(key: str) -> str:
    prefix = max((p for p in _UNET_PREFIXES if key.startswith(p + ".")), key=len)
    rest = key[len(prefix) :]
    if ".resnets." in prefix:
        part = rest.split(".")[1]
        rest = rest.replace(part, _RESNET_PARTS[part], 1)
    return _UNET_PREFIXES[prefix] + rest


def _ldm_vae_key(key: str) -> str:
    top = 1  # index of the coarsest of the two levels
    table = {
        "encoder.down_blocks.0.downsamplers.0.": "encoder.down.0.downsample.",
        "decoder.up_blocks.0.upsamplers.0.": f"decoder.up.{top}.upsample.",
        "mid_block.resnets.0.": "mid.block_1.",
        "mid_block.resnets.1.": "mid.block_2.",
        "mid_block.attentions.0.": "mid.attn_1.",
        "conv_norm_out.": "norm_out.",
        "conv_shortcut.": "nin_shortcut.",
        "group_norm.": "norm.",
        "to_q.": "q.",
        "to_k.": "k.",
        "to_v.": "v.",
        "to_out.0.": "proj_out.",
    }
    for level in (0, 1):
        table[f"encoder.down_blocks.{level}.resnets."] = f"encoder.down.{level}.block."
        table[f"decoder.up_blocks.{level}.resnets."] = f"decoder.up.{top - level}.block."
    for theirs, ours in table.items():
        key = key.replace(theirs, ours)
    return key

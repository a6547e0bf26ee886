"""Priors of full size with random weights, written as stock diffusers folders.

Time and memory of a step do not depend on the values of the weights, only on their number, shapes
and format. So the architectures' public configurations are enough to measure what a preset takes,
and nothing has to be downloaded. What such a prior predicts is noise: no picture of it means
anything.

    folder = write_prior(Path("weights"), "sdxl_refiner", device="cuda")
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["MODELS", "Sizes", "write_mvdream", "write_prior"]

BETAS = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
}
SD21_UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
SD21_TEXT = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
}
REFINER_UNET = {
    "sample_size": 128,
    "block_out_channels": (384, 768, 1536, 1536),
    "attention_head_dim": (6, 12, 24, 24),
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 4,
    "use_linear_projection": True,
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2560,
}
REFINER_TEXT = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
VOCABULARY, LONGEST = 49408, 77


@dataclass(frozen=True)
class Model:
    """One stock folder."""

    unet: Mapping[str, Any]
    text: Mapping[str, Any]
    vae: Mapping[str, Any]
    prediction_type: str = "epsilon"
    variant: str | None = None
    is_refiner: bool = False
    same_weights: str | None = None
    """A model whose weights, all of them, serve for this one too."""


MODELS: dict[str, Model] = {
    "sd21_base": Model(SD21_UNET, SD21_TEXT, VAE),
    # Trained at 768 px and on v: prolificdreamer's critic. VAE and text encoder are the base's.
    "sd21": Model(
        {**SD21_UNET, "sample_size": 96},
        SD21_TEXT,
        VAE,
        prediction_type="v_prediction",
        same_weights="sd21_base",
    ),
    "sdxl_refiner": Model(
        REFINER_UNET,
        REFINER_TEXT,
        {**VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        variant="fp16",
        is_refiner=True,
    ),
}


@dataclass(frozen=True)
class Sizes:
    """Full size, or all widths and sides divided, to try the code on a CPU."""

    divisor: int = 1

    def unet(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a denoiser."""
        if self.divisor == 1:
            return dict(config)
        small = {
            "sample_size": config["sample_size"] // self.divisor,
            "block_out_channels": (64,) * 4,
            "attention_head_dim": 2,
            "cross_attention_dim": 32,
            "layers_per_block": 1,
        }
        if "addition_embed_type" in config:
            small |= {
                "transformer_layers_per_block": 1,
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 32 + 5 * 8,
            }
        return {**config, **small}

    def text(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a text encoder."""
        if self.divisor == 1:
            return dict(config)
        heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 32}
        return {**config, "hidden_size": 32, "intermediate_size": 64, **heads}

    def vae(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of an autoencoder."""
        if self.divisor == 1:
            return dict(config)
        return {**config, "block_out_channels": (64,) * 4, "layers_per_block": 1}


def write_prior(root: Path, name: str, *, device: str, sizes: Sizes = Sizes()) -> Path:
    """The folder of one of ``MODELS`` below ``root``, written unless it is there."""
    folder, model = root / name, MODELS[name]
    if (folder / "model_index.json").is_file():
        return folder
    encoder = "text_encoder_2" if model.is_refiner else "text_encoder"
    if model.same_weights:
        shared = write_prior(root, model.same_weights, device=device, sizes=sizes)
        _link(shared, folder)
        _write_json(folder / "unet/config.json", _unet_file(shared, model, sizes))
    else:
        _write_modules(folder, model, encoder, device=device, sizes=sizes)
    _write_json(
        folder / "scheduler/scheduler_config.json",
        {**BETAS, "prediction_type": model.prediction_type},
    )
    _write_json(folder / "model_index.json", _index(model, encoder))  # last: the folder is whole
    return folder


def write_mvdream(root: Path, *, device: str, sizes: Sizes = Sizes()) -> Path:
    """The multi-view denoiser trained from ``sd21_base``, written unless it is there."""
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file

    from image_tools.diffusion.mvdream_weights import unet_config

    path = root / "mvdream" / "sd-v2.1-base-4view.safetensors"
    if path.is_file():
        return path
    base = write_prior(root, "sd21_base", device=device, sizes=sizes)
    settings = json.loads((base / "unet/config.json").read_text())
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config(settings))
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".part")
    tensors = _with_values(unet, device, seed=3).state_dict()
    save_file({name: value.contiguous() for name, value in tensors.items()}, half)
    half.replace(path)
    return path


def _write_modules(folder: Path, model: Model, encoder: str, *, device: str, sizes: Sizes) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    n_words = _write_tokenizer(folder / encoder.replace("text_encoder", "tokenizer"))
    ends = {"bos_token_id": n_words - 2, "eos_token_id": n_words - 1}
    text = CLIPTextConfig(
        **sizes.text(model.text),
        vocab_size=VOCABULARY,
        max_position_embeddings=LONGEST,
        pad_token_id=ends["eos_token_id"],
        **ends,
    )
    text_class = CLIPTextModelWithProjection if model.is_refiner else CLIPTextModel
    with torch.device("meta"):
        modules = {
            "unet": UNet2DConditionModel(**sizes.unet(model.unet)),
            "vae": AutoencoderKL(**sizes.vae(model.vae)),
            encoder: text_class(text),
        }
    for seed, (name, module) in enumerate(modules.items()):
        filled = _with_values(module, device, seed=seed)
        filled.save_pretrained(folder / name, variant=model.variant)
        module.to("meta")  # one at a time in memory


def _with_values(module: nn.Module, device: str, *, seed: int) -> nn.Module:
    """float16 weights that keep numbers of ordinary size through any depth: draws of variance one
    over the inputs, norms of one, biases of zero."""
    module.half().to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                inputs = parameter[0].numel()
                parameter.normal_(0.0, 1.0 / math.sqrt(inputs), generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return module


def _write_tokenizer(folder: Path) -> int:
    """A CLIP tokenizer of single bytes, as files; returns the number of its words.

    Whatever the prompt, the text encoder sees as many tokens as ever.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(code) for code in (*printable, *range(256, 512 - len(printable)))]
    start, end = "<|startoftext|>", "<|endoftext|>"
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), start, end]
    _write_json(folder / "vocab.json", {word: number for number, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    marks = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    _write_json(folder / "special_tokens_map.json", marks)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LONGEST, **marks}
    _write_json(folder / "tokenizer_config.json", settings)
    return len(words)


def _link(source: Path, target: Path) -> None:
    """The same files in another folder, without their contents."""
    for file in source.rglob("*"):
        if file.is_file() and file.name not in ("model_index.json", "scheduler_config.json"):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.unlink(missing_ok=True)
            os.link(file, copy)


def _unet_file(shared: Path, model: Model, sizes: Sizes) -> dict[str, Any]:
    """The linked denoiser's settings, with those of its own."""
    settings = json.loads((shared / "unet/config.json").read_text())
    return {**settings, **sizes.unet(model.unet)}


def _index(model: Model, encoder: str) -> dict[str, Any]:
    text = "CLIPTextModelWithProjection" if model.is_refiner else "CLIPTextModel"
    parts = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        encoder: ["transformers", text],
        encoder.replace("text_encoder", "tokenizer"): ["transformers", "CLIPTokenizer"],
    }
    if not model.is_refiner:
        return {"_class_name": "StableDiffusionPipeline", **parts}
    return {
        "_class_name": "StableDiffusionXLImg2ImgPipeline",
        "text_encoder": [None, None],
        "tokenizer": [None, None],
        "requires_aesthetics_score": True,
        "force_zeros_for_empty_prompt": False,
        **parts,
    }


def _write_json(path: Path, values: Mapping[str, Any] | Sequence[Any]) -> None:
    """Written anew, never into a file that another folder shares."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

"""Trainings that go on from a finished model: its frozen parts, its UNet, and which one it was.

A training folder remembers the UNet it began from (``start.json``), so that a training that is
resumed with another model is refused instead of mixing two.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from studio.errors import ConfigError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["begin_unet", "frozen_parts", "note_start", "unet_digest", "vae_digest"]


def frozen_parts(
    start: Path, device: torch.device
) -> tuple[AutoencoderKL, PreTrainedModel, PreTrainedTokenizerBase]:
    """Autoencoder, text encoder and tokenizer of a pocket folder, in single precision."""
    from diffusers import AutoencoderKL
    from transformers import AutoModel, AutoTokenizer

    vae = AutoencoderKL.from_pretrained(
        start / "vae", torch_dtype=torch.float32, local_files_only=True
    )
    encoder = AutoModel.from_pretrained(start / "text_encoder", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(start / "tokenizer", local_files_only=True)
    vae = vae.to(device).eval().requires_grad_(False)
    return vae, encoder.float().to(device).eval(), tokenizer


def unet_digest(start: Path) -> str:
    """Which UNet a folder holds: 16 hexadecimal digits of its weights' SHA-256."""
    return _digest(start / "unet" / "diffusion_pytorch_model.safetensors")


def vae_digest(start: Path) -> str:
    """Which autoencoder a folder holds, likewise."""
    return _digest(start / "vae" / "diffusion_pytorch_model.safetensors")


def _digest(weights: Path) -> str:
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:16]


def begin_unet(start: Path, work: Path) -> UNet2DConditionModel:
    """The UNet of ``start`` in single precision, noted in ``work`` as what training began from.

    Raises:
        ConfigError: the training in ``work`` began from another model.
    """
    from diffusers import UNet2DConditionModel

    note_start(start, work)
    return UNet2DConditionModel.from_pretrained(
        start / "unet", torch_dtype=torch.float32, local_files_only=True
    )


def note_start(start: Path, work: Path) -> None:
    """Note in ``work`` what its training began from.

    Raises:
        ConfigError: it began from another model.
    """
    note, digest = work / "start.json", unet_digest(start)
    if note.exists() and json.loads(note.read_text())["unet"] != digest:
        raise ConfigError(
            f"The training in {work} began from another model than the one in {start}. "
            "Name that model, or another work folder."
        )
    work.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"unet": digest}) + "\n")

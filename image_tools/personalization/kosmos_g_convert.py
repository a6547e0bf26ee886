"""The public KOSMOS-G checkpoint (arXiv 2310.02992) into a folder of safetensors files.

The authors publish fairseq checkpoints, pickles that hold more than tensors. They are never
unpickled here: ``TensorArchive`` reads tensors alone. Converting is a step of its own, which a user
asks for; nothing converts by itself. The weights are for research only (the authors' disclaimer),
are not part of this package, and may not be passed on with it.

    language model   gpt_model.decoder.*        -> text_model.model.*
    image encoder    img_model.visual.*         -> vision_model.model.*
    connector        img_connector.*            -> image_to_text_projection.*
    aligner          aligner.*                  as it is, without its half for training

Sizes are read from the tensors; heads are 64 wide in all three networks.

    python -m image_tools.personalization.kosmos_g_convert checkpoint_final.pt kosmos-g \\
        --vocabulary unilm/kosmos-g/data
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from image_tools.diffusion.loading import readable_weights
from image_tools.diffusion.weight_writing import write_safetensors
from image_tools.errors import UnsupportedModel, WeightsMissing
from image_tools.personalization.kosmos_g_aligner import AlignerNet
from image_tools.personalization.kosmos_g_configs import AlignerSettings
from image_tools.personalization.kosmos_g_pickle import TensorArchive
from image_tools.personalization.kosmos_g_prompt import PromptTokens
from image_tools.personalization.kosmos_g_vocabulary import DICTIONARY, PIECES, make_tokenizer
from image_tools.personalization.kosmos_g_weights import (
    ALIGNER,
    MLLM,
    TOKENIZER,
    fill_part,
    write_aligner,
)
from renderers.errors import StudioError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import Kosmos2Config

__all__ = [
    "Conversion",
    "aligner_settings",
    "convert_kosmos_g",
    "language_settings",
    "main",
    "stock_name",
]

SECTION = "model"
HEAD_WIDTH = 64
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# Parts that making pictures does not need, or that another model has.
LEFT_OUT = re.compile(
    r"aligner\.(decoder|clip_encoder)|vae\.|diffusion_unet\."
    r"|gpt_model\.decoder\.(output_projection|embed_positions|self_attn_sope|version)"
)
ALIGNER_PREFIX = "aligner."
PREFIXES = {
    "gpt_model.decoder.": "text_model.model.",
    "img_connector.": "image_to_text_projection.",
    "img_model.visual.": "vision_model.model.",
}
VISION_NAMES = (
    (r"class_embedding$", "embeddings.class_embedding"),
    (r"positional_embedding$", "embeddings.position_embedding.weight"),
    (r"conv1\.", "embeddings.patch_embedding."),
    (r"ln_pre\.", "pre_layrnorm."),
    (r"ln_post\.", "post_layernorm."),
    (r"transformer\.resblocks\.(\d+)\.ts_attn\.", r"encoder.layers.\1.self_attn."),
    (r"transformer\.resblocks\.(\d+)\.ln_([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"encoder.layers.\1.mlp.fc1."),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"encoder.layers.\1.mlp.fc2."),
)


@dataclass(frozen=True)
class Conversion:
    """What a conversion did."""

    folder: Path
    """What ``read_kosmos_g`` reads."""
    left_out: tuple[str, ...]
    """Tensors that no part has a place for, beyond those known to be superfluous."""


def stock_name(key: str) -> str | None:
    """What transformers calls a tensor of language model or image encoder; None for others."""
    for prefix, stock in PREFIXES.items():
        if key.startswith(prefix) and not LEFT_OUT.match(key):
            name = key.removeprefix(prefix)
            if prefix == "img_model.visual.":
                name = _vision_name(name)
            return None if name is None else stock + name
    return None


def convert_kosmos_g(
    checkpoint: Path,
    target: Path,
    *,
    vocabulary: Path,
    dtype: torch.dtype = torch.float16,
) -> Conversion:
    """Write the folder that the tool reads.

    Args:
        checkpoint: checkpoint_final.pt, or that of a stage.
        target: the folder to write; it must not exist.
        vocabulary: folder with sentencepiece.bpe.model and dict.txt, or with a tokenizer.json.
        dtype: number format of the files; the authors run the model in half precision.

    Raises:
        WeightsMissing: files are absent or damaged; UnsafeWeights if there is more than tensors.
        UnsupportedModel: the checkpoint or the vocabulary is of another design.
        StudioError: the target is there already.
    """
    checkpoint, target = checkpoint.expanduser(), target.expanduser()
    if target.exists():
        raise StudioError(
            f"'{target}' is there already - expected a new folder. Name another, or remove it."
        )
    partial = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    with TensorArchive(checkpoint, section=SECTION) as archive:
        shapes = {name: archive.shape(name) for name in archive}
        names = {key: stock_name(key) for key in shapes}
        settings = language_settings({n: shapes[k] for k, n in names.items() if n is not None})
        tokenizer = _tokenizer(vocabulary.expanduser(), settings)
        mllm = {n: archive.read(k).to(dtype) for k, n in names.items() if n is not None}
        surplus = _write_mllm(partial / MLLM, settings, mllm, checkpoint)
        own = [k for k in shapes if k.startswith(ALIGNER_PREFIX) and not LEFT_OUT.match(k)]
        aligner = {k.removeprefix(ALIGNER_PREFIX): archive.read(k).to(dtype) for k in own}
        _write_aligner(partial / ALIGNER, aligner, checkpoint)
    unknown = [k for k in shapes if names[k] is None and k not in own and not LEFT_OUT.match(k)]
    (partial / TOKENIZER).mkdir(parents=True)
    tokenizer.save(str(partial / TOKENIZER / "tokenizer.json"))
    partial.replace(target)
    return Conversion(target, tuple(sorted([*unknown, *surplus])))


def language_settings(shapes: Mapping[str, tuple[int, ...]]) -> Kosmos2Config:
    """Settings of the language model and its image encoder, from shapes by their stock names.

    Raises:
        UnsupportedModel: a tensor that tells a size is missing.
    """
    from transformers import Kosmos2Config

    try:
        words, width = shapes["text_model.model.embed_tokens.weight"]
        ffn = shapes["text_model.model.layers.0.ffn.fc1.weight"][0]
        seen, _, patch, _ = shapes["vision_model.model.embeddings.patch_embedding.weight"]
        places = shapes["vision_model.model.embeddings.position_embedding.weight"][0]
        inner = shapes["vision_model.model.encoder.layers.0.mlp.fc1.weight"][0]
        latents = shapes["image_to_text_projection.latent_query"][0]
    except KeyError as error:
        raise UnsupportedModel(
            f"The checkpoint has no tensor for {error}. Expected KOSMOS-G's, with gpt_model, "
            "img_model, img_connector and aligner."
        ) from error
    text = {
        "vocab_size": words,
        "embed_dim": width,
        "layers": _layers(shapes, "text_model.model.layers"),
        "ffn_dim": ffn,
        "attention_heads": max(1, width // HEAD_WIDTH),
    }
    vision = {
        "hidden_size": seen,
        "intermediate_size": inner,
        "num_hidden_layers": _layers(shapes, "vision_model.model.encoder.layers"),
        "num_attention_heads": max(1, seen // HEAD_WIDTH),
        "patch_size": patch,
        "image_size": patch * round((places - 1) ** 0.5),
    }
    return Kosmos2Config(text_config=text, vision_config=vision, latent_query_num=latents)


def aligner_settings(shapes: Mapping[str, tuple[int, ...]]) -> AlignerSettings:
    """Settings of an aligner from its shapes.

    Raises:
        UnsupportedModel: a tensor that tells a size is missing.
    """
    try:
        queries, width = shapes["encoder_query"]
        return AlignerSettings(
            input_width=shapes["encoder_proj.embed_tokens.weight"][1],
            width=width,
            queries=queries,
            layers=_layers(shapes, "encoder.layers"),
            heads=max(1, width // HEAD_WIDTH),
            ffn_width=shapes["encoder.layers.0.ffn.fc1.weight"][0],
            positions=shapes["encoder_proj.embed_positions.weight"][0],
        )
    except (KeyError, ValueError) as error:
        raise UnsupportedModel(
            f"The checkpoint's aligner is incomplete ({error}). Expected one of stage 2 or the "
            "final one; that of stage 1 has no aligner."
        ) from error


def _write_mllm(
    folder: Path, settings: Kosmos2Config, tensors: dict[str, Tensor], source: Path
) -> list[str]:
    """Write the language model; returns names of tensors that it has no place for."""
    from transformers import Kosmos2Model

    with torch.device("meta"):
        model = Kosmos2Model(settings)
    surplus = sorted(set(tensors) - set(model.state_dict()))
    tensors = {name: tensor for name, tensor in tensors.items() if name not in surplus}
    fill_part(lambda: model, tensors, f"The language model of '{source}'")
    settings.architectures = [Kosmos2Model.__name__]
    settings.save_pretrained(folder)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    return surplus


def _write_aligner(folder: Path, tensors: dict[str, Tensor], source: Path) -> None:
    settings = aligner_settings({name: tuple(t.shape) for name, t in tensors.items()})
    build = partial(AlignerNet, settings)
    write_aligner(folder, fill_part(build, tensors, f"The aligner of '{source}'"))


def _tokenizer(folder: Path, settings: Kosmos2Config) -> Tokenizer:
    """The tokenizer of a vocabulary folder, fit for the language model."""
    from tokenizers import Tokenizer

    rows, stock = settings.text_config.vocab_size, folder / "tokenizer.json"
    if stock.is_file():
        with readable_weights(stock, "KOSMOS-G tokenizer"):
            tokenizer = Tokenizer.from_file(str(stock))
    elif (folder / PIECES).is_file():
        tokenizer = make_tokenizer(folder, rows=rows)
    else:
        raise WeightsMissing(
            f"The vocabulary is missing: '{folder}' holds neither tokenizer.json nor {PIECES} with "
            f"{DICTIONARY}. Expected the folder data of the public code, or KOSMOS-2's tokenizer."
        )
    PromptTokens(tokenizer, image_length=settings.latent_query_num, vocabulary=rows)
    return tokenizer


def _vision_name(name: str) -> str | None:
    for pattern, stock in VISION_NAMES:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", stock, name)
    return None


def _layers(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """How many layers have tensors below ``prefix``."""
    found = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    numbers = [int(match[1]) for name in shapes if (match := found.match(name))]
    return 1 + max(numbers, default=-1)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when the folder is written."""
    parser = argparse.ArgumentParser(
        prog="python -m image_tools.personalization.kosmos_g_convert",
        description="Convert the public KOSMOS-G checkpoint, which is for research only.",
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint_final.pt, or that of stage 2")
    parser.add_argument("target", type=Path, help="folder to write, for tool.weights")
    parser.add_argument(
        "--vocabulary", type=Path, required=True, help=f"folder with {PIECES} and {DICTIONARY}"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="number format")
    given = parser.parse_args(arguments)
    try:
        done = convert_kosmos_g(
            given.checkpoint, given.target, vocabulary=given.vocabulary, dtype=DTYPES[given.dtype]
        )
    except StudioError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    if done.left_out:
        sys.stderr.write(f"left out, for no part has a place: {', '.join(done.left_out)}\n")
    sys.stdout.write(f"{done.folder}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

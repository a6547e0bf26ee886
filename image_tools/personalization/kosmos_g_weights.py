"""KOSMOS-G's folder, of safetensors files only.

    mllm/        config.json, model.safetensors: transformers' Kosmos2Model, image encoder included
    aligner/     config.json (AlignerSettings), model.safetensors: the public ``aligner.*`` names
    tokenizer/   tokenizer.json

``kosmos_g_convert`` makes one of the public checkpoint, the trainers write others. The public
weights are for research only and are not part of this package.

    model = read_kosmos_g(Path("~/models/kosmos-g"), dtype=torch.float16)
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from image_tools.diffusion.loading import (
    quiet_libraries,
    read_module,
    read_tensors,
    readable_weights,
)
from image_tools.diffusion.stock_modules import write_module
from image_tools.diffusion.weight_writing import write_safetensors
from image_tools.diffusion.weights import find_weights, fingerprint_files, read_json
from image_tools.errors import UnsupportedModel, WeightsMissing
from image_tools.personalization.kosmos_g import KosmosGModel
from image_tools.personalization.kosmos_g_aligner import AlignerNet
from image_tools.personalization.kosmos_g_configs import AlignerSettings
from image_tools.personalization.kosmos_g_prompt import PromptTokens
from image_tools.personalization.tensor_files import fill

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokenizers import Tokenizer
    from transformers import Kosmos2Model

__all__ = [
    "ALIGNER",
    "MLLM",
    "TOKENIZER",
    "fill_part",
    "kosmos_g_files",
    "prompt_tokens",
    "read_aligner",
    "read_kosmos_g",
    "write_aligner",
    "write_kosmos_g",
]

MLLM, ALIGNER, TOKENIZER = "mllm", "aligner", "tokenizer"
STEM = "model"
ROLE = "KOSMOS-G"

Part = TypeVar("Part", bound=nn.Module)


def kosmos_g_files(folder: Path) -> list[Path]:
    """Every file of the folder that is read.

    Raises:
        WeightsMissing: one is not there; UnsafeWeights if it is a pickle.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise WeightsMissing(
            f"{ROLE}'s folder '{folder}' is not there. Expected one with {MLLM}, {ALIGNER} and "
            f"{TOKENIZER}; convert the public checkpoint (docs/reference_images.md), or correct "
            "the path."
        )
    files = [file for part in (MLLM, ALIGNER) for file in _weight_files(folder / part)]
    settings = [folder / MLLM / "config.json", folder / ALIGNER / "config.json"]
    for path in (*settings, folder / TOKENIZER / "tokenizer.json"):
        if not path.is_file():
            raise WeightsMissing(
                f"{ROLE}'s {path.parent.name} is incomplete: no '{path}'. Expected a folder as the "
                "converter writes it; convert the checkpoint again."
            )
        files.append(path)
    return files


def read_kosmos_g(folder: Path, dtype: torch.dtype = torch.float32) -> KosmosGModel:
    """Read a folder; the model is on the CPU, frozen and in evaluation.

    Raises:
        WeightsMissing: files are absent or damaged; UnsafeWeights if they are pickles.
        UnsupportedModel: the parts do not belong together, or are of another design.
    """
    from tokenizers import Tokenizer
    from transformers import Kosmos2Model

    folder = folder.expanduser()
    files = kosmos_g_files(folder)
    reader = partial(Kosmos2Model.from_pretrained, dtype=dtype)
    mllm = read_module(reader, folder / MLLM, None, f"{ROLE} language model")
    path = folder / TOKENIZER / "tokenizer.json"
    with readable_weights(path, f"{ROLE} tokenizer"):
        tokenizer = Tokenizer.from_file(str(path))
    model = KosmosGModel(
        mllm,
        read_aligner(folder / ALIGNER).to(dtype),
        prompt_tokens(tokenizer, mllm),
        fingerprint=fingerprint_files(files, str(dtype)),
    )
    return model.eval().requires_grad_(False)


def prompt_tokens(tokenizer: Tokenizer, mllm: Kosmos2Model) -> PromptTokens:
    """A tokenizer with the limits of its language model."""
    text = mllm.config.text_config
    return PromptTokens(
        tokenizer,
        image_length=mllm.config.latent_query_num,
        max_length=text.max_position_embeddings,
        vocabulary=text.vocab_size,
    )


def read_aligner(folder: Path) -> AlignerNet:
    """Read the half of an aligner that is used; what exists for training alone is left out.

    Raises:
        WeightsMissing: files are absent or damaged; UnsafeWeights if they are pickles.
        UnsupportedModel: tensors that do not belong, are missing, or have other shapes.
    """
    role = f"{ROLE} aligner"
    settings = _read_settings(folder, role)
    tensors = read_tensors(_weight_files(folder), role)
    tensors = {k: t.float() for k, t in tensors.items() if not k.startswith("decoder")}
    return fill_part(partial(AlignerNet, settings), tensors, f"The aligner in '{folder}'")


def fill_part(build: Callable[[], Part], tensors: Mapping[str, Tensor], what: str) -> Part:
    """A part of the model with exactly these tensors.

    Raises:
        UnsupportedModel: naming the first that differ.
    """
    return fill(build, tensors, what=what, expected="the tensors of a KOSMOS-G checkpoint")


def write_aligner(folder: Path, aligner: AlignerNet) -> None:
    """Write an aligner, with the half for training where it has one."""
    write_safetensors(folder / f"{STEM}.safetensors", aligner.state_dict(), {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(asdict(aligner.settings), indent=2) + "\n")


def write_kosmos_g(folder: Path, model: KosmosGModel) -> None:
    """Write all parts, so that ``read_kosmos_g`` gives the same model."""
    with quiet_libraries():
        write_module(model.mllm, folder / MLLM)
    write_aligner(folder / ALIGNER, model.aligner)
    model.tokens.save(folder / TOKENIZER / "tokenizer.json")


def _weight_files(folder: Path) -> list[Path]:
    return find_weights(folder, STEM, role=f"{ROLE} {folder.name}")


def _read_settings(folder: Path, role: str) -> AlignerSettings:
    content = read_json(folder / "config.json", role=f"{role}'s settings")
    names = {field.name for field in fields(AlignerSettings)}
    try:
        if set(content) != names:
            raise ValueError(f"its keys are {', '.join(sorted(content))}")
        return AlignerSettings(**content)
    except (TypeError, ValueError) as error:
        raise UnsupportedModel(
            f"'{folder / 'config.json'}' does not describe an aligner ({error}). Expected "
            f"{', '.join(sorted(names))}; convert the checkpoint again."
        ) from error

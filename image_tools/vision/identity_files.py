"""Face embeddings in files, made by any program: one vector, or several of the same person.

    .npy           numbers alone
    .safetensors   the tensor ``embedding``, or the only one there is

Several vectors are averaged. Nothing is normalised: whether a tool wants raw or normed embeddings
is between it and the file. A tool that wants raw ones reads its files by ``read_raw_identity``,
which tells the log of a normed one.

    embedding = read_identity(Path("me.npy"), width=512)
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.loading import readable_weights
from image_tools.errors import UnsafeWeights, UnsupportedModel, WeightsMissing

__all__ = ["check_identity", "read_identity", "read_raw_identity"]

logger = logging.getLogger(__name__)

ROLE = "face embedding"
KEY = "embedding"
# Raw embeddings are many times as long; a mean of normed ones is hardly shorter.
NORMED = (0.9, 1.001)


def read_identity(path: Path | str, *, width: int) -> Float[Tensor, " width"]:
    """An embedding of so many numbers.

    Raises:
        WeightsMissing: there is no such file, or it holds no embedding; UnsafeWeights for a pickle.
        UnsupportedModel: embeddings of another width.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsMissing(
            f"The {ROLE} '{path}' is not there. Expected a .npy or .safetensors file; correct the "
            "path, or name a photo instead."
        )
    if path.suffix == ".npy":
        found = _read_npy(path)
    elif path.suffix == ".safetensors":
        found = _read_safetensors(path)
    else:
        raise WeightsMissing(
            f"The {ROLE} is in '{path.name}'. Expected a .npy or .safetensors file; save it as one."
        )
    rows = found.reshape(-1, found.shape[-1]) if found.ndim else found.reshape(1, 1)
    check_identity(rows, width=width, source=f"'{path}'")
    return rows.mean(dim=0)


def read_raw_identity(path: Path | str, *, width: int) -> Float[Tensor, " width"]:
    """The same for tools that were trained on raw embeddings.

    Raises:
        StudioError: as ``read_identity``.
    """
    found = read_identity(path, width=width)
    least, most = NORMED
    if least < float(found.norm()) < most:
        logger.warning(
            "The %s in '%s' has length %.2f, so it was normed - expected a raw one, which is "
            "what the tool learned from. Save insightface's embedding, not its normed_embedding.",
            *(ROLE, path, float(found.norm())),
        )
    return found


def check_identity(embedding: Float[Tensor, "*b d"], *, width: int, source: str) -> None:
    """Refuse embeddings that a tool was not made for.

    Args:
        embedding: numbers of one face or of several.
        width: what the tool reads.
        source: where they come from, for the message.

    Raises:
        UnsupportedModel: they have another width, or are no numbers.
    """
    if embedding.shape[-1] != width:
        hint = (
            "These weights were trained on InsightFace's 512 numbers: install insightface and set "
            "faces.kind=insightface, or give a file with such an embedding."
            if width == 512
            else "Use the face analyser that the weights were trained with."
        )
        raise UnsupportedModel(
            f"The {ROLE} of {source} has {embedding.shape[-1]} numbers - expected {width}. {hint}"
        )
    if not bool(torch.isfinite(embedding).all()):
        raise UnsupportedModel(
            f"The {ROLE} of {source} has values that are no numbers. Expected finite ones; make it "
            "again."
        )


def _read_npy(path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False)).float()
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise UnsafeWeights(
                f"The {ROLE} '{path}' is pickled, and pickles can run code when opened. Save plain "
                "numbers: numpy.save(path, embedding)."
            ) from error
        raise _unreadable(path, error) from error
    except (OSError, EOFError, TypeError) as error:
        raise _unreadable(path, error) from error


def _read_safetensors(path: Path) -> Tensor:
    from safetensors.torch import load_file

    with readable_weights(path, ROLE):
        tensors = load_file(path)
    if KEY not in tensors and len(tensors) != 1:
        raise WeightsMissing(
            f"'{path}' holds {len(tensors)} tensors ({', '.join(sorted(tensors)[:5])}) and none is "
            f"called {KEY}. Expected one tensor, or that name."
        )
    return tensors.get(KEY, next(iter(tensors.values()))).float()


def _unreadable(path: Path, error: Exception) -> WeightsMissing:
    return WeightsMissing(
        f"The {ROLE} '{path}' cannot be read ({error}). Expected an undamaged .npy file; save it "
        "again."
    )

"""Adapters in files of two layouts with the same names: flat in .safetensors, nested in pickles.

    image_proj.norm.weight                    in .safetensors
    {"image_proj": {"norm.weight": ...}}      in .bin, .pt and .pth

The second is a pickle, opened by ``torch.load(weights_only=True)`` alone, which builds no objects.

    tensors = read_flat(path, "IP-Adapter")
    adapter = fill(partial(build, settings), tensors, what=f"'{path}'", expected="...")
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from image_tools.diffusion.loading import read_tensors, readable_weights
from image_tools.diffusion.weight_writing import write_safetensors
from image_tools.errors import UnsafeWeights, UnsupportedModel, WeightsMissing

__all__ = ["PICKLED", "fill", "read_flat", "tensors_under", "write_flat"]

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
SHOWN_KEYS = 5

Module = TypeVar("Module", bound=nn.Module)


def read_flat(path: Path, role: str) -> dict[str, Tensor]:
    """Tensors of a file by their flat names; of a training's checkpoint, those of its state_dict.

    Raises:
        WeightsMissing: absent or damaged; UnsafeWeights: a pickle with more than tensors in it.
    """
    if not path.is_file():
        raise WeightsMissing(
            f"Weights for the {role} are missing: no file '{path}'. Expected a .safetensors or "
            ".bin file; correct the path."
        )
    if path.suffix not in PICKLED:
        return read_tensors([path], role)
    with readable_weights(path, role):
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise UnsafeWeights(
                f"'{path}' holds more than tensors, or is damaged, and reading it could run code. "
                f"Expected the tensors of the {role} alone; get it as .safetensors."
            ) from error
        inner = loaded.get("state_dict") if isinstance(loaded, Mapping) else None
        return _flat(loaded if inner is None else inner, "")


def tensors_under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, by the rest of their names."""
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def write_flat(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors in the layout that the file's ending means; it appears whole or not at all."""
    if path.suffix not in PICKLED:
        write_safetensors(path, tensors, {"format": "pt"})
        return
    nested: dict[str, dict[str, Tensor] | Tensor] = {}
    for name, tensor in tensors.items():
        part, dot, rest = name.partition(".")
        own = tensor.detach().cpu().contiguous()
        if dot:
            nested.setdefault(part, {})[rest] = own
        else:
            nested[part] = own
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    torch.save(nested, partial)
    partial.replace(path)


def fill(
    build: Callable[[], Module], tensors: Mapping[str, Tensor], *, what: str, expected: str
) -> Module:
    """A module of a file's tensors, frozen and in evaluation mode.

    Args:
        build: makes the module; it is called without memory for the weights.
        tensors: by the module's names.
        what: what has the tensors, for the error.
        expected: what should have been given, for the error, without a full stop.

    Raises:
        UnsupportedModel: names or shapes do not fit.
    """
    with torch.device("meta"):
        module = build()
    wanted = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    actual = {name: tuple(t.shape) for name, t in tensors.items()}
    wrong = sorted(n for n in {*actual, *wanted} if actual.get(n) != wanted.get(n))
    if wrong:
        said = ", ".join(
            f"{n} ({actual.get(n, 'absent')}, expected {wanted.get(n, 'nothing')})"
            for n in wrong[:SHOWN_KEYS]
        )
        raise UnsupportedModel(
            f"{what} does not fit in {len(wrong)} tensors: {said}. Expected {expected}."
        )
    module.load_state_dict(dict(tensors), strict=True, assign=True)
    return module.eval().requires_grad_(False)


def _flat(content: object, prefix: str) -> dict[str, Tensor]:
    """Tensors of nested dictionaries, names joined by dots; numbers and the like are left out."""
    if isinstance(content, Tensor):
        return {prefix: content}
    if not isinstance(content, Mapping):
        return {}
    found: dict[str, Tensor] = {}
    for name, part in content.items():
        found |= _flat(part, f"{prefix}.{name}" if prefix else str(name))
    return found

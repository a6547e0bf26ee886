"""TensorFlow.js graph models: their nodes and weights, read without TensorFlow.

A model is a JSON file (topology and a manifest of weights) and the binary files that it names.
Weights lie one behind the other; those that were quantised are float16, or integers with a scale
and a minimum.

    model = read_tfjs(Path("package/models/facemesh.json"))
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from image_tools.errors import WeightsMissing

__all__ = ["TfjsModel", "TfjsNode", "read_tfjs"]

STORED = {"float32": np.float32, "int32": np.int32, "bool": np.bool_, "uint8": np.uint8}
QUANTISED = {"float16": np.float16, "uint8": np.uint8, "uint16": np.uint16}


@dataclass(frozen=True)
class TfjsNode:
    """One operation of TensorFlow's."""

    name: str
    op: str
    inputs: tuple[str, ...]
    """Names of other nodes; those that only order the evaluation are left out."""
    attributes: Mapping[str, Any]
    """As plain Python values."""


@dataclass(frozen=True)
class TfjsModel:
    """A graph and its constants."""

    nodes: Mapping[str, TfjsNode]
    """By name, in the order of the file."""
    constants: Mapping[str, np.ndarray]
    """Values of the nodes of kind Const, whose type is float32 where they were quantised."""
    outputs: Mapping[str, str]
    """Names of nodes by the name that the signature gives them."""


def read_tfjs(path: Path) -> TfjsModel:
    """Read a model from its JSON file.

    Raises:
        WeightsMissing: it or its weights are absent, cut off or no graph model.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        nodes = [_node(raw) for raw in content["modelTopology"]["node"]]
        constants = _constants(content["weightsManifest"], path.parent)
        outputs = content["signature"]["outputs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsMissing(
            f"The network '{path}' cannot be read ({error!r}). Expected a TensorFlow.js graph "
            "model: a .json file and the .bin files that it names beside it. Unpack the package "
            "again."
        ) from error
    return TfjsModel(
        {node.name: node for node in nodes},
        constants,
        {name: _bare(said["name"]) for name, said in outputs.items()},
    )


def _node(raw: Mapping[str, Any]) -> TfjsNode:
    inputs = tuple(_bare(name) for name in raw.get("input", ()) if not name.startswith("^"))
    attributes = {key: _attribute(value) for key, value in raw.get("attr", {}).items()}
    return TfjsNode(raw["name"], raw["op"], inputs, attributes)


def _bare(name: str) -> str:
    """A node's name without the number of its output."""
    return name.partition(":")[0]


def _attribute(value: Mapping[str, Any]) -> Any:
    ((kind, content),) = value.items()
    if kind == "list":
        ((inner, items),) = content.items() or (("i", []),)
        return [_attribute({inner: item}) for item in items]
    if kind == "s":
        return base64.b64decode(content).decode()
    return int(content) if kind == "i" else content


def _constants(manifest: list[Mapping[str, Any]], folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for group in manifest:
        data = b"".join((folder / name).read_bytes() for name in group["paths"])
        start = 0
        for weight in group["weights"]:
            packing = weight.get("quantization")
            stored = QUANTISED[packing["dtype"]] if packing else STORED[weight["dtype"]]
            values = np.frombuffer(data, stored, math.prod(weight["shape"]), start)
            start += values.nbytes
            found[weight["name"]] = _unpacked(values, packing).reshape(weight["shape"])
    return found


def _unpacked(values: np.ndarray, packing: Mapping[str, Any] | None) -> np.ndarray:
    if packing is None:
        return values
    if packing["dtype"] == "float16":
        return values.astype(np.float32)
    return values.astype(np.float32) * packing["scale"] + packing["min"]

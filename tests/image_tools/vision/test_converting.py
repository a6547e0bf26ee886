"""From a TensorFlow.js graph to our two files: a small network written down by hand."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from image_tools.errors import UnsupportedModel, WeightsMissing
from image_tools.vision import convert
from image_tools.vision.convert import NETWORKS, NetworkSource, convert_network
from image_tools.vision.graph import load_graph
from image_tools.vision.paths import VISION_FOLDER

SOURCE = NetworkSource(
    "tiny", 6, (-1.0, -2.0, -3.0), {"rows": "named"}, "nobody", span=2.0, channels="bgr"
)
KERNEL = np.linspace(-1.0, 1.0, 3 * 3 * 3 * 4, dtype=np.float32).reshape(3, 3, 3, 4)
SCALE = np.array([0.5, -1.0, 2.0, 1.5], dtype=np.float32)
SHIFT = np.array([0.25, 0.5, -0.5, 1.0], dtype=np.float32)
DEPTH = np.array([0, 85, 170, 255], dtype=np.uint8).reshape(1, 1, 4, 1)
INTEGERS = {
    "pads": np.array([[0, 0], [0, 0], [0, 0], [1, 2]], dtype=np.int32),
    "first": np.array([0], dtype=np.int32),
    "second": np.array([1], dtype=np.int32),
    "cells": np.array(9, dtype=np.int32),
    "channels": np.array(7, dtype=np.int32),
}
FLOATS = {"kernel": KERNEL, "scale": SCALE, "shift": SHIFT}
LIMITS = {"six": np.array(6.0, np.float32), "zero": np.array(0.0, np.float32)}


def _text(value: str) -> dict:
    return {"s": base64.b64encode(value.encode()).decode()}


def _numbers(*values: int) -> dict:
    return {"list": {"i": [str(value) for value in values]}}


def _conv(name: str, op: str, inputs: list[str], stride: int) -> dict:
    attributes = {"strides": _numbers(1, stride, stride, 1), "padding": _text("SAME")}
    return {"name": name, "op": op, "input": inputs, "attr": attributes}


def nodes() -> list[dict]:
    """Batch norm and clamp after a convolution, a quantised one, and a reshape of the batch."""
    rest = [
        ("scaled", "Mul", ["conv", "scale"]),
        ("shifted", "Add", ["scaled", "shift"]),
        ("relu", "Relu", ["shifted"]),
        ("below", "Minimum", ["relu", "six"]),
        ("clamped", "Maximum", ["below", "zero"]),
        ("sum", "AddV2", ["clamped", "deep"]),
        ("padded", "Pad", ["sum", "pads"]),
        ("shape", "Shape", ["padded"]),
        ("batch", "StridedSlice", ["shape", "first", "second", "second"]),
        ("target", "Pack", ["batch", "cells", "channels"]),
        ("rows", "Reshape", ["padded", "target"]),
        ("result", "Identity", ["rows"]),
        ("unused", "Tanh", ["rows"]),
    ]
    constants = [{"name": n, "op": "Const"} for n in (*FLOATS, *LIMITS, *INTEGERS, "depth")]
    return [
        {"name": "image", "op": "Placeholder"},
        *constants,
        _conv("conv", "Conv2D", ["image", "kernel"], 2),
        _conv("deep", "DepthwiseConv2dNative", ["clamped", "depth"], 1),
        *({"name": name, "op": op, "input": inputs} for name, op, inputs in rest),
    ]


def write(folder, graph: list[dict]) -> None:
    """A model of four floats as halves, one tensor as bytes with a scale, and integers."""
    manifest, data = [], b""
    for name, values in FLOATS.items():
        data += values.astype(np.float16).tobytes()
        packing = {"dtype": "float16"}
        manifest.append({"name": name, "dtype": "float32", "quantization": packing})
        manifest[-1]["shape"] = list(values.shape)
    for name, values in {**LIMITS, **INTEGERS}.items():
        data += values.tobytes()
        manifest.append({"name": name, "dtype": str(values.dtype), "shape": list(values.shape)})
    packing = {"dtype": "uint8", "scale": 2.0 / 255.0, "min": -1.0}
    manifest.append({"name": "depth", "dtype": "float32", "quantization": packing})
    manifest[-1]["shape"] = list(DEPTH.shape)
    data += DEPTH.tobytes()
    (folder / "tiny.bin").write_bytes(data)
    content = {
        "modelTopology": {"node": graph},
        "weightsManifest": [{"paths": ["tiny.bin"], "weights": manifest}],
        "signature": {"outputs": {"named": {"name": "result:0"}}},
    }
    (folder / "tiny.json").write_text(json.dumps(content))


def expected(images: torch.Tensor) -> torch.Tensor:
    """The same by hand."""
    colours = 2.0 * images[..., [2, 1, 0]] - torch.tensor([1.0, 2.0, 3.0])
    pixels = F.pad(colours.movedim(-1, 1), (0, 1, 0, 1))
    kernel = torch.tensor(KERNEL.astype(np.float16).astype(np.float32)).permute(3, 2, 0, 1)
    wide = torch.tensor([1.0, 1.0, 1.0])
    values = F.conv2d(pixels, kernel, None, 2) * torch.tensor(SCALE)[:, None, None]
    clamped = (values + torch.tensor(SHIFT)[:, None, None]).clamp(0.0, 6.0)
    deep = clamped * torch.tensor([-1.0, -1 / 3, 1 / 3, 1.0])[:, None, None]
    total = (clamped + deep).movedim(1, -1)
    zeros = total.new_zeros(*total.shape[:3], len(wide))
    return torch.cat([zeros[..., :1], total, zeros[..., :2]], dim=-1).reshape(-1, 9, 7)


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    write(folder, nodes())
    return folder


def test_a_converted_network_does_what_the_graph_says(models, tmp_path):
    convert_network(SOURCE, models, tmp_path)
    net = load_graph(tmp_path / "tiny.json")
    images = torch.rand(2, 6, 6, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(images)["rows"], expected(images), atol=2e-2, rtol=2e-3)
    kinds = [operation["op"] for operation in net.settings.operations]
    assert kinds == ["conv", "conv", "add", "pad", "reshape"]


def test_large_kernels_in_bytes_are_the_same_but_for_rounding(models, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "SMALL", 50)
    convert_network(SOURCE, models, tmp_path / "halves")
    convert_network(replace(SOURCE, stored="bytes"), models, tmp_path / "bytes")
    tensors = load_file(tmp_path / "bytes" / "tiny.safetensors")
    kernel = tensors["1.weight"]
    assert kernel.dtype == torch.int8
    assert kernel.abs().amax(dim=(1, 2, 3)).tolist() == [127] * 4, "each channel uses all of a byte"
    assert tensors["2.weight"].dtype == torch.float16, "small ones stay"
    halves, whole = (load_graph(tmp_path / name / "tiny.json") for name in ("halves", "bytes"))
    images = torch.rand(2, 6, 6, 3, generator=torch.Generator().manual_seed(0))
    expected_rows, found = halves(images)["rows"], whole(images)["rows"]
    assert 0.0 < float((found - expected_rows).abs().max() / expected_rows.abs().max()) < 0.02


def test_outputs_and_the_image_may_be_nodes_inside(models, tmp_path):
    """What comes before the image, and after the output, is left out."""
    source = replace(SOURCE, outputs={"sum": "sum"}, image="clamped", size=3, channels="rgb")
    convert_network(source, models, tmp_path)
    net = load_graph(tmp_path / "tiny.json")
    assert [operation["op"] for operation in net.settings.operations] == ["conv", "add"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g[-2].update(op="Softplus"), "is a Softplus in a form that is not known"),
        (lambda g: g[12].update(input=["image", "image"]), "'image' is computed"),
        (lambda g: g[12]["attr"].update(dilations=_numbers(1, 2, 2, 1)), "'conv' is dilated"),
        (lambda g: g[12]["attr"].update(strides=_numbers(1, 1, 2, 1)), "strides 1 and 2"),
    ],
)
def test_graphs_of_other_designs_are_refused(tmp_path, change, message):
    graph = nodes()
    change(graph)
    write(tmp_path, graph)
    with pytest.raises(UnsupportedModel, match=message):
        convert_network(SOURCE, tmp_path, tmp_path / "out")


def test_absent_and_cut_off_models_are_refused(models, tmp_path):
    with pytest.raises(WeightsMissing, match=r"other.json' cannot be read"):
        convert_network(NetworkSource("other", 6, (0.0, 0.0, 0.0), {}, ""), models, tmp_path)
    (models / "tiny.bin").write_bytes(b"too short")
    with pytest.raises(WeightsMissing, match=r"cannot be read .* Unpack the package again"):
        convert_network(SOURCE, models, tmp_path)


def test_files_that_do_not_belong_together_are_refused(models, tmp_path):
    convert_network(SOURCE, models, tmp_path)
    content = json.loads((tmp_path / "tiny.json").read_text())
    del content["low"]
    (tmp_path / "tiny.json").write_text(json.dumps(content))
    with pytest.raises(WeightsMissing, match=r"does not fit together .*KeyError\('low'\)"):
        load_graph(tmp_path / "tiny.json")
    (tmp_path / "tiny.safetensors").unlink()
    with pytest.raises(WeightsMissing, match=r"no file .*tiny.safetensors"):
        load_graph(tmp_path / "tiny.json")


@pytest.mark.parametrize("source", NETWORKS, ids=lambda source: source.name)
def test_shipped_networks_say_what_they_are(source):
    content = json.loads((VISION_FOLDER / f"{source.name}.json").read_text())
    assert content["origin"] == source.origin
    assert set(content["outputs"]) == set(source.outputs)
    assert (content["size"], tuple(content["low"])) == (source.size, source.low)

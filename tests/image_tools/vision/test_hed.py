"""HED: the names of its file, its formula, and public weights in another layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from image_tools.errors import UnsafeWeights, UnsupportedModel, WeightsMissing
from image_tools.vision.convert_hed import MEAN_BGR, from_keras, main
from image_tools.vision.hed import DEPTHS, HedNet, load_hed, soft_edges
from renderers.errors import ShapeError

WIDTHS = (2, 3, 4, 5, 5)


def tiny_hed(*, fuse: bool = False) -> HedNet:
    """A small network with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = HedNet(WIDTHS, fuse=nn.Conv2d(5, 1, 1) if fuse else None)
    net.norm.copy_(torch.tensor([120.0, 110.0, 100.0]).reshape(1, 3, 1, 1))
    return net


def images(height: int = 24, width: int = 40) -> torch.Tensor:
    return torch.rand(2, height, width, 3, generator=torch.Generator().manual_seed(0))


def test_a_full_size_network_has_the_tensors_of_the_public_annotator():
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in HedNet().state_dict().items()}
    assert len(shapes) == 1 + 2 * (sum(DEPTHS) + 5)
    assert shapes["norm"] == (1, 3, 1, 1)
    assert shapes["block1.convs.0.weight"] == (64, 3, 3, 3)
    assert shapes["block4.convs.2.weight"] == (512, 512, 3, 3)
    assert shapes["block5.projection.weight"] == (1, 512, 1, 1)
    vgg, projections, norm = 14_714_688, 1472 + 5, 3
    assert sum(np.prod(shape) for shape in shapes.values()) == vgg + projections + norm


@pytest.mark.parametrize("fuse", [False, True])
def test_edges_are_side_outputs_at_the_pictures_size_put_together(fuse):
    """By hand, without the network's own forward."""
    net, tensors, seen = tiny_hed(fuse=fuse), tiny_hed(fuse=fuse).state_dict(), images()
    hidden, sides = 255.0 * seen.movedim(-1, 1) - tensors["norm"], []

    def named(layer: str) -> tuple[torch.Tensor, torch.Tensor]:
        return tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]

    for block, depth in enumerate(DEPTHS, 1):
        hidden = hidden if block == 1 else F.max_pool2d(hidden, 2, ceil_mode=True)
        for k in range(depth):
            hidden = F.conv2d(hidden, *named(f"block{block}.convs.{k}"), padding=1).relu()
        side = F.conv2d(hidden, *named(f"block{block}.projection"))
        sides.append(F.interpolate(side, (24, 40), mode="bilinear", align_corners=False))
    stacked = torch.cat(sides, 1)
    logits = stacked.mean(1)
    if fuse:
        weight = tensors["fuse.weight"][0, :, 0, 0]
        logits = torch.einsum("bkhw,k->bhw", stacked, weight) + tensors["fuse.bias"]
    edges = soft_edges(net, seen)
    assert edges.shape == (2, 24, 40, 3)
    torch.testing.assert_close(edges[..., 0], logits.sigmoid())
    assert torch.equal(edges[..., 0], edges[..., 2])


@pytest.mark.parametrize("fuse", [False, True])
def test_a_file_is_read_as_it_was_written(fuse, tmp_path):
    net, path = tiny_hed(fuse=fuse), tmp_path / "hed.safetensors"
    save_file(net.state_dict(), path)
    assert torch.equal(soft_edges(load_hed(path), images()), soft_edges(net, images()))


def test_pickles_other_networks_and_absent_files_are_refused(tmp_path):
    with pytest.raises(UnsafeWeights, match="edge network are pickled"):
        load_hed(tmp_path / "ControlNetHED.pth")
    with pytest.raises(WeightsMissing, match="edge network are missing"):
        load_hed(tmp_path / "hed.safetensors")
    save_file({"conv.weight": torch.zeros(2)}, tmp_path / "hed.safetensors")
    with pytest.raises(UnsupportedModel, match=r"is no HED network: block1\.convs\.0\.bias"):
        load_hed(tmp_path / "hed.safetensors")
    with pytest.raises(ShapeError, match="images"):
        soft_edges(tiny_hed(), torch.zeros(8, 8, 3))


def keras_arrays() -> dict[str, np.ndarray]:
    """Random arrays in the layout of the authors' network in Keras."""
    rng, arrays, channels = np.random.default_rng(1), {}, 3
    for block, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True), 1):
        for k in range(depth):
            name = f"block{block}/layers/conv2d" + (f"_{k}" if k else "")
            arrays[f"{name}/vars/0"] = rng.normal(size=(3, 3, channels, width)) * 0.1
            arrays[f"{name}/vars/1"], channels = rng.normal(size=width), width
        arrays[f"dsn{block}/vars/0"] = rng.normal(size=(1, 1, width, 1))
        arrays[f"dsn{block}/vars/1"] = rng.normal(size=1)
    arrays |= {"fuse/vars/0": rng.normal(size=(1, 1, 5, 1)), "fuse/vars/1": rng.normal(size=1)}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def test_the_authors_network_sees_blue_first_and_ours_the_same_picture(tmp_path):
    tensors = from_keras(keras_arrays())
    save_file({name: t.contiguous() for name, t in tensors.items()}, tmp_path / "hed.safetensors")
    net, seen = load_hed(tmp_path / "hed.safetensors"), images()
    backwards = 255.0 * seen.flip(-1).movedim(-1, 1) - torch.tensor(MEAN_BGR).reshape(1, 3, 1, 1)
    kernel = torch.from_numpy(keras_arrays()["block1/layers/conv2d/vars/0"]).permute(3, 2, 0, 1)
    theirs = F.conv2d(backwards, kernel, padding=1)
    ours = F.conv2d(255.0 * seen.movedim(-1, 1) - net.norm, net.block1.convs[0].weight, padding=1)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)
    assert net.fuse is not None
    with pytest.raises(UnsupportedModel, match="has no fuse/vars/0"):
        from_keras({name: a for name, a in keras_arrays().items() if "fuse" not in name})


def test_the_annotators_pickle_is_converted_without_being_run(tmp_path):
    net = tiny_hed()
    torch.save(net.state_dict(), tmp_path / "ControlNetHED.pth")
    main([str(tmp_path / "ControlNetHED.pth"), str(tmp_path / "hed.safetensors")])
    stored = load_file(tmp_path / "hed.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    converted = soft_edges(load_hed(tmp_path / "hed.safetensors"), images())
    torch.testing.assert_close(converted, soft_edges(net, images()), atol=0.05, rtol=0)
    with pytest.raises(WeightsMissing, match=r"There is no file .*absent\.pth"):
        main([str(tmp_path / "absent.pth"), str(tmp_path / "x.safetensors")])

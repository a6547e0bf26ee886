"""LaDI-VTON's public files: names and shapes at full size, and tiny ones read back."""

from __future__ import annotations

import pytest
import torch

from image_tools.diffusion.loading import load_folder
from image_tools.errors import UnsupportedModel, WeightsMissing
from image_tools.tryon.emasc import SkipConnections
from image_tools.tryon.extend import TryOnDenoiser
from image_tools.tryon.ladi_configs import (
    AdapterSettings,
    EmascSettings,
    LadiVtonConfig,
    RefinementSettings,
    WarpSettings,
)
from image_tools.tryon.ladi_vton import extra_channels
from image_tools.tryon.ladi_weights import read_ladi, read_skips, read_unet, read_warping
from image_tools.tryon.ladi_words import InversionAdapter
from image_tools.tryon.warp_refine import RefinementNet
from image_tools.tryon.warp_tps import WarpNet
from tests.image_tools.tryon.people import tiny_sample
from tests.image_tools.tryon.tiny_ladi import SIZE, WORDS, tiny_ladi, write_ladi

CPU = torch.device("cpu")


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in module.state_dict().items()}


def conv(name: str, out: int, channels: int, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, channels, size, size), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{k}": (width,) for k in kinds} | {f"{name}.num_batches_tracked": ()}


def test_the_skip_connections_are_the_authors() -> None:
    with torch.device("meta"):
        found = shapes(SkipConnections(EmascSettings()))
    wanted: dict = {}
    pairs = ((128, 128), (128, 256), (128, 512), (256, 512), (512, 512))
    for k, (wide, out) in enumerate(pairs):
        wanted |= conv(f"conv.{k}.0", wide, wide, 3) | conv(f"conv.{k}.2", out, wide, 3)
    assert found == wanted


def test_the_adapter_is_the_authors() -> None:
    with torch.device("meta"):
        found = shapes(InversionAdapter(AdapterSettings()))
    layer = "encoder_layers.0"
    sizes = {f"{layer}.self_attn.{n}_proj": (1280, 1280) for n in ("q", "k", "v", "out")}
    sizes |= {f"{layer}.mlp.fc1": (5120, 1280), f"{layer}.mlp.fc2": (1280, 5120)}
    sizes |= {"layers.0": (5120, 1280), "layers.3": (5120, 5120), "layers.6": (16384, 5120)}
    wanted = {f"{n}.weight": s for n, s in sizes.items()}
    wanted |= {f"{n}.bias": s[:1] for n, s in sizes.items()}
    for name in (f"{layer}.layer_norm1", f"{layer}.layer_norm2", "post_layernorm"):
        wanted |= {f"{name}.weight": (1280,), f"{name}.bias": (1280,)}
    assert found == wanted


def test_the_spline_is_the_authors() -> None:
    with torch.device("meta"):
        found = shapes(WarpNet(WarpSettings()))
    wanted: dict = {}
    for name, channels in (("extractionA", 3), ("extractionB", 21)):
        for k, wide in enumerate((64, 128, 256, 512)):
            wanted |= conv(f"{name}.model.{3 * k}", wide, channels, 4)
            wanted |= norm(f"{name}.model.{3 * k + 2}", wide)
            channels = wide
        wanted |= conv(f"{name}.model.12", 512, 512, 3) | norm(f"{name}.model.14", 512)
        wanted |= conv(f"{name}.model.15", 512, 512, 3)
    regression = "loc_net.regression"
    table = ((0, 512, 192, 4), (3, 256, 512, 4), (6, 128, 256, 3), (9, 64, 128, 3))
    for k, out, channels, size in table:
        wanted |= conv(f"{regression}.conv.{k}", out, channels, size)
        wanted |= norm(f"{regression}.conv.{k + 1}", out)
    wanted |= {f"{regression}.linear.weight": (50, 768), f"{regression}.linear.bias": (50,)}
    wanted |= {"gridGen.inverse_kernel": (28, 28), "gridGen.padding_matrix": (3, 2)}
    wanted |= {"gridGen.target_coordinate_repr": (256 * 192, 28)}
    assert found == wanted


@pytest.mark.parametrize("bias", [False, True])
def test_the_refinement_is_the_authors(bias: bool) -> None:
    with torch.device("meta"):
        found = shapes(RefinementNet(RefinementSettings(bias=bias)))

    def twice(name: str, channels: int, middle: int, out: int) -> dict[str, tuple[int, ...]]:
        made = {f"{name}.double_conv.0.weight": (middle, channels, 3, 3)}
        made |= {f"{name}.double_conv.3.weight": (out, middle, 3, 3)}
        if bias:
            made |= {f"{name}.double_conv.0.bias": (middle,), f"{name}.double_conv.3.bias": (out,)}
        return made | norm(f"{name}.double_conv.1", middle) | norm(f"{name}.double_conv.4", out)

    wanted = twice("inc", 24, 64, 64)
    for k, (channels, out) in enumerate(((64, 128), (128, 256), (256, 512), (512, 512)), 1):
        wanted |= twice(f"down{k}.maxpool_conv.1", channels, out, out)
    for k, (channels, out) in enumerate(((1024, 256), (512, 128), (256, 64), (128, 64)), 1):
        wanted |= twice(f"up{k}.conv", channels, channels // 2, out)
    assert found == wanted | conv("outc.conv", 3, 64, 1)


def test_a_tiny_model_is_read_back(tiny_pipelines, tmp_path) -> None:
    prior = load_folder(tiny_pipelines["sd2_v"], CPU)
    model = tiny_ladi(prior)
    config = write_ladi(model, tmp_path)
    again = read_ladi(config, prior, image_hw=SIZE)
    sample = tiny_sample(rows=1, size=SIZE)
    for one, other in zip(model.conditions(sample), again.conditions(sample), strict=True):
        assert torch.equal(one.text.tokens, other.text.tokens)
        assert torch.equal(one.additions[0].channels, other.additions[0].channels)
    latents, t = torch.randn(1, 4, 16, 12), torch.tensor([500])
    cond, _ = model.conditions(sample)
    outputs = [m.denoiser.predict_output(latents, t, cond) for m in (model, again)]
    assert torch.equal(*outputs)
    assert again.parts.adapter.settings.words == WORDS
    skips = read_skips(tmp_path / "emasc.pth", model.parts.skips.settings)
    assert all(
        torch.equal(skips.state_dict()[n], t) for n, t in model.parts.skips.state_dict().items()
    )


def test_another_denoiser_is_refused(tiny_pipelines, tmp_path) -> None:
    prior = load_folder(tiny_pipelines["sd2_v"], CPU)
    torch.save(prior.unet.state_dict(), tmp_path / "unet.pth")
    with pytest.raises(UnsupportedModel, match="a denoiser of 31 channels"):
        read_unet(tmp_path / "unet.pth", prior.unet, 4)
    with pytest.raises(UnsupportedModel, match="The try-on denoiser takes 4 channels, expected 31"):
        TryOnDenoiser(prior, prior.unet, extra_channels=extra_channels(4), image_hw=SIZE)


def test_absent_and_wrong_files_are_named(tiny_pipelines, tmp_path) -> None:
    prior = load_folder(tiny_pipelines["sd2_v"], CPU)
    with pytest.raises(WeightsMissing, match=r"method\.unet"):
        read_ladi(LadiVtonConfig("no", "no", "no", "no", "no"), prior, image_hw=SIZE)
    torch.save({"tps": {}, "refinement": {}}, tmp_path / "warping.pth")
    with pytest.raises(UnsupportedModel, match="spline and refinement of LaDI-VTON"):
        read_warping(tmp_path / "warping.pth", CPU)

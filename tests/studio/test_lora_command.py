"""`studio lora`: results on stdout, files that load, nothing overwritten, clear refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from image_tools.diffusion.lora_deltas import LoraDelta, LoraFile
from image_tools.diffusion.lora_files import LORA_WEIGHT_NAME, read_lora, write_lora
from image_tools.errors import UnsupportedModel, WeightsMissing
from studio import cli
from studio.commands import lora as command
from studio.commands.lora import MergeRule, Target
from studio.errors import ConfigError
from tests.tiny_models import write_pipeline

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def lora(seed: int = 0, width: int = 768) -> LoraFile:
    """One layer of Stable Diffusion 1.x, alpha unlike the rank."""
    generator = torch.Generator().manual_seed(seed)
    down, up = (torch.randn(*s, generator=generator) for s in ((4, width), (8, 4)))
    return LoraFile({"unet": {LAYER: LoraDelta(down, up, 1.0)}}, {"note": "mine"})


@pytest.fixture
def source(tmp_path) -> Path:
    """A file in diffusers' layout."""
    write_lora(tmp_path / "source.safetensors", lora(), layout="diffusers")
    return tmp_path / "source.safetensors"


def change(path: Path) -> torch.Tensor:
    """What a file changes the layer by."""
    return read_lora(path).sections["unet"][LAYER].weight()


def test_inspect_tells_layout_family_ranks_and_alphas(source, capsys):
    command.inspect(source)
    text = capsys.readouterr().out
    assert "sd1" in text
    # diffusers' layout is written with alpha = rank.
    assert "1 layers, rank 4, alpha 4, 0 convolutions" in text
    assert "mine" in text
    command.inspect(source, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert (facts["layout"], facts["kind"], facts["base_model"]) == ("diffusers", "LoRA", "sd1")
    assert facts["sections"]["unet"]["ranks"] == {"4": 1}
    assert facts["sections"]["unet"]["norm"] == pytest.approx(
        float(change(source).norm()), rel=1e-5
    )
    assert facts["metadata"] == {"note": "mine"}


def test_convert_keeps_the_change_and_scales_cuts_and_rounds_on_request(source, tmp_path, capsys):
    kohya, cut = tmp_path / "kohya.safetensors", tmp_path / "cut"
    command.convert(source, Target(kohya, "kohya"))
    assert capsys.readouterr().out == f"kohya      {kohya}\n"
    assert torch.allclose(change(kohya), change(source), atol=1e-6)
    assert {key.split(".")[1] for key in load_file(kohya)} == {"lora_down", "lora_up", "alpha"}
    command.convert(kohya, Target(cut, dtype="float16"), scale=0.5, rank=2, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["files"] == [str(cut / LORA_WEIGHT_NAME)]
    found = read_lora(cut).sections["unet"][LAYER]
    assert (found.rank, found.up.dtype) == (2, torch.float16)
    values = torch.linalg.svdvals(change(source))
    assert float(found.weight().norm()) == pytest.approx(0.5 * float(values[:2].norm()), rel=1e-2)


def test_merge_weighs_files_and_applies_rules(source, tmp_path, capsys):
    other, out = tmp_path / "other.safetensors", tmp_path / "both.safetensors"
    write_lora(other, lora(1), layout="kohya")
    command.merge([source, other], Target(out, "peft"), weights="1,-0.5")
    wanted = change(source) - 0.5 * change(other)
    assert torch.allclose(change(out), wanted, atol=1e-5)
    command.merge([source, other], Target(out, force=True), rule=MergeRule("svd", rank=3))
    assert read_lora(out).sections["unet"][LAYER].rank == 3
    assert capsys.readouterr().out.count(str(out)) == 2
    with pytest.raises(ConfigError, match="--weights has 1 numbers for 2 files"):
        command.merge([source, other], Target(tmp_path / "c"), weights="1")
    with pytest.raises(ConfigError, match="--weights is 'a,b'"):
        command.merge([source, other], Target(tmp_path / "c"), weights="a,b")
    with pytest.raises(ConfigError, match="--method is 'mean'"):
        command.merge([source, other], Target(tmp_path / "c"), rule=MergeRule("mean"))
    write_lora(other, lora(1, width=2048), layout="peft")
    with pytest.raises(UnsupportedModel, match="different shapes"):
        command.merge([source, other], Target(tmp_path / "c"))


def test_bundled_embeddings_are_written_beside_where_the_layout_has_no_place(tmp_path, capsys):
    source, out = tmp_path / "bundle.safetensors", tmp_path / "out.safetensors"
    vectors = {"<my toy>": {"*": torch.ones(2, 768)}}
    write_lora(source, LoraFile(lora().sections, embeddings=vectors), layout="kohya")
    command.convert(source, Target(out))
    beside = tmp_path / "out.my_toy.safetensors"
    assert str(beside) in capsys.readouterr().out
    assert load_file(beside).keys() == {"<my toy>"}
    out.unlink()
    with pytest.raises(ConfigError, match=r"out\.my_toy\.safetensors' is there already"):
        command.convert(source, Target(out))


def test_nothing_is_overwritten_or_begun_with_wrong_arguments(source, tmp_path):
    before = source.read_bytes()
    with pytest.raises(ConfigError, match="--force to replace"):
        command.convert(source, Target(source))
    assert source.read_bytes() == before
    with pytest.raises(ConfigError, match="--to is 'comfy' - expected diffusers, peft, kohya"):
        command.convert(source, Target(tmp_path / "a", "comfy"))
    with pytest.raises(ConfigError, match="--dtype is 'fp16'"):
        command.convert(source, Target(tmp_path / "a", dtype="fp16"))
    with pytest.raises(ConfigError, match=r"expected a \.safetensors file or a folder"):
        command.convert(source, Target(tmp_path / "a.ckpt"))
    with pytest.raises(WeightsMissing, match="no file"):
        command.inspect(tmp_path / "none.safetensors")
    assert not (tmp_path / "a").exists()


def test_extract_makes_a_lora_that_repeats_the_fine_tuning(tiny_pipelines, tmp_path, capsys):
    from diffusers import StableDiffusionPipeline

    base, tuned = tiny_pipelines["sd1"], tmp_path / "tuned"
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    generator = torch.Generator().manual_seed(0)
    wanted = {}
    with torch.no_grad():
        for section in ("unet", "text_encoder"):
            for name, layer in getattr(pipeline, section).named_modules():
                if isinstance(layer, nn.Linear) and name.endswith(("to_v", "v_proj")):
                    shape = layer.weight.shape
                    wanted[section, name] = torch.outer(
                        torch.randn(shape[0], generator=generator),
                        torch.randn(shape[1], generator=generator),
                    )
                    layer.weight += wanted[section, name]
        pipeline.unet.conv_norm_out.bias += 1.0
    pipeline.save_pretrained(tuned)
    out = tmp_path / "lora"
    command.extract(str(base), str(tuned), Target(out), rank=1, as_json=True)
    captured = capsys.readouterr()
    assert "1 changed tensors have no place in a LoRA" in captured.err
    facts = json.loads(captured.out)
    assert facts["kept"]["text_encoder"]["kept"] == pytest.approx(1.0, abs=1e-5)
    found = {(section, name): delta for section, name, delta in read_lora(out).deltas()}
    assert found.keys() == wanted.keys()
    for key, weight in wanted.items():
        assert torch.allclose(found[key].weight(), weight, atol=1e-5)
    with pytest.raises(ConfigError, match="the same layers"):
        command.extract(str(base), str(base), Target(tmp_path / "none"))


def test_a_bad_file_is_one_line_and_exit_code_3(tmp_path, monkeypatch, capsys):
    (tmp_path / "lora.ckpt").write_bytes(b"\x80\x04")
    arguments = ["studio", "lora", "inspect", str(tmp_path / "lora.ckpt")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    captured = capsys.readouterr()
    assert caught.value.code == 3
    assert captured.out == ""
    assert captured.err.startswith("error: Weights for the LoRA are pickled")
    assert captured.err.count("\n") == 1


@pytest.fixture(scope="module")
def tiny_pipelines(tmp_path_factory) -> dict[str, Path]:
    """A stock folder of Stable Diffusion 1.x."""
    return {"sd1": write_pipeline(tmp_path_factory.mktemp("base") / "sd1", "sd1")}

"""LoRA files: the same change in every layout, names as other tools write them, clear refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from image_tools.diffusion.lora_files import (
    LORA_WEIGHT_NAME,
    LoraDelta,
    LoraFile,
    lora_layout,
    read_lora,
    write_lora,
)
from image_tools.diffusion.lora_layouts import LAYOUTS, lora_from_tensors
from image_tools.diffusion.lora_names import kohya_of_layer, layer_of_kohya
from image_tools.errors import UnsafeWeights, UnsupportedModel, WeightsMissing
from tests.image_tools.random_loras import layer_weights, random_lora, same_changes
from tests.image_tools.tiny_unets import tiny_unet

QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def modules(tiny_pipelines) -> dict[str, nn.Module]:
    """A UNet and two CLIP text encoders, one with and one without ``text_model``."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    folder = tiny_pipelines["sdxl"]
    return {
        "unet": tiny_unet(),
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder"),
        "text_encoder_2": CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
    }


@pytest.fixture(scope="module")
def lora(modules) -> LoraFile:
    """Convolutions included, ranks and alphas that differ by layer and from each other."""
    return random_lora(modules)


def pair(rank: int = 2, outs: int = 4, ins: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Down and up factors of a linear layer."""
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, ins, generator=generator)
    return down, torch.randn(outs, rank, generator=generator)


def tensors_of(path: Path) -> dict[str, Tensor]:
    """A file's tensors."""
    return load_file(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_round_trip_gives_the_same_change(layout, lora, tmp_path):
    path = tmp_path / "lora.safetensors"
    write_lora(path, lora, layout=layout)
    found = read_lora(path, layers_per_block=1)
    assert same_changes(lora, found)
    assert lora_layout(path) == layout


@pytest.mark.parametrize("layout", ["diffusers", "peft"])
def test_tensors_alone_tell_the_change_where_readers_know_no_alpha(layout, lora, tmp_path):
    """ComfyUI and diffusers before 0.34 do not look into the header, and take alpha = rank."""
    path = tmp_path / "lora.safetensors"
    write_lora(path, lora, layout=layout)
    assert any(delta.alpha != delta.rank for _, _, delta in lora.deltas())
    bare = lora_from_tensors(tensors_of(path), {}, layers_per_block=1)
    told = read_lora(path, layers_per_block=1)
    assert same_changes(lora, bare)
    for (section, name, delta), (*_, known), (*_, before) in zip(
        bare.deltas(), told.deltas(), lora.deltas(), strict=True
    ):
        assert known.alpha == delta.alpha == before.rank, (section, name)
        assert torch.equal(known.up, delta.up)


def test_kohya_keeps_a_common_alpha_and_moves_the_rest_into_the_factor(lora, tmp_path):
    """Stock diffusers reads only the most common alpha of a section."""
    path = tmp_path / "lora.safetensors"
    write_lora(path, lora, layout="kohya")
    alphas = {float(v) for k, v in tensors_of(path).items() if k.endswith(".alpha")}
    assert alphas == {5.0}
    single = LoraFile({"unet": {QUERY: LoraDelta(*pair(), alpha=0.5)}})
    write_lora(path, single, layout="kohya")
    assert read_lora(path).sections["unet"][QUERY].alpha == 0.5


def test_half_precision_and_header_texts_survive(lora, tmp_path):
    path = tmp_path / "lora.safetensors"
    half = LoraFile(lora.to(dtype=torch.float16).sections, {"ss_tag": "dog"}, layers_per_block=1)
    for layout in LAYOUTS:
        write_lora(path, half, layout=layout)
        found = read_lora(path, layers_per_block=1)
        assert found.metadata["ss_tag"] == "dog"
        assert {d.up.dtype for _, _, d in found.deltas()} == {torch.float16}
        assert same_changes(half, found, tolerance=2e-3)


def test_every_kohya_key_has_the_form_that_its_readers_expect(modules, lora, tmp_path):
    path = tmp_path / "lora.safetensors"
    write_lora(path, lora, layout="kohya")
    key = re.compile(r"lora_(unet|te1|te2)_\w+\.(lora_down\.weight|lora_up\.weight|alpha)")
    assert all(key.fullmatch(name) for name in tensors_of(path))
    only = LoraFile({k: v for k, v in lora.sections.items() if k == "text_encoder"})
    write_lora(path, only, layout="kohya")
    assert all(name.startswith("lora_te_text_model_encoder_") for name in tensors_of(path))


def test_header_of_kohya_tells_rank_alpha_and_family(tmp_path):
    down, up = pair(rank=2, outs=8, ins=2048)
    name = QUERY.replace("attn1.to_q", "attn2.to_k")
    lora = LoraFile({"unet": {name: LoraDelta(down, up, 1.0)}})
    path = tmp_path / "lora.safetensors"
    write_lora(path, lora, layout="kohya")
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("2", "1.0")
    assert header["ss_base_model_version"] == "sdxl_base_v1-0"
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert read_lora(path).base_model == "sdxl"
    stem = "lora_unet_middle_block_1_transformer_blocks_0_"
    assert all(key.startswith(stem) for key in tensors_of(path))


def test_clip_names_are_written_with_text_model_and_read_with_and_without(tmp_path):
    name = "encoder.layers.0.self_attn.q_proj"
    lora = LoraFile({"text_encoder": {name: LoraDelta(*pair(), 1.0)}})
    for layout in LAYOUTS:
        path = tmp_path / f"{layout}.safetensors"
        write_lora(path, lora, layout=layout)
        keys = tensors_of(path)
        assert all("text_model" in key for key in keys)
        assert list(read_lora(path).sections["text_encoder"]) == [name]
    short = {k.replace("text_model.", ""): v for k, v in keys_of_peft(lora).items()}
    assert list(lora_from_tensors(short, {}).sections["text_encoder"]) == [name]


def keys_of_peft(lora: LoraFile) -> dict[str, Tensor]:
    """The tensors of the peft layout."""
    from image_tools.diffusion.lora_layouts import lora_to_tensors

    return lora_to_tensors(lora, layout="peft")[0]


STABILITY_NAMES = {
    "lora_unet_input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "lora_unet_input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    "lora_unet_input_blocks_4_0_emb_layers_1": "down_blocks.1.resnets.0.time_emb_proj",
    "lora_unet_input_blocks_4_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "lora_unet_input_blocks_4_1_proj_in": "down_blocks.1.attentions.0.proj_in",
    "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_out_0": (
        "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_out.0"
    ),
    "lora_unet_middle_block_0_out_layers_3": "mid_block.resnets.0.conv2",
    "lora_unet_middle_block_1_transformer_blocks_0_ff_net_0_proj": (
        "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
    ),
    "lora_unet_middle_block_2_in_layers_2": "mid_block.resnets.1.conv1",
    "lora_unet_output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
    "lora_unet_output_blocks_5_1_proj_out": "up_blocks.1.attentions.2.proj_out",
    "lora_unet_time_embed_2": "time_embedding.linear_2",
    "lora_unet_label_emb_0_0": "add_embedding.linear_1",
    "lora_unet_input_blocks_0_0": "conv_in",
    "lora_unet_out_2": "conv_out",
}


@pytest.mark.parametrize(("theirs", "ours"), STABILITY_NAMES.items())
def test_stability_s_block_names_of_sdxl(theirs, ours):
    assert layer_of_kohya(theirs, 2) == ("unet", ours)
    assert kohya_of_layer("unet", ours, base_model="sdxl", layers_per_block=2) == theirs


def test_stability_s_names_of_sd1_where_blocks_have_no_attention():
    assert layer_of_kohya("lora_unet_output_blocks_2_1_conv", 2) == (
        "unet",
        "up_blocks.0.upsamplers.0.conv",
    )


def test_pocket_s_text_encoder_has_names_too():
    for name in ("encoder.layer.0.attention.self.query", "encoder.layer.5.output.dense"):
        theirs = kohya_of_layer("text_encoder", name, base_model="unknown", layers_per_block=2)
        assert layer_of_kohya(theirs, 2) == ("text_encoder", name)


@pytest.mark.parametrize("base_model", ["sd1", "sdxl"])
def test_every_layer_of_a_denoiser_has_a_name_that_leads_back(base_model):
    from diffusers import UNet2DConditionModel

    down, up = ("CrossAttnDownBlock2D",) * 2, ("CrossAttnUpBlock2D",) * 2
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(32, 64, 64),
            down_block_types=("DownBlock2D", *down),
            up_block_types=(*up, "UpBlock2D"),
            cross_attention_dim=32,
            addition_embed_type="text_time",
            projection_class_embeddings_input_dim=64,
        )
    names = [name for _, name in layer_weights({"unet": unet})]
    assert len(names) > 150
    for name in names:
        theirs = kohya_of_layer("unet", name, base_model=base_model, layers_per_block=2)
        assert layer_of_kohya(theirs, 2) == ("unet", name)


def test_without_alpha_the_rank_stands_for_it():
    """What every loader does, and files from before alpha mean."""
    down, up = pair(rank=2)
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    lora = lora_from_tensors({f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}, {})
    delta = lora.sections["unet"]["mid_block.attentions.0.proj_in"]
    assert torch.equal(delta.weight(), up @ down)


def test_old_processor_keys_of_denoiser_and_text_encoder():
    down, up = pair()
    attention = QUERY.removesuffix(".to_q")
    tensors = {
        f"unet.{attention}.processor.to_out_lora.down.weight": down,
        f"unet.{attention}.processor.to_out_lora.up.weight": up,
        "text_encoder.text_model.encoder.layers.1.self_attn.to_out_lora.down.weight": down,
        "text_encoder.text_model.encoder.layers.1.self_attn.to_out_lora.up.weight": up,
    }
    lora = lora_from_tensors(tensors, {})
    assert list(lora.sections["unet"]) == [f"{attention}.to_out.0"]
    assert list(lora.sections["text_encoder"]) == ["encoder.layers.1.self_attn.out_proj"]
    bare = {key.removeprefix("unet."): value for key, value in list(tensors.items())[:2]}
    assert list(lora_from_tensors(bare, {}).sections["unet"]) == [f"{attention}.to_out.0"]


def test_a_folder_of_peft_with_patterns_and_rank_stabilised_scale(tmp_path):
    down, up = pair(rank=4)
    other = QUERY.replace("to_q", "to_k")
    tensors = {}
    for name in (QUERY, other):
        tensors[f"base_model.model.{name}.lora_A.weight"] = down.clone()
        tensors[f"base_model.model.{name}.lora_B.weight"] = up.clone()
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "alpha_pattern": {"attn1.to_k": 2}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    found = read_lora(tmp_path).sections["unet"]
    assert (found[QUERY].scale, found[other].scale) == (2.0, 0.5)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "use_rslora": True}))
    assert read_lora(tmp_path).sections["unet"][QUERY].scale == 4.0


def test_bundled_embeddings_come_along_in_kohya_s_layout(tmp_path):
    delta = LoraDelta(*pair(), 1.0)
    vectors = {"<a.b>": {"*": torch.ones(2, 5)}, "toy": {"clip_l": torch.ones(1, 3)}}
    lora = LoraFile({"unet": {QUERY: delta}}, embeddings=vectors)
    path = tmp_path / "lora.safetensors"
    write_lora(path, lora, layout="kohya")
    assert "bundle_emb.<a.b>.string_to_param.*" in tensors_of(path)
    found = read_lora(path)
    assert {token: set(inner) for token, inner in found.embeddings.items()} == {
        "<a.b>": {"*"},
        "toy": {"clip_l"},
    }
    assert torch.equal(found.embeddings["<a.b>"]["*"], torch.ones(2, 5))


def test_bundled_words_are_read_by_all_names_that_a1111_reads(tmp_path):
    """``create_embedding_from_data`` there: the pair, string_to_param, or any single tensor."""
    own = LoraFile({"unet": {QUERY: LoraDelta(*pair(), 1.0)}})
    path = tmp_path / "lora.safetensors"
    write_lora(path, own, layout="kohya")
    rows = torch.ones(2, 5)
    names = ("a.string_to_param.*", "b.emb_params", "c.clip_l", "c.clip_g")
    save_file({**tensors_of(path), **{f"bundle_emb.{name}": rows.clone() for name in names}}, path)
    found = read_lora(path)
    assert {word: sorted(parts) for word, parts in found.embeddings.items()} == {
        "a": ["*"],
        "b": ["*"],
        "c": ["clip_g", "clip_l"],
    }


def test_dora_keeps_its_lengths_in_every_layout(tmp_path):
    down, up = pair()
    lora = LoraFile({"unet": {QUERY: LoraDelta(down, up, 1.0, torch.arange(1.0, 5.0))}})
    for layout in LAYOUTS:
        path = tmp_path / f"{layout}.safetensors"
        write_lora(path, lora, layout=layout)
        found = read_lora(path).sections["unet"][QUERY]
        assert torch.equal(found.magnitude, torch.arange(1.0, 5.0))
    kohya = tensors_of(tmp_path / "kohya.safetensors")
    shapes = [list(value.shape) for key, value in kohya.items() if key.endswith("dora_scale")]
    assert shapes == [[4, 1]], "ComfyUI divides it by lengths of that shape"
    with pytest.raises(UnsupportedModel, match="DoRA"):
        lora.sections["unet"][QUERY].weight()
    mixed = {**lora.sections["unet"], QUERY.replace("to_q", "to_k"): LoraDelta(down, up, 1.0)}
    with pytest.raises(UnsupportedModel, match="1 of 2 layers are DoRA"):
        write_lora(path, LoraFile({"unet": mixed}), layout="diffusers")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "lora.safetensors"
    write_lora(path, LoraFile({"unet": {QUERY: LoraDelta(*pair(), 1.0)}}), layout="peft")
    before = path.read_bytes()
    broken = LoraFile({"unet": {QUERY: LoraDelta(*pair(seed=1), 1.0)}}, {"a": 1})
    with pytest.raises(TypeError):
        write_lora(path, broken, layout="peft")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


DOWN = "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"
UP = "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"
ALPHA = "lora_unet_mid_block_attentions_0_proj_in.alpha"
BAD_FILES = {
    "no up": ({DOWN: torch.ones(2, 4)}, WeightsMissing, "has no up factor"),
    "no down": ({UP: torch.ones(2, 4)}, WeightsMissing, "has no down factor"),
    "ranks": (
        {DOWN: torch.ones(2, 4), UP: torch.ones(4, 3)},
        WeightsMissing,
        r"proj_in': A LoRA delta has down \[2, 4\], up \[4, 3\]",
    ),
    "three axes": ({DOWN: torch.ones(2, 4, 1), UP: torch.ones(4, 2, 1)}, WeightsMissing, "damaged"),
    "alphas": (
        {DOWN: torch.ones(2, 4), UP: torch.ones(4, 2), ALPHA: torch.ones(2)},
        WeightsMissing,
        "Expected one number",
    ),
    "nan": (
        {DOWN: torch.full((2, 4), torch.nan), UP: torch.ones(4, 2)},
        WeightsMissing,
        "not finite",
    ),
    "flux": (
        {
            "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(2, 4),
            "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.ones(4, 2),
        },
        UnsupportedModel,
        "another kind of model",
    ),
    "sd3": (
        {"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 4)},
        UnsupportedModel,
        "another kind of model",
    ),
    "a model": ({"conv_in.weight": torch.ones(2, 4)}, UnsupportedModel, "'conv_in.weight'"),
    "bias": ({f"{DOWN[:-12]}diff_b": torch.ones(4)}, UnsupportedModel, "without biases"),
    "nothing": ({}, WeightsMissing, "no deltas"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused_in_one_line_that_names_file_and_layer(case, tmp_path):
    tensors, error, words = BAD_FILES[case]
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path)
    with pytest.raises(error, match=words) as caught:
        read_lora(path)
    message = str(caught.value)
    assert "bad.safetensors" in message
    assert "\n" not in message


def test_pickles_damaged_and_absent_files_and_empty_folders(tmp_path):
    (tmp_path / "lora.pt").write_bytes(b"\x80\x04")
    with pytest.raises(UnsafeWeights, match="pickled"):
        read_lora(tmp_path / "lora.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    with pytest.raises(WeightsMissing, match="cannot be read"):
        read_lora(tmp_path / "cut.safetensors")
    with pytest.raises(WeightsMissing, match="no file"):
        read_lora(tmp_path / "none.safetensors")
    with pytest.raises(WeightsMissing, match=LORA_WEIGHT_NAME):
        read_lora(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "no JSON"), ("[]", "no JSON object"), ('{"unet.lora_alpha": "x"}', "alpha")],
)
def test_broken_headers_are_refused(text, words, tmp_path):
    lora = LoraFile({"unet": {QUERY: LoraDelta(*pair(), 1.0)}})
    path = tmp_path / "lora.safetensors"
    save_file(keys_of_peft(lora), path, {"lora_adapter_metadata": text})
    with pytest.raises(WeightsMissing, match=words):
        read_lora(path)


def test_eight_bit_files_are_read_in_full_precision():
    down, up = pair()
    tensors = {DOWN: down.to(torch.float8_e4m3fn), UP: up.to(torch.float8_e4m3fn)}
    delta = lora_from_tensors(tensors, {}).sections["unet"]["mid_block.attentions.0.proj_in"]
    assert torch.equal(delta.down, down.to(torch.float8_e4m3fn).float())


def test_a_lora_needs_known_sections_and_finite_alphas():
    with pytest.raises(UnsupportedModel, match="'vae'"):
        LoraFile({"vae": {}})
    with pytest.raises(WeightsMissing, match="alpha nan"):
        LoraDelta(*pair(), alpha=float("nan"))
    with pytest.raises(WeightsMissing, match="magnitude"):
        LoraDelta(*pair(), alpha=1.0, magnitude=torch.ones(3))


def test_scaling_is_a_factor_of_the_change():
    down, up = pair()
    lora = LoraFile({"unet": {QUERY: LoraDelta(down, up, 3.0)}})
    half = lora.scaled(0.5).sections["unet"][QUERY]
    assert torch.allclose(half.weight(), 0.5 * lora.sections["unet"][QUERY].weight())
    assert (half.rank, half.alpha) == (2, 1.5)

"""The public checkpoint's layout into the tool's folder; pickles that would do something do not."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch

from image_tools.errors import UnsafeWeights, UnsupportedModel, WeightsMissing
from image_tools.personalization.kosmos_g_aligner import AlignerNet
from image_tools.personalization.kosmos_g_configs import AlignerSettings
from image_tools.personalization.kosmos_g_convert import (
    aligner_settings,
    convert_kosmos_g,
    language_settings,
    main,
    stock_name,
)
from image_tools.personalization.kosmos_g_pickle import TensorArchive
from image_tools.personalization.kosmos_g_vocabulary import make_tokenizer, read_dictionary
from image_tools.personalization.kosmos_g_weights import (
    kosmos_g_files,
    read_kosmos_g,
    write_aligner,
    write_kosmos_g,
)
from renderers.errors import StudioError
from tests.image_tools.personalization.subjects import images_of
from tests.image_tools.personalization.tiny_kosmos import (
    LETTERS,
    ROWS,
    tiny_kosmos,
    write_vocabulary,
)

PROMPT = "a <i> hat"


class Evil:
    """An object whose pickle makes a file when it is opened as usual."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


class Settings(argparse.Namespace):
    """Stands for the settings that fairseq writes: attributes, items and a state."""

    def __reduce__(self):
        return Settings, (), {"lr": [1e-3]}, iter([1, 2]), iter([("a", 1)])


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return write_vocabulary(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """One head everywhere, as a conversion assumes for networks up to 64 wide."""
    return tiny_kosmos(tmp_path_factory.mktemp("vocabulary"), heads=1)


def public_name(name: str) -> str:
    """What the authors call a tensor of transformers' model."""
    for ours, theirs in {
        "text_model.model.": "gpt_model.decoder.",
        "image_to_text_projection.": "img_connector.",
        "vision_model.model.": "img_model.visual.",
        "embeddings.class_embedding": "class_embedding",
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.patch_embedding": "conv1",
        "pre_layrnorm": "ln_pre",
        "post_layernorm": "ln_post",
        "visual.encoder.layers": "visual.transformer.resblocks",
    }.items():
        name = name.replace(ours, theirs)
    if "resblocks" in name:
        for ours, theirs in {
            "self_attn": "ts_attn",
            "layer_norm": "ln_",
            "fc1": "c_fc",
            "fc2": "c_proj",
        }.items():
            name = name.replace(ours, theirs)
    return name


def public_tensors(model) -> dict[str, torch.Tensor]:
    """A checkpoint of the final stage, with everything that lies beside what is needed."""
    tensors = {public_name(k): v for k, v in model.mllm.state_dict().items()}
    tensors |= {f"aligner.{k}": v for k, v in model.aligner.state_dict().items()}
    words = tensors["gpt_model.decoder.embed_tokens.weight"]
    return {
        **tensors,
        "gpt_model.decoder.output_projection.weight": words,
        "gpt_model.decoder.version": torch.ones(1),
        "gpt_model.decoder.embed_positions._float_tensor": torch.ones(1),
        "aligner.clip_encoder.text_model.final_layer_norm.weight": torch.ones(3),
        "vae.vae.encoder.conv_in.bias": torch.ones(3),
        "diffusion_unet.unet.conv_in.bias": torch.ones(3),
    }


def write_checkpoint(path: Path, tensors, **others) -> Path:
    torch.save(
        {"args": None, "cfg": argparse.Namespace(lr=[1e-3]), **others, "model": tensors}, path
    )
    return path


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("public") / "final.pt", public_tensors(model))


@pytest.fixture(scope="module")
def converted(checkpoint, vocabulary, tmp_path_factory):
    target = tmp_path_factory.mktemp("converted") / "kosmos-g"
    return convert_kosmos_g(checkpoint, target, vocabulary=vocabulary, dtype=torch.float32)


@torch.no_grad()
def test_a_converted_checkpoint_reads_prompts_as_the_model_did(model, converted):
    assert converted.left_out == ()
    read = read_kosmos_g(converted.folder)
    assert isinstance(read.aligner, AlignerNet)
    assert read.aligner.settings == model.aligner.settings
    images = images_of(1)
    assert torch.equal(read.embed([PROMPT], [images]), model.embed([PROMPT], [images]))
    assert read.fingerprint
    assert not any(p.requires_grad for p in read.parameters())
    assert sorted(path.suffix for path in kosmos_g_files(converted.folder)) == [
        *[".json"] * 3,
        *[".safetensors"] * 2,
    ]


def test_the_command_converts_and_tells_what_is_wrong(
    checkpoint, converted, vocabulary, tmp_path, capsys
):
    arguments = [str(checkpoint), str(tmp_path / "out"), "--vocabulary", str(vocabulary)]
    assert main([*arguments, "--dtype", "float32"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    written, wanted = (sorted(kosmos_g_files(f)) for f in (tmp_path / "out", converted.folder))
    for ours, theirs in zip(written, wanted, strict=True):
        assert ours.read_bytes() == theirs.read_bytes()
    assert main(arguments) == StudioError.exit_code
    assert "is there already - expected a new folder" in capsys.readouterr().err
    absent = [str(tmp_path / "absent.pt"), str(tmp_path / "other"), *arguments[2:]]
    assert main(absent) == WeightsMissing.exit_code
    assert "absent.pt' is not there" in capsys.readouterr().err


@torch.no_grad()
def test_what_is_written_is_read_back(model, tmp_path):
    write_kosmos_g(tmp_path, model)
    images = images_of(1)
    read = read_kosmos_g(tmp_path)
    assert torch.equal(read.embed([PROMPT], [images]), model.embed([PROMPT], [images]))
    assert read.aligner.settings == model.aligner.settings


def test_every_tensor_of_the_full_size_has_its_public_name():
    """1.9 billion numbers without storage: names there and back, and sizes from shapes alone."""
    from transformers import Kosmos2Config, Kosmos2Model

    with torch.device("meta"):
        stock = Kosmos2Model(Kosmos2Config(text_config={"vocab_size": 64007})).state_dict()
        aligner = AlignerNet(AlignerSettings()).state_dict()
    names = {public_name(name): name for name in stock}
    assert len(names) == len(stock) == 885
    assert {key: stock_name(key) for key in names} == names
    assert "img_model.visual.transformer.resblocks.23.mlp.c_proj.weight" in names
    assert "gpt_model.decoder.layers.23.ffn.ffn_layernorm.bias" in names
    assert stock_name("img_model.visual.proj") is None
    settings = language_settings({name: tuple(value.shape) for name, value in stock.items()})
    text, vision, default = settings.text_config, settings.vision_config, Kosmos2Config()
    assert text.to_dict() == {**default.text_config.to_dict(), "vocab_size": 64007}
    assert vision.to_dict() == default.vision_config.to_dict()
    assert settings.latent_query_num == 64
    shapes = {name: tuple(value.shape) for name, value in aligner.items()}
    assert aligner_settings(shapes) == AlignerSettings()


def test_a_checkpoint_that_would_run_something_runs_nothing(model, vocabulary, tmp_path):
    made = tmp_path / "made-by-the-file"
    tensors = public_tensors(model)
    path = write_checkpoint(tmp_path / "evil.pt", tensors, cfg=Evil(made), extra=Settings())
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    target = tmp_path / "kosmos-g"
    convert_kosmos_g(path, target, vocabulary=vocabulary)
    assert (target / "aligner" / "model.safetensors").is_file()
    assert not made.exists()


def test_something_else_among_the_tensors_is_refused_and_runs_nothing(tmp_path):
    made = tmp_path / "made-by-the-file"
    for trap in (Evil(made), partial(os.system, f"touch {made}"), "words"):
        path = write_checkpoint(tmp_path / "evil.pt", {"aligner.encoder_query": trap})
        with pytest.raises(UnsafeWeights, match=r"'aligner\.encoder_query' in 'model' of .* is no"):
            TensorArchive(path, section="model")
    assert not made.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'touch {made}'\ntR.",
        b"cbuiltins\nexec\n(S'import os'\ntR.",
        b"(cos\nsystem\nS'touch {made}'\no.",
        b"(S'touch {made}'\nios\nsystem\n.",
        b"}S'model'\ncos\nsystem\n(S'touch {made}'\ntRs.",
        b"not a pickle",
        b"",
    ],
    ids=["reduce", "exec", "obj", "inst", "value", "garbage", "empty"],
)
def test_hostile_and_damaged_pickles_are_one_clear_error(tmp_path, content):
    made, path = tmp_path / "made-by-the-file", tmp_path / "hostile.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hostile/data.pkl", content.replace(b"{made}", str(made).encode()))
    with pytest.raises(WeightsMissing, match="cannot be read"):
        TensorArchive(path, section="model")
    assert not made.exists()


def test_tensors_of_all_kinds_are_read_as_torch_reads_them(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "whole": base,
        "view": base[1:3, ::2],
        "turned": base.T,
        "half": base.half(),
        "brain": base.bfloat16(),
        "whole_numbers": torch.arange(5),
        "none": torch.zeros(0, 3),
        "one": torch.tensor(3.5),
        "parameter": torch.nn.Parameter(base + 1.0),
    }
    torch.save({"model": tensors}, tmp_path / "tensors.pt")
    with TensorArchive(tmp_path / "tensors.pt", section="model") as archive:
        assert sorted(archive) == sorted(tensors)
        for name, wanted in tensors.items():
            assert archive.shape(name) == tuple(wanted.shape)
            assert torch.equal(archive.read(name), wanted.detach()), name
            assert archive.read(name).dtype == wanted.dtype


def test_a_tensor_that_claims_more_than_there_is_is_refused(tmp_path):
    torch.save({"model": {"x": torch.ones(100)}}, tmp_path / "long.pt")
    with (
        zipfile.ZipFile(tmp_path / "long.pt") as before,
        zipfile.ZipFile(tmp_path / "short.pt", "w") as after,
    ):
        for name in before.namelist():
            content = before.read(name)
            after.writestr(name, content[:40] if name.endswith("/data/0") else content)
    with (
        TensorArchive(tmp_path / "short.pt", section="model") as archive,
        pytest.raises(WeightsMissing, match="'x' has 40 bytes for 100 numbers"),
    ):
        archive.read("x")


def test_files_that_are_no_checkpoints_are_refused(tmp_path, checkpoint):
    with pytest.raises(WeightsMissing, match="is not there"):
        TensorArchive(tmp_path / "absent.pt", section="model")
    (tmp_path / "text.pt").write_text("words")
    with pytest.raises(WeightsMissing, match="File is not a zip file"):
        TensorArchive(tmp_path / "text.pt", section="model")
    with pytest.raises(WeightsMissing, match="cannot be read"):
        TensorArchive(checkpoint, section="ema")


def test_checkpoints_of_another_design_are_refused(model, vocabulary, tmp_path):
    tensors = public_tensors(model)
    convert = partial(convert_kosmos_g, target=tmp_path / "out", vocabulary=vocabulary)
    stage_1 = {k: v for k, v in tensors.items() if not k.startswith("aligner.")}
    with pytest.raises(UnsupportedModel, match="that of stage 1 has no aligner"):
        convert(write_checkpoint(tmp_path / "1.pt", stage_1))
    lacking = {k: v for k, v in tensors.items() if k != "gpt_model.decoder.layer_norm.bias"}
    with pytest.raises(UnsupportedModel, match=r"text_model.model.layer_norm.bias \(absent"):
        convert(write_checkpoint(tmp_path / "2.pt", lacking))
    with pytest.raises(UnsupportedModel, match=r"has no tensor for 'text_model\.model\.embed"):
        convert(write_checkpoint(tmp_path / "3.pt", {"weight": torch.ones(2)}))
    assert not (tmp_path / "out").exists()
    extra = {**tensors, "img_model.visual.proj": torch.ones(2), "aud_model.x": torch.ones(2)}
    done = convert(write_checkpoint(tmp_path / "4.pt", extra))
    assert done.left_out == ("aud_model.x", "img_model.visual.proj")
    with pytest.raises(StudioError, match="is there already - expected a new folder"):
        convert(tmp_path / "4.pt")


def test_only_ends_of_lines_end_a_word_of_the_dictionary(tmp_path):
    """fairseq reads lines as files have them; str.splitlines ends one at ten characters more."""
    words = ["\u2581the", "\x85", "\u2028", "\x1e", "\x0b", "a"]
    content = "\n".join(f"{word} 1" for word in words)
    for name, text in (("a", content), ("b", content + "\n"), ("c", content.replace("\n", "\r\n"))):
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        assert read_dictionary(tmp_path / name) == words


def test_a_vocabulary_must_fill_the_embedding(vocabulary, tmp_path):
    with pytest.raises(UnsupportedModel, match=f"make {ROWS} tokens, the language model has 50"):
        make_tokenizer(vocabulary, rows=50)
    assert read_dictionary(vocabulary / "dict.txt")[0] == LETTERS[-1]
    folder = write_vocabulary(tmp_path)
    (folder / "sentencepiece.bpe.model").write_bytes(b"\x0a\xff")
    with pytest.raises(WeightsMissing, match=r"The vocabulary file .* cannot be read"):
        make_tokenizer(folder, rows=ROWS)
    (folder / "sentencepiece.bpe.model").write_bytes(b"\x0a\x03\x0a\x01a\x12\x02\x18\x02")
    with pytest.raises(UnsupportedModel, match="of type 2 - expected 1, unigrams"):
        make_tokenizer(folder, rows=ROWS)
    (folder / "sentencepiece.bpe.model").unlink()
    with pytest.raises(WeightsMissing, match="cannot be read"):
        make_tokenizer(folder, rows=ROWS)


@pytest.mark.parametrize("has_mask", [False, True])
def test_symbols_have_the_numbers_that_public_models_know(tmp_path, has_mask):
    """The public dictionary has 63,997 lines, and Kosmos-2 of transformers calls <image> 64003."""
    folder = write_vocabulary(tmp_path)
    words = [f"word{k} 1" for k in range(63_997)] + ["<mask> 1"] * has_mask
    (folder / "dict.txt").write_text("\n".join(words))
    made = make_tokenizer(folder, rows=64_007)
    names = ("<s>", "<unk>", "<mask>", "</doc>", "<image>", "</image>", "</line>")
    numbers = [made.token_to_id(name) for name in names]
    assert numbers == [0, 3, 64_001, 64_002, 64_003, 64_004, 64_006]


def test_folders_that_are_incomplete_are_refused(model, tmp_path):
    with pytest.raises(WeightsMissing, match=r"folder '.*absent' is not there\. Expected one"):
        read_kosmos_g(tmp_path / "absent")
    write_kosmos_g(tmp_path, model)
    (tmp_path / "tokenizer" / "tokenizer.json").rename(tmp_path / "kept.json")
    with pytest.raises(WeightsMissing, match="tokenizer is incomplete: no"):
        read_kosmos_g(tmp_path)
    (tmp_path / "kept.json").rename(tmp_path / "tokenizer" / "tokenizer.json")
    (tmp_path / "aligner" / "config.json").write_text('{"width": 16}')
    with pytest.raises(UnsupportedModel, match="does not describe an aligner"):
        read_kosmos_g(tmp_path)
    write_aligner(tmp_path / "aligner", tiny_kosmos(tmp_path, queries=5).aligner)
    settings = (tmp_path / "aligner" / "config.json").read_text()
    (tmp_path / "aligner" / "config.json").write_text(
        settings.replace('"queries": 5', '"queries": 6')
    )
    with pytest.raises(UnsupportedModel, match=r"1 tensors: encoder_query \(\(5, 16\), expected"):
        read_kosmos_g(tmp_path)
    (tmp_path / "aligner" / "model.safetensors").rename(tmp_path / "aligner" / "model.pt")
    with pytest.raises(UnsafeWeights, match="are pickled"):
        read_kosmos_g(tmp_path)

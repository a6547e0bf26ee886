"""Textual Inversion files: every layout gives the same word, stock diffusers reads ours."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from image_tools.diffusion.loading import load_folder
from image_tools.errors import UnsafeWeights, UnsupportedModel, WeightsMissing
from image_tools.personalization.embedding_files import (
    bundle_embeddings,
    read_embeddings,
    split_bundle,
    write_embedding,
)
from image_tools.personalization.tokens import TokenEmbedding, attach_tokens

CPU = torch.device("cpu")
WIDTH = 16
ROWS = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
LORA = {"unet.attn.to_q.lora_A.weight": torch.ones(4, 4), "lora_unet_x.alpha": torch.tensor(4.0)}


def foreign_file(folder, layout: str):
    """A file as the tool that invented the layout writes it; the word is my-dog."""
    if layout == "diffusers":
        path = folder / "learned_embeds.safetensors"
        save_file({"my-dog": ROWS}, path)
    elif layout == "diffusers_bin":
        path = folder / "learned_embeds.bin"
        torch.save({"my-dog": ROWS}, path)
    elif layout == "a1111":
        path = folder / "whatever.pt"
        content = {"string_to_token": {"*": 265}, "string_to_param": {"*": ROWS}, "name": "my-dog"}
        torch.save({**content, "step": 99, "sd_checkpoint": None, "sd_checkpoint_name": None}, path)
    elif layout == "original":
        path = folder / "my-dog.pt"
        params = torch.nn.ParameterDict({"*": torch.nn.Parameter(ROWS)})
        torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": params}, path)
    elif layout == "kohya":
        path = folder / "my-dog.safetensors"
        save_file({"emb_params": ROWS}, path)
    else:
        path = folder / "lora.safetensors"
        save_file({**LORA, "bundle_emb.my-dog.string_to_param.*": ROWS}, path)
    return path


FOREIGN = ("diffusers", "diffusers_bin", "a1111", "original", "kohya", "lora_bundle")


@pytest.mark.parametrize("layout", FOREIGN)
def test_every_layout_gives_the_same_word(tmp_path, layout):
    (word,) = read_embeddings(foreign_file(tmp_path, layout))
    assert word.token == "my-dog"
    assert torch.equal(word.rows[0], ROWS)
    assert len(word.rows) == 1
    assert word.step == (99 if layout == "a1111" else None)


def test_every_layout_gives_identical_prompts(tmp_path, tiny_pipelines):
    prior, results = load_folder(tiny_pipelines["sd1"], CPU), []
    for layout in FOREIGN:
        with attach_tokens(prior, read_embeddings(foreign_file(tmp_path, layout))):
            results.append(prior.encode_prompt(["a my-dog duck"]).tokens)
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_pair_for_sdxl_in_a_file_of_its_own_and_in_a_lora(tmp_path):
    save_file({"clip_g": OTHER, "clip_l": ROWS}, tmp_path / "my-dog.safetensors")
    torch.save({"clip_g": OTHER, "clip_l": ROWS}, tmp_path / "my-dog.pt")
    bundle = {"bundle_emb.my-dog.clip_g": OTHER, "bundle_emb.my-dog.clip_l": ROWS}
    save_file({**LORA, **bundle}, tmp_path / "lora.safetensors")
    for name in ("my-dog.safetensors", "my-dog.pt", "lora.safetensors"):
        (word,) = read_embeddings(tmp_path / name)
        assert word.token == "my-dog"
        assert torch.equal(word.rows[0], ROWS)
        assert torch.equal(word.rows[1], OTHER)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("diffusers", "a.safetensors"),
        ("diffusers", "a.bin"),
        ("a1111", "a.pt"),
        ("original", "my-dog.pt"),
        ("kohya", "a.safetensors"),
        ("kohya", "my-dog.pt"),
        ("sdxl", "a.safetensors"),
        ("sdxl", "my-dog.pt"),
    ],
)
def test_what_is_written_is_read_back(tmp_path, layout, name):
    rows = (ROWS, OTHER) if layout == "sdxl" else (ROWS,)
    word = TokenEmbedding("my-dog", rows, 120, {"sd_checkpoint": "abc"})
    write_embedding(tmp_path / name, word, layout=layout)
    (found,) = read_embeddings(tmp_path / name)
    assert found.token == "my-dog"
    assert all(torch.equal(a, b) for a, b in zip(found.rows, rows, strict=True))
    if name.endswith(".safetensors") or layout == "a1111":
        assert (found.step, found.metadata) == (120, {"sd_checkpoint": "abc"})
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_layouts_are_those_of_the_tools(tmp_path):
    word = TokenEmbedding("<my-dog>", (ROWS,), 5)
    write_embedding(tmp_path / "a.safetensors", word)
    assert list(load_file(tmp_path / "a.safetensors")) == ["<my-dog>"]
    write_embedding(tmp_path / "k.safetensors", word, layout="kohya")
    assert list(load_file(tmp_path / "k.safetensors")) == ["emb_params"]
    write_embedding(tmp_path / "a.pt", word, layout="a1111")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert (content["name"], content["step"]) == ("<my-dog>", 5)
    assert torch.equal(content["string_to_param"]["*"], ROWS)
    write_embedding(tmp_path / "o.pt", word, layout="original")
    content = torch.load(tmp_path / "o.pt", weights_only=False)  # our own file
    assert torch.equal(content["string_to_param"]["*"].data, ROWS)
    assert "name" not in content
    pair = TokenEmbedding("<my-dog>", (ROWS, OTHER))
    write_embedding(tmp_path / "x.safetensors", pair, layout="sdxl")
    assert torch.equal(load_file(tmp_path / "x.safetensors")["clip_g"], OTHER)


@pytest.mark.parametrize(
    ("layout", "name"),
    [("diffusers", "a.safetensors"), ("kohya", "k.safetensors"), ("a1111", "a.pt")],
)
def test_stock_diffusers_reads_ours_and_makes_the_same_prompts(
    tmp_path, tiny_pipelines, layout, name
):
    from diffusers import StableDiffusionPipeline

    word = TokenEmbedding("<my-dog>", (ROWS,))
    write_embedding(tmp_path / name, word, layout=layout)
    stock = StableDiffusionPipeline.from_pretrained(tiny_pipelines["sd1"], local_files_only=True)
    stock.load_textual_inversion(
        str(tmp_path), weight_name=name, token="<my-dog>", local_files_only=True
    )
    expected = stock.encode_prompt("a <my-dog>", CPU, 1, False)[0]
    prior = load_folder(tiny_pipelines["sd1"], CPU)
    with attach_tokens(prior, read_embeddings(tmp_path / name)):
        found = prior.encode_prompt(["a <my-dog>"]).tokens
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_stock_diffusers_rejects_what_the_docs_say(tmp_path, tiny_pipelines):
    from diffusers import StableDiffusionPipeline

    stock = StableDiffusionPipeline.from_pretrained(tiny_pipelines["sd1"], local_files_only=True)
    pair = TokenEmbedding("my-dog", (ROWS, OTHER))
    write_embedding(tmp_path / "pair.safetensors", pair, layout="sdxl")
    for layout in ("original", "lora_bundle"):
        foreign_file(tmp_path, layout)
    for name in ("pair.safetensors", "my-dog.pt", "lora.safetensors"):
        with pytest.raises((KeyError, ValueError, OSError)):
            stock.load_textual_inversion(
                str(tmp_path), weight_name=name, token="<my-dog>", local_files_only=True
            )
        assert read_embeddings(tmp_path / name)


def test_words_in_a_lora_leave_its_own_tensors_alone():
    words = [TokenEmbedding("my.dog-v1.5", (ROWS,)), TokenEmbedding("<s>", (ROWS, OTHER))]
    bundled = bundle_embeddings(LORA, words)
    assert set(bundled) - set(LORA) == {
        "bundle_emb.my.dog-v1.5.string_to_param.*",
        "bundle_emb.<s>.clip_l",
        "bundle_emb.<s>.clip_g",
    }
    lora, found = split_bundle(bundled)
    assert lora.keys() == LORA.keys()
    assert all(lora[key] is LORA[key] for key in LORA)
    assert [word.token for word in found] == ["my.dog-v1.5", "<s>"]
    assert torch.equal(found[1].rows[0], ROWS)
    assert torch.equal(found[1].rows[1], OTHER)


def test_several_words_in_one_file(tmp_path):
    save_file({"<s0>": ROWS[:1], "<s1>": OTHER}, tmp_path / "two.safetensors")
    words = read_embeddings(tmp_path / "two.safetensors")
    assert {word.token: word.vectors for word in words} == {"<s0>": 1, "<s1>": 2}
    with pytest.raises(UnsupportedModel, match=r"holds 2 words \('<s0>', '<s1>'\)"):
        read_embeddings(tmp_path / "two.safetensors", token="<x>")
    params = {"cat": ROWS, "*": OTHER}
    torch.save({"string_to_token": {}, "string_to_param": params}, tmp_path / "dog.pt")
    assert [word.token for word in read_embeddings(tmp_path / "dog.pt")] == ["cat", "dog"]


def test_single_vectors_half_precision_and_other_names(tmp_path):
    save_file({"emb_params": ROWS[0].half()}, tmp_path / "my-dog.safetensors")
    (word,) = read_embeddings(tmp_path / "my-dog.safetensors", token="<new>")
    assert word.token == "<new>"
    assert word.rows[0].dtype == torch.float32
    torch.testing.assert_close(word.rows[0], ROWS[:1], atol=1e-3, rtol=1e-3)


class Evil:
    """What a pickle may do."""

    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_that_runs_code_is_refused(tmp_path, capsys):
    torch.save({"string_to_param": {"*": ROWS}, "name": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UnsafeWeights, match=r"other than tensors.*get it as .safetensors"):
        read_embeddings(tmp_path / "evil.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps({"emb_params": Evil()}))
    with pytest.raises(WeightsMissing):
        read_embeddings(tmp_path / "raw.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LORA, r"is a LoRA without embedded words, not an embedding"),
        ({"model.diffusion_model.out.2.weight": ROWS}, r"is a whole model, not an embedding"),
        ({"conv.weight": torch.zeros(2, 2, 3, 3)}, r"is a file with 'conv.weight', not"),
        ({"<a>": torch.zeros(2, 4, dtype=torch.int64)}, r"is a file with '<a>'"),
        ({"<a>": torch.full((2, 4), torch.nan)}, r"'<a>' are not all finite.*diverged"),
        ({"emb_params": torch.zeros(1, 2, 4)}, r"are torch.float32 \(1, 2, 4\)"),
    ],
)
def test_files_of_other_things_are_named(tmp_path, content, message):
    save_file(content, tmp_path / "x.safetensors")
    with pytest.raises(UnsupportedModel, match=message):
        read_embeddings(tmp_path / "x.safetensors")


def test_absent_and_damaged_files(tmp_path):
    with pytest.raises(WeightsMissing, match="There is no embedding file"):
        read_embeddings(tmp_path / "x.safetensors")
    for name in ("x.safetensors", "x.pt", "x.txt"):
        (tmp_path / name).write_bytes(b"hello")
        with pytest.raises(WeightsMissing, match=r"x\."):
            read_embeddings(tmp_path / name)
    torch.save([ROWS], tmp_path / "list.pt")
    with pytest.raises(UnsupportedModel, match="is a list, not an embedding"):
        read_embeddings(tmp_path / "list.pt")


def test_a_layout_that_cannot_hold_the_word_is_refused(tmp_path):
    word, pair = TokenEmbedding("<a>", (ROWS,)), TokenEmbedding("<a>", (ROWS, OTHER))
    with pytest.raises(UnsupportedModel, match=r"holds 1\. Write it with layout sdxl"):
        write_embedding(tmp_path / "x.safetensors", pair)
    with pytest.raises(UnsupportedModel, match=r"holds 2\. Write it with layout diffusers"):
        write_embedding(tmp_path / "x.safetensors", word, layout="sdxl")
    with pytest.raises(UnsupportedModel, match=r"exists as \.pt only"):
        write_embedding(tmp_path / "x.safetensors", word, layout="a1111")
    assert list(tmp_path.iterdir()) == []

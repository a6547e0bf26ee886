"""The disk cache of text embeddings."""

from __future__ import annotations

import logging

import pytest
import torch

from image_tools.configs import DiffusersPriorConfig
from image_tools.diffusion.conditions import TextEmbedding
from image_tools.diffusion.loading import load_prior
from image_tools.diffusion.prompt_cache import PromptCache

CPU = torch.device("cpu")
PROMPTS = ["a duck", "", "x" * 5000, "../../etc/passwd", "ein grüner Tee 🍵", 'quote " and \0']


def _prior(tiny_pipelines, cache, kind="sd1"):
    return load_prior(
        DiffusersPriorConfig(model=str(tiny_pipelines[kind]), prompt_cache=str(cache)), CPU
    )


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_second_prior_reads_the_cache_and_no_encoder(tiny_pipelines, tmp_path, kind):
    first = _prior(tiny_pipelines, tmp_path, kind)
    encoded = first.encode_prompt(PROMPTS)
    second = _prior(tiny_pipelines, tmp_path, kind)
    cached = second.encode_prompt(PROMPTS)
    assert first.text.is_loaded
    assert not second.text.is_loaded
    assert torch.equal(cached.tokens, encoded.tokens)
    assert (cached.pooled is None) == (kind == "sd1")
    if kind == "sdxl":
        assert torch.equal(cached.pooled, encoded.pooled)
    files = sorted(tmp_path.iterdir())
    assert len(files) == len(PROMPTS)
    assert all(file.suffix == ".safetensors" for file in files)


def test_another_model_does_not_read_it(tiny_pipelines, tmp_path):
    _prior(tiny_pipelines, tmp_path, "sd1").encode_prompt(["a duck"])
    other = _prior(tiny_pipelines, tmp_path, "sd2_v")
    other.encode_prompt(["a duck"])
    assert other.text.is_loaded
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage"])
def test_damaged_file_is_rebuilt(tiny_pipelines, tmp_path, damage, caplog):
    first = _prior(tiny_pipelines, tmp_path)
    encoded = first.encode_prompt(["a duck"])
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    broken = {"empty": b"", "truncated": content[:-7], "garbage": b"\xff" * 64}[damage]
    file.write_bytes(broken)
    with caplog.at_level(logging.WARNING):
        again = _prior(tiny_pipelines, tmp_path).encode_prompt(["a duck"])
    assert torch.equal(again.tokens, encoded.tokens)
    assert file.read_bytes() == content
    assert "encoding again" in caplog.text


def test_file_of_another_key_is_not_trusted(tmp_path):
    cache = PromptCache(tmp_path)
    cache.write("model", "a duck", TextEmbedding(torch.ones(1, 2, 3)))
    cache.path("model", "a duck").rename(cache.path("model", "a goose"))
    assert cache.read("model", "a goose") is None


def test_unwritable_folder_costs_only_a_warning(tiny_pipelines, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        tokens = _prior(tiny_pipelines, blocked / "cache").encode_prompt(["a duck"]).tokens
    assert tokens.shape == (1, 77, 16)
    assert "cannot write" in caplog.text


def test_overlong_prompt_is_truncated_with_a_warning(tiny_pipelines, tmp_path, caplog):
    prior = _prior(tiny_pipelines, tmp_path, "pocket")
    with caplog.at_level(logging.WARNING):
        tokens = prior.encode_prompt(["duck " * 100]).tokens
    assert tokens.shape == (1, 24, 16)
    assert "has 102 tokens; the text encoder reads the first 24" in caplog.text


def test_words_that_cannot_be_spelled_are_told_once_and_others_not(
    tiny_pipelines, tmp_path, caplog
):
    prior = _prior(tiny_pipelines, tmp_path, "pocket")
    with caplog.at_level(logging.WARNING):
        prior.encode_prompt(["a duck"])
        assert caplog.text == ""
        prior.encode_prompt(["a гриб and гриб"])
    assert "does not know 'гриб' of the prompt 'a гриб and гриб'" in caplog.text


def test_no_prompts_is_an_error(tiny_pipelines, tmp_path):
    with pytest.raises(ValueError, match="no prompts"):
        _prior(tiny_pipelines, tmp_path).encode_prompt([])

"""What ships beside the code: small, safe to open, and understood by stock libraries."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load

from image_tools.pocket.paths import POCKET_FOLDER
from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES
from studio.evaluation.judge import load_judge

ROOT = Path(__file__).parents[2]
PACKAGES = ("studio", "guidance", "image_tools", "scenes", "renderers")
LIMITS = {"image_tools/pocket/": 107e6, "image_tools/vision/": 12e6, "studio/evaluation/": 10e6}
"""Bytes of weights, by folder: priors and their adapters, vision networks, judges."""
MAX_BYTES = 140e6
BINARY = {".safetensors", ".npz", ".zip"}
TEXT = {".json", ".yaml", ".txt", ".md", ".html", ".js", ".css", ""}
PICTURES = {
    "a red mushroom": ("mushroom", "red"),
    "a blue car": ("car", "blue"),
    "a yellow duck": ("duck", "yellow"),
    "a green cactus": ("cactus", "green"),
    "a purple teapot": ("teapot", "purple"),
    "an orange fish": ("fish", "orange"),
    "a pink cupcake": ("cupcake", "pink"),
    "a brown chair": ("chair", "brown"),
}


def shipped() -> list[Path]:
    """Every file of the packages that is no Python, nor made of Python."""
    return [
        path
        for name in PACKAGES
        for path in sorted((ROOT / name).rglob("*"))
        if path.is_file() and path.suffix != ".py" and path.parent.name != "__pycache__"
    ]


def is_text(path: Path) -> bool:
    """Whether a file can be read as text, and so holds no hidden binary."""
    try:
        return "\0" not in path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return False


def test_weights_and_data_together_stay_small():
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size for path in shipped()}
    largest = sorted(sizes.items(), key=lambda item: -item[1])
    weights = {name: size for name, size in largest if name.endswith(".safetensors")}
    assert all(name.startswith(tuple(LIMITS)) for name in weights), list(weights)
    for folder, limit in LIMITS.items():
        own = {name: size for name, size in weights.items() if name.startswith(folder)}
        assert 0 < sum(own.values()) < limit, own
    assert sum(sizes.values()) < MAX_BYTES, largest[:9]


def test_binary_files_are_of_kinds_that_run_no_code():
    found = shipped()
    assert POCKET_FOLDER / "unet" / "diffusion_pytorch_model.safetensors" in found
    assert {path.suffix for path in found} <= BINARY | TEXT
    assert [path for path in found if path.suffix not in BINARY and not is_text(path)] == []


@pytest.mark.parametrize(
    "path",
    [path for path in shipped() if path.suffix in BINARY | {".json"}],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_each_of_them_opens_without_unpickling(path):
    if path.suffix == ".json":
        assert json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            assert all(arrays[name].dtype != object for name in arrays)
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as members:
            assert all(load(members.read(name)) for name in members.namelist())
    else:
        with safe_open(path, "pt") as tensors:
            assert list(tensors.keys())


@pytest.mark.slow
def test_the_stock_pipeline_draws_what_the_judge_recognises():
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(POCKET_FOLDER, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        list(PICTURES),
        num_inference_steps=25,
        guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(PICTURES))],
        output_type="np",
    ).images
    verdicts = load_judge()(torch.from_numpy(images))
    seen = [
        (KIND_NAMES[kind], COLOR_NAMES[color])
        for kind, color in zip(verdicts.kind.argmax(1), verdicts.color.argmax(1), strict=True)
    ]
    right = [pair == asked for pair, asked in zip(seen, PICTURES.values(), strict=True)]
    assert sum(right) >= len(PICTURES) / 2, seen

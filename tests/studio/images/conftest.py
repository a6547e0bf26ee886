"""The command in this process, scenes for a tiny prior, and pictures to edit."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from image_tools.configs import PocketPriorConfig
from image_tools.diffusion.loading import load_prior
from studio.cli import main

SIZE = 32  # pixels of what the tiny prior draws


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """What it printed as JSON."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """Its error, which is one line."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0].removeprefix("error: ")


Studio = Callable[..., Done]


@pytest.fixture
def studio(monkeypatch, capsys, tmp_path) -> Studio:
    """Runs `studio` in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["studio", *arguments])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


@pytest.fixture
def scene(tiny_prior, tmp_path) -> Callable[..., str]:
    """Writes a quick scene file for the tiny prior."""

    def write(**settings: Any) -> str:
        tree = {
            "prompt": "a red duck",
            "count": 1,
            "device": "cpu",
            "prior": {"kind": "pocket", "path": str(tiny_prior)},
            "sampler": {"steps": 3, "guidance_scale": 4.0},
        }
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(tree | settings), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(scope="session")
def prior(tiny_prior):
    """The tiny prior itself."""
    return load_prior(PocketPriorConfig(path=str(tiny_prior)), torch.device("cpu"))


def write_picture(path: Path, *, size: tuple[int, int] = (SIZE, SIZE), seed: int = 0) -> str:
    """A smooth random picture."""
    low = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(low).resize(size, Image.Resampling.BICUBIC).save(path)
    return str(path)


def read(run: Path, name: str) -> np.ndarray:
    """The bytes of a picture of a run."""
    with Image.open(run / "images" / f"{name}.png") as image:
        return np.asarray(image)

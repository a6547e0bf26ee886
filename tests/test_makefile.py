"""The Makefile hands over what was typed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = [
    "a blue duck",
    'a "tin" robot',
    "a child's toy",
    "a $5 coin and ${HOME}",
    "`touch pwned` and $(shell touch pwned)",
    "a back\\slash; touch pwned",
]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def demo(folder: Path, *words: str, **environment: str) -> list[str]:
    """What `make demo` gives to a `studio` that only writes down its arguments."""
    told, program = folder / "told", folder / "venv/bin/studio"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > '{told}'\n")
    program.chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt", "venv/.installed"):
        (folder / name).touch()  # the stamp is the newest, so nothing is installed
    command = ["make", "-f", str(ROOT / "Makefile"), f"VENV={folder / 'venv'}", "PYTHON=false"]
    variables = {name: value for name, value in os.environ.items() if name != "PROMPT"}
    done = subprocess.run(
        [*command, "demo", *words], cwd=folder, env=variables | environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert not (folder / "pwned").exists()
    return told.read_text().splitlines()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_demo_hands_the_prompt_over_letter_by_letter(prompt, tmp_path):
    assert demo(tmp_path, f"PROMPT={prompt}") == ["run", "demo", "--prompt", prompt]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_demo_reads_the_prompt_from_the_environment_too(prompt, tmp_path):
    assert demo(tmp_path, PROMPT=prompt) == ["run", "demo", "--prompt", prompt]


def test_demo_without_a_prompt_makes_the_preset_as_it_is(tmp_path):
    assert demo(tmp_path, "ARGS=--seed 3") == ["run", "demo", "--seed", "3"]
    shutil.rmtree(tmp_path / "venv")
    assert demo(tmp_path, "PROMPT=") == ["run", "demo"]

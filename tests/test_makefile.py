"""The Makefile hands over what was typed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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
    (program.parent / "python").symlink_to(sys.executable)
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


def test_an_environment_whose_python_is_gone_is_made_anew(tmp_path):
    """As after an upgrade of the system; `python -m venv` alone leaves the dangling link."""
    binaries = tmp_path / "venv/bin"
    binaries.mkdir(parents=True)
    (binaries / "python").symlink_to(tmp_path / "gone")
    for name in ("pyproject.toml", "constraints.txt", "venv/.installed"):
        (tmp_path / name).touch()
    command = ["make", "-n", "-f", str(ROOT / "Makefile"), f"VENV={tmp_path / 'venv'}", "setup"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "-m venv --clear" in told
    assert "pip install" in told


@pytest.mark.parametrize(
    ("versions", "chosen"),
    [
        ({"python3": "3.14", "python3.12": "3.12"}, "python3.12"),
        ({"python3": "3.14"}, "python3"),
        ({"python3": "3.11", "python3.13": "3.13"}, "python3"),
        ({"python3": "3.15"}, ""),
        ({"python3": "3.9"}, ""),
    ],
)
def test_the_interpreter_is_one_that_packages_come_built_for(versions, chosen, tmp_path):
    for name, version in versions.items():
        asked = f"s/sys.version_info/({version.replace('.', ', ')}, 0)/"
        script = f'#!/bin/sh\nexec {sys.executable} -c "$(echo "$2" | sed "{asked}")"\n'
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    for tool in ("sh", "sed", "make", "test", "rm", "echo"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    makefile = f"include {ROOT / 'Makefile'}\nchosen:\n\t@echo '[$(PYTHON)]'\n"
    (tmp_path / "own.mk").write_text(makefile)
    command = ["make", "-f", "own.mk", "chosen"]
    told = subprocess.run(
        command, cwd=tmp_path, env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert told.stdout.strip() == f"[{chosen}]", told.stderr

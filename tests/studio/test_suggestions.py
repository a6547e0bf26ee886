"""Commands in messages run as they stand, wherever the run lies."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from studio import suggestions
from studio.checkpoints import load_latest
from studio.commands.run import _resumed_scene as resumed_scene
from studio.commands.view import find_asset
from studio.config import load_scene, load_task, split_arguments
from studio.errors import StudioError
from studio.run_folder import RunFolder
from studio.stages import load_stage
from studio.suggestions import command, quoted
from tests.studio.conftest import start

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("studio", "guidance", "image_tools", "scenes", "renderers")
QUOTING = {"command", "quoted", "quote", "join"}


def test_words_with_blanks_and_quotes_stay_one():
    words = ["run", "--resume", "it's/my runs/a", "prompt=a blue $cup"]
    assert shlex.split(command(*words)) == ["studio", *words]
    assert command("export", Path("runs/a")) == "studio export runs/a"


def test_on_windows_words_are_quoted_as_its_shell_reads_them(monkeypatch):
    monkeypatch.setattr(suggestions.os, "name", "nt")
    folder = r"runs\a purple duck\demo-s0"
    assert command("run", "--resume", folder) == f'studio run --resume "{folder}"'
    assert command("run", r"runs\duck") == r"studio run runs\duck"


@pytest.mark.parametrize("prompt", ["a red duck", "it's red", 'a "red" duck', "a $5 coin", "a\\b!"])
def test_a_quoted_prompt_is_one_word_for_a_shell(prompt):
    assert shlex.split(quoted(prompt)) == [prompt]
    assert quoted("a red duck") == '"a red duck"'


def damaged(run: RunFolder) -> None:
    """The only checkpoint cannot be read."""
    (run.checkpoints_dir / "step-000002").mkdir()
    load_latest(run.checkpoints_dir, warn=pytest.fail)


def of_pictures(run: RunFolder) -> None:
    """A run that is not continued."""
    run.resolved_path.write_text("task: edit_image\n")
    resumed_scene(run, None, [])


def edited(run: RunFolder) -> None:
    """A run that is edited before it is finished."""
    load_scene("pocket-delta-edit", [f"edit.run={run.path}"])


MESSAGES: dict[str, Callable[[RunFolder], object]] = {
    "a run in the place of a scene": lambda run: load_task(run.path),
    "no checkpoint": load_stage,
    "damaged checkpoints": damaged,
    "pictures": of_pictures,
    "an edit": edited,
    "another scene": lambda run: resumed_scene(run, None, ["seed=5", "prompt=a 'big' cat"]),
    "no asset": lambda run: find_asset(run.path),
}


@pytest.mark.parametrize("cause", MESSAGES.values(), ids=MESSAGES.keys())
def test_the_command_in_a_message_names_the_run_in_one_word(cause, tiny_scene, tmp_path):
    _, run = start(tiny_scene, tmp_path / "my runs")
    with pytest.raises(StudioError) as error:
        cause(run)
    words = shlex.split(re.search(r": (studio .*)$", str(error.value))[1])
    assert {str(run.path), str(run.resolved_path)} & set(words)


def test_the_prompt_in_a_message_is_one_word():
    with pytest.raises(StudioError) as error:
        split_arguments(["a", '"big"', "$5", "coin"])
    words = shlex.split(re.search(r": (studio run .*)$", str(error.value))[1])
    assert words == ["studio", "run", 'a "big" $5 coin']


def test_no_message_puts_a_value_into_a_command_as_it_is():
    """What stands behind ``studio VERB`` in a message goes through a function that quotes it."""
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        for line in bare_values(path.read_text())
    ]
    assert wrong == []
    assert list(bare_values('x = f"Go on: studio run --resume {path} - or not"')) == [1]
    assert list(bare_values('x = f"Go on: studio run --out {quote(str(path))}"')) == []


def bare_values(source: str) -> Iterator[int]:
    """Lines of f-strings with a command and a value in it that nothing quotes."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr):
            continue
        before = ""
        for part in node.values:
            if isinstance(part, ast.Constant):
                before = str(part.value)
            elif re.search(r"\bstudio [a-z]+\b[^:.;\n]*$", before) and not is_quoted(part.value):
                yield part.lineno


def is_quoted(value: ast.expr) -> bool:
    """Whether a value is a constant of ours, or comes from one of the functions that quote."""
    if isinstance(value, ast.Name):
        return value.id.isupper()
    function = value.func if isinstance(value, ast.Call) else None
    return getattr(function, "attr", getattr(function, "id", None)) in QUOTING

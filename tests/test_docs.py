"""The documents stay true: links lead somewhere, scene files validate, verbs and errors exist."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from image_tools import errors as image_errors
from image_tools.configs import ReferencedPriorConfig
from renderers.errors import StudioError
from studio import errors as studio_errors
from studio.cli import app
from studio.config import load_task, split_arguments
from studio.configs import SceneConfig
from studio.images.adapters import named_adapters
from studio.scene_file import preset_names
from studio.scene_inputs import named_models
from studio.stage_priors import priors_of
from studio.task_configs import TaskConfig

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
PRESETS = ROOT / "scenes/presets"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(path: Path, language: str) -> list[str]:
    """Fenced blocks of a language in a document."""
    return [body for found, body in BLOCK.findall(path.read_text()) if found == language]


SCENES = [
    pytest.param(text, id=f"{path.stem}-{k}")
    for path in DOCUMENTS
    for k, text in enumerate(blocks(path, "yaml"))
]


def test_there_are_documents_and_scenes_to_check() -> None:
    assert len(DOCUMENTS) >= 9
    assert len(SCENES) >= 5


@pytest.mark.parametrize("text", SCENES)
def test_scene_files_in_documents_validate(text: str, tmp_path: Path) -> None:
    path = tmp_path / "scene.yaml"
    path.write_text(text)
    config = load_task(path).config
    assert config.prompt
    assert not isinstance(config, SceneConfig) or config.stages


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_links_and_named_files_exist(path: Path) -> None:
    text = path.read_text()
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text)
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    named = re.findall(r"`((?:studio|guidance|image_tools|scenes|renderers|tests)/[\w/.]+)`", text)
    # A contributor's own new file is called mine.
    missing += [name for name in named if "mine" not in name and not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_named_verbs_exist(path: Path) -> None:
    verbs = {known.name for known in (*app.registered_commands, *app.registered_groups)}
    code = "\n".join([*blocks(path, ""), *re.findall(r"`([^`\n]+)`", path.read_text())])
    used = set(re.findall(r"(?:^|/)studio ([a-z]+)", code, re.MULTILINE))
    assert used <= verbs


def commands(path: Path) -> Iterator[list[str]]:
    """Every `studio` command in a document's code blocks, or in a preset's comment."""
    text = path.read_text()
    if path.suffix == ".yaml":
        parts = ["\n".join(re.findall(r"^# *(studio run .*)", text, re.M))]
    else:
        parts = blocks(path, "")
    for line in "\n".join(parts).replace("\\\n", " ").splitlines():
        found = re.match(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(studio .*)", line)
        if found:
            words = shlex.split(re.split(r" +#| > ", found[1])[0])[1:]
            yield [word for word in words if word not in ("...", "…")]


@pytest.mark.parametrize(
    "path",
    [path for path in (*DOCUMENTS, *sorted(PRESETS.glob("*.yaml"))) if list(commands(path))],
    ids=lambda path: path.stem,
)
def test_commands_in_documents_are_accepted(path: Path) -> None:
    """Options exist, and what `studio run` is given is a scene with keys that it has."""
    verbs = get_command(app).commands
    for verb, *arguments in commands(path):
        if hasattr(verbs[verb], "commands"):  # studio lora inspect
            verb, verbs_of, arguments = arguments[0], verbs[verb].commands, arguments[1:]
            verbs_of[verb].make_context(verb, list(arguments))
            continue
        given = verbs[verb].make_context(verb, list(arguments)).params
        is_on_disk = any(word.endswith(".yaml") or "edit.run=" in word for word in arguments)
        if verb == "run" and not given["resume"] and not is_on_disk:
            source, overrides = split_arguments(given["scene"] or [])
            assert load_task(source, overrides).config.prompt


def weight_keys(config: TaskConfig) -> Iterator[str]:
    """Where a scene names weights that do not ship."""
    for key, prior in priors_of(config):
        if isinstance(prior, ReferencedPriorConfig):
            yield from (f"{key}.tool.{name}" for name, _ in prior.tool.models())
            key, prior = f"{key}.base", prior.base
        if not prior.kind.startswith("pocket"):
            names = ("model", "weights", "base")
            yield from (f"{key}.{name}" for name in names if hasattr(prior, name))
    is_scene = isinstance(config, SceneConfig)
    for key, name in named_models(config) if is_scene else named_adapters(config):
        if not name.startswith("pocket-"):
            yield key


def test_own_weights_says_what_each_preset_names() -> None:
    text = (ROOT / "docs/own_weights.md").read_text()
    rows = dict.fromkeys(preset_names(), "")
    for names, keys in re.findall(r"^\| (`[a-z0-9-]+`(?:, `[a-z0-9-]+`)*) \| (.*) \|$", text, re.M):
        rows |= dict.fromkeys(re.findall(r"`(.+?)`", names), keys)
    wanted = {name: set(weight_keys(load_task(name).config)) for name in rows}
    told = {
        name: {key for key in keys if f"`{key}`" in rows[name]} for name, keys in wanted.items()
    }
    assert told == wanted


def subclasses(cls: type) -> set[type]:
    """All classes below ``cls``."""
    return {found for sub in cls.__subclasses__() for found in {sub, *subclasses(sub)}}


def test_every_error_has_a_paragraph_with_its_exit_code() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    found = {name: int(code) for name, code in re.findall(r"^## (\w+) \((\d+)\)$", text, re.M)}
    modules = ("renderers.errors", image_errors.__name__, studio_errors.__name__)
    ours = {cls for cls in subclasses(StudioError) if cls.__module__ in modules}
    assert found == {cls.__name__: cls.exit_code for cls in ours}


def test_messages_quoted_in_troubleshooting_are_printed_by_the_program() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    packages = ("studio", "guidance", "image_tools", "scenes", "renderers")
    sources = [path.read_text() for name in packages for path in (ROOT / name).rglob("*.py")]
    quotes = re.findall(r"\*([^*`]+)\*\s+—", text)
    assert len(quotes) >= 5
    parts = [part for quote in quotes for part in re.split(r"\s*…\s*", quote) if part]
    assert [part for part in parts if not any(part in source for source in sources)] == []


def is_rounded(text: str, value: float) -> bool:
    """Whether a number in a document is ``value`` to the digits that it has."""
    digits = len(text.partition(".")[2])
    return abs(float(text) - value) <= 0.5 * 10.0**-digits + 1e-9


def test_the_table_of_steps_is_that_of_the_result_file() -> None:
    results = json.loads((ROOT / "benchmarks/results/steps--cpu.json").read_text())["speeds"]
    rows = re.findall(
        r"^\| `([\w-]+)`, (\w+) \| (.*) \|$", (ROOT / "docs/memory.md").read_text(), re.M
    )
    assert [row[:2] for row in rows] == [(one["system"], one["stage"]) for one in results]
    for (system, stage, cells), one in zip(rows, results, strict=True):
        values = [one["steps_per_s"], *one["parts_ms"].values()]
        pairs = list(zip(cells.split(" | "), values, strict=True))
        assert all(is_rounded(*pair) for pair in pairs), (system, stage, pairs)


def test_the_toybox_s_figures_in_the_documents_are_current() -> None:
    from scenes.toybox.catalog import KINDS
    from scenes.toybox.splits import combinations

    held_out, total = len(combinations(True)), len(combinations(True) + combinations(False))
    text = (ROOT / "docs/training.md").read_text()
    assert f"{held_out} of the {total} combinations" in text
    assert f"{len(KINDS)} kinds of objects" in text

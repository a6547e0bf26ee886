"""The documents stay true: links lead somewhere, scene files validate, verbs and errors exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from image_tools import errors as image_errors
from renderers.errors import StudioError
from studio import errors as studio_errors
from studio.cli import app
from studio.config import load_task
from studio.configs import SceneConfig

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
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


def subclasses(cls: type) -> set[type]:
    """All classes below ``cls``."""
    return {found for sub in cls.__subclasses__() for found in {sub, *subclasses(sub)}}


def test_every_error_has_a_paragraph_with_its_exit_code() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    found = {name: int(code) for name, code in re.findall(r"^## (\w+) \((\d+)\)$", text, re.M)}
    modules = ("renderers.errors", image_errors.__name__, studio_errors.__name__)
    ours = {cls for cls in subclasses(StudioError) if cls.__module__ in modules}
    assert found == {cls.__name__: cls.exit_code for cls in ours}


def test_the_toybox_s_figures_in_the_documents_are_current() -> None:
    from scenes.toybox.catalog import KINDS
    from scenes.toybox.splits import combinations

    held_out, total = len(combinations(True)), len(combinations(True) + combinations(False))
    text = (ROOT / "docs/training.md").read_text()
    assert f"{held_out} of the {total} combinations" in text
    assert f"{len(KINDS)} kinds of objects" in text

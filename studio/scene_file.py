"""Reading and combining scene files as plain mappings: safe YAML, `base:`, `key.path=value`.

Nothing here knows the config classes' meaning; ``studio.config`` validates what comes out.
"""

from __future__ import annotations

import codecs
import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_origin

import yaml

from studio.config_types import child_type, hints_of, members, pick_member
from studio.errors import ConfigError
from studio.suggestions import command

__all__ = [
    "POCKET_METHODS",
    "did_you_mean",
    "merge",
    "parse_override",
    "preset_names",
    "preset_path",
    "read_yaml",
    "set_value",
    "with_bases",
]

PRESETS = Path(__file__).resolve().parent.parent / "scenes" / "presets"
POCKET_METHODS = PRESETS / "personalize"
"""Settings of each method of personalization for the pocket prior."""
SECTIONS = {
    "subject": ("task dreambooth3d", "dreambooth3d-dco"),
    "edit": ("scenes that edit a finished run", "pocket-delta-edit"),
}
"""What needs a section that other scenes do without, and a preset that has it."""
MAX_BYTES = 1_000_000  # a scene is a page of text; more is the wrong file
MAX_BASES = 8


class _SceneLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with ``1e-3`` a number and repeated keys an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping and refuse a key that stands twice, which YAML readers else drop."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = getattr(key_node, "value", None)
            if isinstance(key, str) and key != "<<":
                if key in seen:
                    line = key_node.start_mark.line + 1
                    raise ConfigError(f"the key '{key}' stands twice (line {line}). Keep one.")
                seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-3 as text because it has no dot; every reader of a paper expects a number.
_SceneLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the nearest choice, or nothing."""
    near = difflib.get_close_matches(str(word), list(choices), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def preset_names() -> list[str]:
    """Names of the shipped presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_path(name: str) -> Path | None:
    """File of the preset ``name``, or None."""
    return PRESETS / f"{name}.yaml" if name in preset_names() else None


def read_yaml(path: Path) -> tuple[dict[str, Any], str]:
    """The mapping in a YAML file, and its text.

    Raises:
        ConfigError: not readable, not UTF-8, not YAML, holds Python tags, or is not a mapping.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError("larger than 1 MB - expected a scene file, a page of YAML.")
        text = path.read_text(encoding=_encoding(path))
        raw = yaml.load(text, Loader=_SceneLoader)  # a SafeLoader: builds no objects
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text - expected a scene file in YAML.") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path}: {_yaml_problem(error)}") from error
    if not isinstance(raw, dict):
        what = "empty" if raw is None else f"a {type(raw).__name__}"
        raise ConfigError(f"{path}: the file is {what} - expected a mapping with prompt, stages, …")
    return raw, text


def _encoding(path: Path) -> str:
    """UTF-8, but for what Windows' PowerShell writes with `studio new demo > mine.yaml`."""
    with open(path, "rb") as file:
        start = file.read(2)
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _yaml_problem(error: Exception) -> str:
    """One line about a YAML error, with its place, and with a word about object tags."""
    mark = getattr(error, "problem_mark", None)
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    problem = getattr(error, "problem", None) or str(error).split("\n")[0]
    if "could not determine a constructor" in problem:
        tag = re.search(r"'(.*)'", problem)
        return f"the tag {tag[1] if tag else problem}{place} is refused - only plain YAML is read."
    return f"not valid YAML{place}: {problem}. Check indentation, quotes and colons there."


def with_bases(raw: dict[str, Any], path: Path) -> tuple[dict[str, Any], str | None]:
    """``raw`` laid over the scene it names in `base:`, and the name of that base."""
    name, depth = raw.get("base"), 0
    tree = {key: value for key, value in raw.items() if key != "base"}
    first = name if isinstance(name, str) else None
    while name is not None:
        depth += 1
        if depth > MAX_BASES:
            raise ConfigError(f"{path}: base: more than {MAX_BASES} levels - is there a circle?")
        found = _base_file(name, path)
        if found is None:
            hint = did_you_mean(name, preset_names())
            raise ConfigError(f"{path}: base: no preset or file {name!r}.{hint}")
        path = found
        under, _ = read_yaml(found)
        name = under.pop("base", None)
        tree = merge(under, tree)
    return tree, first


def _base_file(name: Any, path: Path) -> Path | None:
    """The preset or the file beside ``path`` that `base: name` means."""
    if not isinstance(name, str):
        return None
    beside = path.parent / name
    return preset_path(name) or (beside if beside.is_file() else None)


def merge(under: Any, over: Any) -> Any:
    """``over`` laid on ``under``: mappings key by key, stages by name, all else replaced.

    A mapping whose ``kind`` differs replaces the other one: its keys mean something else.
    """
    if isinstance(under, dict) and isinstance(over, dict):
        if over.get("kind", under.get("kind")) != under.get("kind"):
            return over
        return {
            key: merge(under[key], over[key]) if key in under and key in over
            else over.get(key, under.get(key))
            for key in [*under, *(key for key in over if key not in under)]
        }  # fmt: skip
    if _are_named(under) and _are_named(over):
        return _merge_named(under, over)
    return over


def _are_named(value: Any) -> bool:
    """Whether ``value`` is a list of mappings that all have a name."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(item, dict) and isinstance(item.get("name"), str) for item in value)
    )


def _merge_named(under: list[dict], over: list[dict]) -> list[dict]:
    """Lay ``over`` on ``under`` by name; new names are appended, repeated names kept to be told."""
    result = list(under)
    places = {item["name"]: index for index, item in enumerate(under)}
    for item in over:
        if item["name"] in places:
            index = places.pop(item["name"])
            result[index] = merge(result[index], item)
        else:
            result.append(item)
    return result


def parse_override(text: str) -> tuple[str, Any, str]:
    """Split ``key.path=value``: the key path, the value read as YAML, and its raw text.

    Raises:
        ConfigError: no ``=``, no key, or a value that is not YAML.
    """
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals or not re.fullmatch(r"[A-Za-z_][\w-]*(\.[\w-]+)*", key):
        raise ConfigError(f"override {text!r}: expected key.path=value, such as stages.0.steps=300")
    try:
        value = yaml.load(raw, Loader=_SceneLoader) if raw.strip() else ""
    except (yaml.YAMLError, ValueError):
        value = raw
    return key, value, raw


def set_value(tree: dict[str, Any], tp: Any, key: str, value: Any, raw: str) -> None:
    """Set the entry at the dotted ``key`` of a completed tree of type ``tp``, in place.

    List entries go by index or by their ``name``. Text fields take ``raw`` as it stands.

    Raises:
        ConfigError: no such key (with a suggestion) or index.
    """
    node: Any = tree
    path: list[str] = []
    parts = key.split(".")
    for depth, part in enumerate(parts):
        index = _find_entry(node, tp, part, ".".join(path))
        tp = child_type(tp, index, node)
        path.append(part)
        if depth == len(parts) - 1:
            node[index] = raw if tp is str else value
        else:
            node = node[index]


def _find_entry(node: Any, tp: Any, part: str, path: str) -> str | int:
    """The key or list index that ``part`` means in ``node``."""
    where = f"{path}." if path else ""
    if isinstance(node, list):
        names = [item.get("name") for item in node if isinstance(item, dict)]
        if part in names:
            return names.index(part)
        if part.lstrip("-").isdigit() and -len(node) <= int(part) < len(node):
            return int(part) % len(node)
        have = "an empty list" if not node else f"0 to {len(node) - 1}"
        named = f" or a name ({', '.join(map(str, names))})" if any(names) else ""
        raise ConfigError(f"{where}{part}: no such entry - expected an index, {have}{named}.")
    if node is None and members(tp):
        raise ConfigError(f"{where}{part}: {_absent(path, part)}")
    if not isinstance(node, dict):
        raise ConfigError(f"{where}{part}: no such key - {path} is a single value, {node!r}.")
    if get_origin(tp) is dict:
        return part
    cls = pick_member(tp, node)
    known = list(hints_of(cls) if cls else node)
    if part not in known:
        hint = did_you_mean(part, known) or f" Known keys: {', '.join(known)}."
        raise ConfigError(f"{where}{part}: unknown key.{hint}")
    return part


def _absent(path: str, part: str) -> str:
    """What to do about a key of a section that the scene does without."""
    if path in SECTIONS:
        what, preset = SECTIONS[path]
        return f"this scene has no {path}, which belongs to {what} - begin with preset {preset}."
    keys = ".".join(name for name in path.split(".") if not name.isdigit())
    return (
        f"this scene leaves {path} empty (null) - expected the section as a whole, such as "
        f"{path}='{{{part}: …}}'. Its keys: {command('explain', keys)}"
    )

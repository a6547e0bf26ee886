"""From a scene file to a validated ``SceneConfig``: the only module that knows pydantic.

The config classes are plain frozen dataclasses. pydantic's ``TypeAdapter`` checks them strictly
(`steps: true` is no number), unions are told apart by ``kind``, keys that do not exist are errors
with a suggestion, and all errors of a file are listed at once.

    scene = load_scene("demo", overrides=["prompt=a red mushroom", "stages.0.steps=200"])
    scene.config.stages[0].steps
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import Discriminator, TypeAdapter, ValidationError

from studio.config_messages import messages
from studio.config_types import child_type, hints_of, is_union, item_type, members, pick_member
from studio.configs import SceneConfig
from studio.edit_configs import open_edit
from studio.errors import ConfigError
from studio.scene_file import (
    did_you_mean,
    merge,
    parse_override,
    preset_names,
    preset_path,
    read_yaml,
    set_value,
    with_bases,
)
from studio.suggestions import command, quoted
from studio.task_configs import DEFAULT_TASK, TaskConfig, task_class, tasks_of
from studio.total_steps import set_total_steps

__all__ = [
    "Change",
    "Scene",
    "differences",
    "dump",
    "dump_yaml",
    "json_schema",
    "load_scene",
    "load_task",
    "validate",
]

Config = TypeVar("Config")
DEFAULT_PRESET = "demo"
_OVERRIDE = re.compile(r"^[A-Za-z_][\w-]*(\.[\w-]+)*=")


@dataclass(frozen=True)
class Change:
    """One value that differs from the preset."""

    key: str
    old: Any
    new: Any


@dataclass(frozen=True)
class Scene:
    """A validated scene with where it came from."""

    config: TaskConfig
    """Of ``load_scene`` always a ``SceneConfig``."""
    name: str
    """Preset or file stem; names the method in the run folder."""
    text: str
    """The scene file as given."""
    changes: tuple[Change, ...]
    """Differences from the preset it builds on, else from the file before overrides."""


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Tell the scene (a file, a preset or a prompt) from ``key.path=value`` overrides.

    Raises:
        ConfigError: more than one scene, which is most often a prompt without quotes; an override
            with a broken key; bytes that are no text.
    """
    for text in arguments:
        _check_argument(text)
    overrides = [text for text in arguments if _OVERRIDE.match(text)]
    scenes = [text for text in arguments if not _OVERRIDE.match(text)]
    if len(scenes) > 1:
        joined = " ".join(scenes)
        raise ConfigError(
            f"{len(scenes)} scenes given ({', '.join(map(repr, scenes[:3]))}) - expected one file, "
            f"preset or prompt. Put a prompt in quotes: studio run {quoted(joined[:80])}"
        )
    _check_once(overrides)
    return (scenes[0] if scenes else None), overrides


def _check_once(overrides: Sequence[str]) -> None:
    """Refuse a key that is given twice, of which one value would be lost."""
    keys = [text.partition("=")[0] for text in overrides]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        given = ", ".join(text for text in overrides if text.partition("=")[0] == twice[0])
        raise ConfigError(f"{twice[0]} is given more than once ({given}) - expected it once.")


def _check_argument(text: str) -> None:
    """Refuse what is neither a scene nor an override, with the reason."""
    if not text.isascii() and text.encode("utf-8", "replace").decode("utf-8") != text:
        raise ConfigError(f"{text!r} is not UTF-8 text - expected letters your terminal can show.")
    key, equals, _ = text.partition("=")
    if equals and not re.search(r"\s", key) and not _OVERRIDE.match(text):
        raise ConfigError(
            f"override {text!r}: expected key.path=value, such as stages.0.steps=300. "
            f"For a prompt write prompt={text!r}"
        )


def load_scene(source: str | Path | None, overrides: Sequence[str] = ()) -> Scene:
    """The same as :func:`load_task`, of scenes that make a 3D asset.

    Raises:
        ConfigError: listing every problem of the scene and the overrides; or it makes pictures.
    """
    scene = load_task(source, overrides)
    if not isinstance(scene.config, SceneConfig):
        raise ConfigError(
            f"{source}: task {scene.config.task} makes pictures - expected a scene that makes an "
            f"asset. Pictures come from: {command('run', source)}"
        )
    return scene


def load_task(source: str | Path | None, overrides: Sequence[str] = ()) -> Scene:
    """Read a scene file or preset, or take ``source`` as the prompt of the demo preset.

    Raises:
        ConfigError: listing every problem of the scene and the overrides.
    """
    path, overrides = _find(source, list(overrides))
    raw, text = read_yaml(path)
    tree, base = with_bases(raw, path)
    shown = path.stem if preset_path(path.stem) == path else str(path)
    config = validate(task_class(tree, shown), tree, overrides, where=shown)
    # What a preset changes of its own base is not the user's doing.
    changes = tuple(_changes(config, None if preset_path(path.stem) == path else base, tree))
    if isinstance(config, SceneConfig):
        config = open_edit(config, _read_resolved)
    name = path.stem
    if path.name == "resolved.yaml":  # a run's own record: keep the method's name
        name = re.sub(r"-s\d+-\d{8}-\d{6}(-\d+)?$", "", path.resolve().parent.name)
    return Scene(config, name, text, changes)


def _read_resolved(path: Path) -> SceneConfig:
    """The scene of a run's ``resolved.yaml``.

    Raises:
        ConfigError: the run made no asset, or its record is damaged.
    """
    tree = read_yaml(path)[0]
    if (task := tree.get("task", DEFAULT_TASK)) not in tasks_of(SceneConfig):
        raise ConfigError(
            f"edit.run: {path.parent} is a run of task {task}, which makes no asset - expected a "
            "finished run that made one."
        )
    return validate(SceneConfig, tree, where=str(path))


def _find(source: str | Path | None, overrides: list[str]) -> tuple[Path, list[str]]:
    """The scene file that ``source`` means, and the overrides with a prompt added."""
    default = preset_path(DEFAULT_PRESET)
    if default is None:
        raise ConfigError(f"The preset '{DEFAULT_PRESET}' is missing from this installation.")
    if source is None:
        return default, overrides
    text = str(source)
    found = preset_path(text)
    if found:
        return found, overrides
    path = Path(text)
    try:
        exists, folder = path.exists(), path.is_dir()
    except (OSError, ValueError):  # too long for a path, or a NUL in it: surely a prompt
        exists = folder = False
    if exists and not folder:
        return path, overrides
    if folder and (path / "run.json").is_file():
        on = command("run", "--resume", path)
        raise ConfigError(f"{text} is a run folder. Continue it with: {on}")
    if folder or path.suffix in {".yaml", ".yml"}:
        hint = did_you_mean(path.stem, preset_names()) or " studio new lists the presets."
        what = "is a folder" if folder else "no such file"
        raise ConfigError(f"{text}: {what} - expected a scene file, a preset or a prompt.{hint}")
    near = did_you_mean(text, preset_names()) if " " not in text.strip() else ""
    if near:
        raise ConfigError(f"No preset or file {text!r}.{near} For a prompt write prompt={text}")
    if any(override.startswith("prompt=") for override in overrides):
        raise ConfigError(f"prompt is given twice, as {text!r} and as prompt=… - expected it once.")
    return default, [f"prompt={text}", *overrides]


def _changes(config: TaskConfig, base: str | None, tree: dict[str, Any]) -> Iterator[Change]:
    """What differs from the preset named in `base:`, else from the file before overrides."""
    reference = tree
    found = preset_path(base) if base else None
    if found:
        reference, _ = with_bases(read_yaml(found)[0], found)
    return differences(_complete(type(config), reference), dump(config))


def validate(
    tp: type[Config], tree: dict[str, Any], overrides: Sequence[str] = (), *, where: str = "config"
) -> Config:
    """Build the config class ``tp`` from a mapping and ``key.path=value`` overrides.

    Raises:
        ConfigError: every unknown key, wrong type, unknown kind and bad override, one per line.
    """
    try:
        full = _complete(tp, json.loads(json.dumps(tree, default=str)))
    except (ValueError, RecursionError) as error:  # a YAML alias that contains itself
        raise ConfigError(f"{where}: the file refers to itself ({error}).") from error
    problems = _apply_overrides(tp, full, overrides)
    try:
        config = _adapter(tp).validate_json(json.dumps(full), strict=True)
    except ValidationError as error:
        for key, message in messages(tp, full, error.errors()):
            problems.setdefault(key, message)
    if problems:
        lines = list(problems.values())
        raise ConfigError(
            f"{where}: {lines[0]}"
            if len(lines) == 1
            else f"{where}: {len(lines)} errors\n  " + "\n  ".join(lines)
        )
    return config


def dump(config: Any) -> Any:
    """A config as mappings, lists and plain values, all defaults filled in."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: dump(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}
    if isinstance(config, (list, tuple)):
        return [dump(item) for item in config]
    if isinstance(config, dict):
        return {key: dump(value) for key, value in config.items()}
    return config


def dump_yaml(config: Any) -> str:
    """The text of ``resolved.yaml``: loading it gives an equal config."""
    return yaml.safe_dump(
        dump(config), sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
    )


def json_schema(tp: type = SceneConfig) -> dict[str, Any]:
    """JSON Schema of a config class, for completion in editors."""
    return _adapter(tp).json_schema()


def differences(old: Any, new: Any, key: str = "") -> Iterator[Change]:
    """The leaves in which two dumped trees differ; lists of mappings entry by entry."""
    same_kind = (
        isinstance(old, dict) and isinstance(new, dict) and old.get("kind") == new.get("kind")
    )
    if same_kind:
        for name in [*old, *(name for name in new if name not in old)]:
            yield from differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif _both_lists_of_mappings(old, new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{key}.{index}")
    elif old != new:
        yield Change(key, old, new)


def _both_lists_of_mappings(old: Any, new: Any) -> bool:
    """Whether two lists can be compared entry by entry."""
    return (
        isinstance(old, list)
        and isinstance(new, list)
        and len(old) == len(new)
        and all(isinstance(item, dict) for item in (*old, *new))
    )


# --- filling in defaults and overriding -----------------------------------------------------------


def _complete(tp: Any, raw: Any) -> Any:
    """``raw`` with every key it leaves out at its default; what is wrong stays for the validator.

    A mapping given for a field with a default of the same kind changes that default, so that
    `grid: {n_levels: 8}` keeps the rest of the grid that its owner chose.
    """
    if isinstance(raw, list) and item_type(tp) is not None:
        return [_complete(item_type(tp), item) for item in raw]
    cls = pick_member(tp, raw)
    if cls is None:
        return raw
    full: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.name not in hints_of(cls):
            continue
        default = _default(field)
        if field.name in raw:
            value = raw[field.name]
            laid = merge(dump(default), value) if isinstance(value, dict) and default else value
            full[field.name] = _complete(hints_of(cls)[field.name], laid)
        elif default is not dataclasses.MISSING:
            full[field.name] = dump(default)
    return {**full, **{key: value for key, value in raw.items() if key not in full}}


def _default(field: dataclasses.Field) -> Any:
    """A field's default value, or MISSING."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _apply_overrides(tp: Any, tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, str]:
    """Set every override in ``tree``, kinds first so that order never matters; return problems."""
    problems: dict[str, str] = {}
    for text in sorted(overrides, key=lambda text: not text.partition("=")[0].endswith(".kind")):
        try:
            key, value, raw = parse_override(text)
            if key == "steps" and "stages" in tree and isinstance(tree["stages"], list):
                set_total_steps(tree["stages"], value)
            elif key.endswith(".kind"):
                _set_kind(tp, tree, key.removesuffix(".kind"), value)
            else:
                set_value(tree, tp, key, value, raw)
        except ConfigError as error:
            problems[text] = str(error)
    return problems


def _set_kind(tp: Any, tree: dict[str, Any], key: str, kind: Any) -> None:
    """Change the kind of the mapping at ``key``; the keys of another kind start at its defaults."""
    node, node_type = tree, tp
    for part in key.split("."):
        index = int(part) if isinstance(node, list) and part.isdigit() else part
        node_type = child_type(node_type, index, node)
        try:
            node = node[index]
        except (KeyError, IndexError, TypeError):
            node = None
    if not isinstance(node, dict) or node.get("kind") != kind:
        set_value(tree, tp, key, _complete(node_type, {"kind": kind}), "")


# --- pydantic -------------------------------------------------------------------------------------


@cache
def _adapter(tp: type) -> TypeAdapter:
    """pydantic's validator of a config class, or of scene files of several tasks."""
    _teach(tp, set())
    if is_union(tp):  # scene files of every task
        return TypeAdapter(Annotated[_union(members(tp)), Discriminator("task")])
    return TypeAdapter(tp)


def _teach(tp: Any, seen: set[type]) -> None:
    """Tell pydantic what plain dataclasses do not say: no other keys, and unions go by `kind`."""
    for cls in members(tp):
        if cls in seen:
            continue
        seen.add(cls)
        cls.__pydantic_config__ = {"extra": "forbid"}
        for name, hint in hints_of(cls).items():
            _teach(item_type(hint) or hint, seen)
            cls.__dataclass_fields__[name].type = _tagged(hint)


def _tagged(tp: Any) -> Any:
    """``A | B`` of config classes as a discriminated union, also inside a sequence."""
    if get_origin(tp) is tuple and get_args(tp)[-1] is Ellipsis:
        return tuple[_tagged(get_args(tp)[0]), ...]
    if not is_union(tp) or len(members(tp)) < 2:
        return tp
    union = Annotated[_union(members(tp)), Discriminator("kind")]
    return union | None if type(None) in get_args(tp) else union


def _union(classes: tuple[type, ...]) -> Any:
    """``A | B | …`` of the classes."""
    joined: Any = classes[0]
    for cls in classes[1:]:
        joined = joined | cls
    return joined

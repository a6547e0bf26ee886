"""Scene files: merging, overriding, validating, dumping. Error texts are in test_bad_input.py."""

from __future__ import annotations

import json
from dataclasses import dataclass
from dataclasses import field as setting
from pathlib import Path
from typing import Literal

import pytest
import yaml

from studio.config import (
    Change,
    differences,
    dump,
    dump_yaml,
    json_schema,
    load_scene,
    load_task,
    split_arguments,
    validate,
)
from studio.configs import SceneConfig
from studio.errors import ConfigError
from studio.scene_file import merge, preset_names, preset_path, read_yaml


@dataclass(frozen=True)
class Grid:
    levels: int = 4
    """Levels."""
    size: int = 15
    """Size."""


@dataclass(frozen=True)
class Ball:
    kind: Literal["ball"] = "ball"
    radius: float = 1.0
    """Radius."""


@dataclass(frozen=True)
class Box:
    edge: float
    """Edge."""
    kind: Literal["box"] = "box"
    grid: Grid = setting(default_factory=lambda: Grid(levels=9))
    """Grid with a default of its own."""


@dataclass(frozen=True)
class Part:
    name: str
    shape: Ball | Box = setting(default_factory=Ball)
    """Shape."""
    ramp: float | tuple[tuple[float, float], ...] = 1.0
    """A schedule."""


@dataclass(frozen=True)
class Toy:
    parts: tuple[Part, ...] = ()
    text: str = ""
    size: tuple[int, int] = (2, 3)
    extra: Ball | Box | None = None


def test_kind_selects_the_member_of_a_union():
    toy = validate(Toy, {"parts": [{"name": "a", "shape": {"kind": "box", "edge": 2}}]})
    assert toy.parts[0].shape == Box(edge=2.0)
    assert isinstance(toy.parts, tuple)


def test_omitted_kind_means_the_first_member():
    toy = validate(Toy, {"parts": [{"name": "a", "shape": {"radius": 3.0}}]})
    assert toy.parts[0].shape == Ball(radius=3.0)


def test_partial_mapping_keeps_the_rest_of_its_owners_default():
    part = {"name": "a", "shape": {"kind": "box", "edge": 1, "grid": {"size": 3}}}
    toy = validate(Toy, {"parts": [part]})
    assert toy.parts[0].shape.grid == Grid(levels=9, size=3)


def test_schedules_and_optional_unions():
    toy = validate(
        Toy,
        {"parts": [{"name": "a", "ramp": [[0, 1], [1, 2.5]]}], "extra": {"kind": "box", "edge": 1}},
    )
    assert toy.parts[0].ramp == ((0.0, 1.0), (1.0, 2.5))
    assert toy.extra == Box(edge=1.0)
    assert validate(Toy, {"extra": None}).extra is None


def test_overrides_reach_any_depth_by_index_and_by_name_in_any_order():
    tree = {"parts": [{"name": "a"}, {"name": "b"}]}
    overrides = ["parts.b.shape.edge=5", "parts.0.ramp=[[0,1],[1,0]]", "parts.1.shape.kind=box"]
    expected = validate(Toy, tree, overrides)
    assert expected.parts[1].shape == Box(edge=5.0)
    assert expected.parts[0].ramp == ((0.0, 1.0), (1.0, 0.0))
    assert validate(Toy, tree, overrides[::-1]) == expected


@pytest.mark.parametrize("text", ["12", "true", "null", "a: b", "[x", "2024-01-01", "'quoted'"])
def test_text_fields_take_an_override_as_it_stands(text):
    assert validate(Toy, {}, [f"text={text}"]).text == text


def test_changing_the_kind_resets_the_other_keys():
    tree = {"parts": [{"name": "a", "shape": {"radius": 7.0}}]}
    with pytest.raises(ConfigError, match=r"parts\.0\.shape\.edge: is missing"):
        validate(Toy, tree, ["parts.0.shape.kind=box"])
    same = validate(Toy, tree, ["parts.0.shape.kind=ball"])
    assert same.parts[0].shape.radius == 7.0


def test_numbers_in_scientific_notation_need_no_dot(tmp_path):
    scene = _write(tmp_path, {"base": "demo"})
    rate = load_scene(scene, ["stages.0.optimizer.eps=1e-12", "stages.0.optimizer.grid=2E-2"])
    assert rate.config.stages[0].optimizer.eps == 1e-12
    assert rate.config.stages[0].optimizer.grid == 0.02


@pytest.mark.parametrize(
    ("under", "over", "expected"),
    [
        ({"a": 1, "b": {"c": 1}}, {"b": {"d": 2}}, {"a": 1, "b": {"c": 1, "d": 2}}),
        ({"x": {"kind": "p", "a": 1}}, {"x": {"kind": "q"}}, {"x": {"kind": "q"}}),
        ({"x": {"kind": "p", "a": 1}}, {"x": {"b": 2}}, {"x": {"kind": "p", "a": 1, "b": 2}}),
        ({"x": [1, 2]}, {"x": [3]}, {"x": [3]}),
        (
            {"s": [{"name": "a", "n": 1}, {"name": "b"}]},
            {"s": [{"name": "b", "n": 2}, {"name": "c"}]},
            {"s": [{"name": "a", "n": 1}, {"name": "b", "n": 2}, {"name": "c"}]},
        ),
    ],
)
def test_merge(under, over, expected):
    assert merge(under, over) == expected


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_complete_and_survive_a_round_trip(name, tmp_path):
    config = load_task(name).config
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    again = load_task(path)
    assert again.config == config
    assert again.changes == ()


def test_dreamfusion_preset_holds_the_published_values():
    stage = load_scene("dreamfusion").config.stages[0]
    assert stage.steps == 10_000
    assert stage.guidance.guidance_scale == 101.0  # 100 in eps_c + s (eps_c - eps_u)
    assert stage.losses.orient == ((0.0, 10.0), (0.5, 1000.0))
    assert stage.optimizer.betas == (0.9, 0.99)
    assert stage.cameras.elevation_deg_range == (-10.0, 45.0)
    growth = (stage.field.grid.finest_resolution / 16) ** (1 / (stage.field.grid.n_levels - 1))
    assert growth == pytest.approx(1.447269237440378, rel=1e-6)


def test_a_string_that_is_no_file_and_no_preset_is_a_prompt():
    scene = load_scene("a small blue teapot")
    assert scene.config.prompt == "a small blue teapot"
    assert scene.name == "demo"
    before = load_scene("demo").config.prompt
    assert scene.changes == (Change("prompt", before, "a small blue teapot"),)


def test_prompt_may_contain_equals_signs_and_colons():
    scene, overrides = split_arguments(["E = mc2: the poster", "seed=3"])
    assert scene == "E = mc2: the poster"
    assert load_scene(scene, overrides).config.prompt == "E = mc2: the poster"


def test_base_is_a_preset_or_a_file_beside_the_scene(tmp_path):
    _write(tmp_path, {"base": "demo", "prompt": "one", "seed": 5}, "first.yaml")
    stages = [{"name": "shape", "steps": 7}]
    scene = load_scene(_write(tmp_path, {"base": "first.yaml", "seed": 6, "stages": stages}))
    assert (scene.config.prompt, scene.config.seed) == ("one", 6)
    assert scene.config.stages[0].steps == 7
    assert scene.config.stages[0].guidance == load_scene("demo").config.stages[0].guidance


def test_changes_are_told_against_the_preset(tmp_path):
    scene = load_scene(_write(tmp_path, {"base": "demo", "seed": 4}), ["steps=10"])
    assert Change("seed", 0, 4) in scene.changes
    assert any(change.key == "stages.0.steps" and change.new == 10 for change in scene.changes)
    assert len(scene.changes) == 2


def test_total_steps_are_shared_in_proportion(tmp_path):
    detail = {"name": "detail", "steps": 100, "field": {"kind": "previous"}}
    stages = [{"name": "shape"}, detail]
    path = _write(tmp_path, {"base": "demo", "stages": stages})
    first = load_scene(path).config.stages[0].steps
    config = load_scene(path, [f"steps={(first + 100) // 2}"]).config
    assert [stage.steps for stage in config.stages] == [first // 2, 50]


def test_all_errors_are_listed_at_once():
    with pytest.raises(ConfigError) as caught:
        load_scene("demo", ["promt=x", "stages.0.steps=abc", "stages.0.cameras.height=-1"])
    text = str(caught.value)
    assert "3 errors" in text
    assert "promt: unknown key. Did you mean 'prompt'?" in text
    assert "stages.0.steps: got" in text
    assert "stages.0.cameras.height" in text


def test_unknown_key_deep_in_the_file_is_told_with_its_path(tmp_path):
    stages = [{"name": "shape", "guidance": {"kind": "sds", "guidnace_scale": 3}}]
    path = _write(tmp_path, {"base": "demo", "stages": stages})
    expected = r"stages\.0\.guidance\.guidnace_scale: unknown key\. Did you mean 'guidance_scale'"
    with pytest.raises(ConfigError, match=expected):
        load_scene(path)


def test_schema_refuses_unknown_keys_and_names_the_kinds():
    schema = json_schema(SceneConfig)
    assert schema["additionalProperties"] is False
    background = schema["$defs"]["StageConfig"]["properties"]["background"]
    assert set(background["discriminator"]["mapping"]) == {"solid", "random", "neural"}
    assert json.loads(json.dumps(schema)) == schema


def test_a_run_s_record_keeps_the_method_s_name_from_inside_its_folder(tmp_path, monkeypatch):
    run = tmp_path / "a-duck" / "mine-s3-20260101-000000-2"
    run.mkdir(parents=True)
    (run / "resolved.yaml").write_text(dump_yaml(load_scene("demo").config))
    monkeypatch.chdir(run)
    assert load_scene("resolved.yaml").name == "mine"
    assert load_scene("../mine-s3-20260101-000000-2/resolved.yaml").name == "mine"


def test_dump_is_plain_and_differences_are_leaves():
    old, new = load_scene("demo").config, load_scene("demo", ["seed=9"]).config
    assert list(differences(dump(old), dump(new))) == [Change("seed", 0, 9)]
    assert yaml.safe_load(yaml.safe_dump(dump(new))) == dump(new)


def _write(folder: Path, tree: dict, name: str = "scene.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-8"])
def test_scene_files_as_windows_writes_them_are_read(encoding, tmp_path):
    """`studio new demo > mine.yaml` is UTF-16 in the PowerShell that Windows comes with."""
    path = tmp_path / "mine.yaml"
    path.write_text("base: demo\nprompt: a caf\u00e9\n", encoding=encoding)
    assert load_scene(path).config.prompt == "a caf\u00e9"


def test_a_value_given_twice_is_refused_and_not_lost():
    with pytest.raises(ConfigError, match="seed is given more than once"):
        split_arguments(["demo", "seed=1", "steps=2", "seed=3"])
    with pytest.raises(ConfigError, match="prompt is given twice"):
        load_task("a red duck", ["prompt=a blue duck"])


def test_what_a_preset_changes_of_its_own_base_is_not_told_as_the_users_change():
    presets = {name: read_yaml(preset_path(name))[0] for name in preset_names()}
    built = [name for name, tree in presets.items() if "base" in tree]
    assert built
    for name in built:
        assert load_task(name).changes == ()
        seed = load_task(name, ["seed=9"]).changes
        assert [change.key for change in seed] == ["seed"]

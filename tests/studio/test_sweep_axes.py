"""The axes of a sweep: how values are split, and prompts that stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.config import load_scene
from studio.errors import ConfigError
from studio.sweep_axes import (
    Axis,
    axes_of,
    combinations,
    overrides_of,
    prompt_axis,
    seed_axis,
    split_values,
)

VALUES = {
    "1,2,3": ("1", "2", "3"),
    "one": ("one",),
    "[1,2],[3,4]": ("[1,2]", "[3,4]"),
    "[[0,0.98],[1,0.5]],0.9": ("[[0,0.98],[1,0.5]]", "0.9"),
    "{kind: a, b: 1},{kind: c}": ("{kind: a, b: 1}", "{kind: c}"),
    "'a, b', c": ("'a, b'", "c"),
    '"it\'s, red",b': ('"it\'s, red"', "b"),
    "a red duck's beak,b": ("a red duck's beak", "b"),
    "a,": ("a", ""),
}


@pytest.mark.parametrize(("text", "values"), VALUES.items())
def test_values_are_split_at_commas_outside_of_brackets_and_quotes(text, values):
    assert split_values(text) == values


def test_overrides_with_one_value_are_fixed():
    axes, fixed = axes_of(["seed=0,1", "steps=7", "prompt='a, b',c"])
    assert axes == [Axis("seed", ("0", "1")), Axis("prompt", ("a, b", "c"))]
    assert fixed == ["steps=7"]


def test_quotes_that_keep_a_comma_in_are_taken_off_a_single_value_too():
    assert axes_of(["prompt='a red, round ball'"]) == ([], ["prompt=a red, round ball"])
    assert axes_of(["prompt=a duck's beak"]) == ([], ["prompt=a duck's beak"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["seed=1,"], "an empty value"), (["seed=1,1"], "a value twice"),
     (["seed=1", "seed=2"], "stands twice")],
)  # fmt: skip
def test_values_that_say_nothing_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        axes_of(overrides)


def test_all_combinations_or_side_by_side():
    axes = [Axis("a", ("1", "2")), Axis("b", ("x", "y"))]
    assert combinations(axes) == [("1", "x"), ("1", "y"), ("2", "x"), ("2", "y")]
    assert combinations(axes, side_by_side=True) == [("1", "x"), ("2", "y")]
    assert combinations([]) == [()]
    with pytest.raises(ConfigError, match="a has 2, c has 3"):
        combinations([axes[0], Axis("c", ("1", "2", "3"))], side_by_side=True)
    many = Axis("n", tuple(map(str, range(101))))
    with pytest.raises(ConfigError, match="10201 runs"):
        combinations([many, many])


LINES = {
    "one line": ["a purple duck"],
    "one line with a comma": ["a red, round ball"],
    "commas": ["a purple duck", "a red, round ball"],
    "quotes and commas": ['a "big, red" duck', "a cat"],
    "apostrophes": ["a duck's nest", "a cat's bed, blue"],
    "all in quotes": ['"a duck"', "'a cat, sleeping'"],
    "what YAML would read": ["{a: duck}", "[1, 2]", "yes", "1e3", "a: b"],
    "backslashes": ["a duck\\n", "a cat \\u00e9"],
}


@pytest.mark.parametrize("lines", LINES.values(), ids=LINES.keys())
def test_prompts_of_a_file_are_taken_as_they_stand(lines, tiny_scene, tmp_path):
    axes, fixed = axes_of([], given=prompt_axis(write(tmp_path / "prompts.txt", lines)))
    found = [
        load_scene(tiny_scene, [*fixed, *overrides_of(axes, row)]).config.prompt
        for row in combinations(axes)
    ]
    assert found == lines


def test_marks_of_other_editors_are_no_part_of_the_first_prompt(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("a duck\r\na cat\r\n".encode("utf-8-sig"))
    assert prompt_axis(path) == [Axis("prompt", ("a duck", "a cat"))]


def test_a_prompt_or_a_seed_twice_is_refused(tmp_path):
    path = write(tmp_path / "prompts.txt", ["a duck", "a cat", "a duck"])
    with pytest.raises(ConfigError, match="'a duck' stands twice"):
        prompt_axis(path)
    with pytest.raises(ConfigError, match="a seed twice"):
        seed_axis("0-3,2")
    with pytest.raises(ConfigError, match="prompt stands twice"):
        axes_of(["prompt=a duck"], given=prompt_axis(write(path, ["a cat"])))


def write(path: Path, lines: list[str]) -> Path:
    """A file of these lines."""
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path

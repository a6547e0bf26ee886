"""The command line: light start, help, listing, explaining, exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from studio.commands import explain
from studio.config import load_scene
from studio.configs import SceneConfig
from studio.errors import ConfigError
from studio.scene_file import preset_names

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "numba", "diffusers", "transformers", "trimesh", "scipy", "PIL", "numpy"}


def studio(*arguments: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Run the command in a process of its own."""
    command = [sys.executable, *flags, "-m", "studio", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["run", "--help"], 0),
        (["new"], 0),
        (["new", "demo"], 0),
        (["explain", "guidance_scale"], 0),
        (["run", "demo", "promt=x"], 2),
        (["run", "demo", "--dry-run"], 0),
        (["run", "--resume", "no-such-folder"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_light_verbs_import_nothing_heavy(arguments, code):
    done = studio(*arguments, flags=("-X", "importtime"))
    assert done.returncode == code
    imported = set(re.findall(r"\|\s+(\w+)$", done.stderr, flags=re.MULTILINE))
    assert "typer" in imported
    assert imported & HEAVY == set()


def test_help_is_short_and_lists_only_verbs_that_exist():
    text = studio("--help").stdout
    assert len(text.splitlines()) <= 25
    verbs = re.findall(r"^  (\w+) {2,}\S", text.split("Commands:")[1], flags=re.MULTILINE)
    assert {"run", "new", "explain", "doctor"} <= set(verbs)
    assert all(find_spec(f"studio.commands.{verb}") for verb in verbs)


def test_new_prints_a_scene_that_loads(tmp_path):
    done = studio("new", "dreamfusion")
    path = tmp_path / "mine.yaml"
    path.write_text(done.stdout, encoding="utf-8")
    assert load_scene(path).config == load_scene("dreamfusion").config
    listed = json.loads(studio("new", "--json").stdout)
    assert sorted(listed) == preset_names()
    sentence = "MVDream's method (arXiv 2308.16512) with the shipped multi-view prior"
    assert listed["demo"] == f"A toy object in minutes on two CPU cores: {sentence}"
    assert not any("studio run" in about for about in listed.values())


def test_dry_run_prints_the_resolved_scene_and_the_changes():
    done = studio("run", "a blue cup", "stages.0.steps=7", "--seed", "3", "--dry-run")
    tree = yaml.safe_load(done.stdout)
    assert (tree["prompt"], tree["seed"], tree["stages"][0]["steps"]) == ("a blue cup", 3, 7)
    assert re.search(r"stages\.0\.steps: \d+ -> 7\n", done.stderr)
    as_json = studio("run", "a blue cup", "steps=7", "--seed", "3", "--dry-run", "--json")
    assert json.loads(as_json.stdout) == tree


def test_errors_go_to_stderr_and_as_json_to_stdout():
    plain = studio("run", "demo", "seed=x")
    assert (plain.returncode, plain.stdout) == (2, "")
    assert plain.stderr == 'error: demo: seed: got "x" - expected a whole number.\n'
    done = studio("run", "demo", "seed=x", "--json")
    problem = json.loads(done.stdout)
    assert (problem["error"], problem["exit_code"], done.returncode) == ("ConfigError", 2, 2)


def test_wrong_option_and_wrong_verb_exit_with_2():
    assert studio("run", "--stepz", "3").returncode == 2
    assert studio("runn").returncode == 2


def test_every_key_is_explained():
    undocumented = {entry.path for entry in explain.entries() if not entry.doc}
    assert undocumented == set()


def test_explain_finds_keys_by_their_end_and_skips_indices():
    found = {entry.kind: entry for entry in explain.find("stages.0.guidance.guidance_scale")}
    assert found["sds"] == explain.find("guidance_scale")[0]
    assert found["sds"].default == 101.0
    assert len(found) > 1  # one for each rule
    kinds = {entry.kind for entry in explain.find("radius")}
    assert kinds == {"hash_volume", "hash_sdf"}
    with pytest.raises(ConfigError, match="Did you mean 'guidance_scale'"):
        explain.find("guidence_scale")


def test_explain_shows_kinds_types_and_schema(capsys):
    explain.run("background")
    text = capsys.readouterr().out
    assert "kind: solid" in text
    assert "kind: neural" in text
    assert "probability = 1.0" in text
    explain.run(None, schema=True)
    schema = json.loads(capsys.readouterr().out)
    assert SceneConfig.__name__ in schema["$defs"]
    explain.run("steps", as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["default"] == "required"


def test_explain_knows_the_settings_of_personalizations(capsys):
    explain.run("method.beta")
    assert "method.beta  [task personalize]  [kind dco]" in capsys.readouterr().out
    explain.run(None, schema=True)
    assert '"personalize"' in capsys.readouterr().out

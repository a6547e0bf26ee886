"""The command line: light start, help, listing, explaining, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

from image_tools.configs import DdimConfig
from studio.cli import main
from studio.commands import explain
from studio.config import load_scene
from studio.configs import SceneConfig
from studio.errors import ConfigError
from studio.personalize_configs import SamplesConfig
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


def test_new_lists_every_preset_in_its_group_on_a_line_that_fits():
    lines = studio("new").stdout.splitlines()
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    assert sorted(names) == preset_names()
    assert max(map(len, lines)) <= 100
    headings = [line for line in lines if line.endswith(":")]
    assert len(headings) == 5
    assert any("run as installed" in line for line in headings)
    assert any("weights of your own" in line for line in headings)
    assert any("Forms to fill in" in line for line in headings)


@pytest.mark.parametrize("verb", ["--help", "new"])
def test_what_a_newcomer_asks_first_reads_no_scene(verb):
    """Reading all presets would take longer than everything else that is printed first."""
    done = studio(verb, flags=("-X", "importtime"))
    imported = set(re.findall(r"\|\s+([\w.]+)$", done.stderr, flags=re.MULTILINE))
    assert "studio.cli" in imported
    assert not imported & {"studio.config", "studio.configs"}


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


START = 'Start with: studio run "a small blue teapot"'
ALL_VERBS = "run, sweep, new, explain, doctor, eval, train, personalize, export, render, view"
WRONG = {
    ("foo",): f"no such command 'foo' - expected one of {ALL_VERBS}, report, lora. {START}",
    ("exprot", "x"): f"no such command 'exprot' - did you mean studio export? {START}",
    ("demoo", "seed=3"): "no such command 'demoo' - did you mean studio run demo seed=3?",
    ("demo",): "no such command 'demo' - did you mean studio run demo?",
    (
        "my scene.yaml",
    ): "no such command 'my scene.yaml' - did you mean studio run 'my scene.yaml'?",
    ("a red mushroom", "--seed", "3"): (
        "no such command 'a red mushroom' - did you mean studio run \"a red mushroom\" --seed 3?"
    ),
    ("a $5 coin",): "no such command 'a $5 coin' - did you mean studio run 'a $5 coin'?",
    ("lora", "insect"): (
        "no such command 'insect' - did you mean studio lora inspect? See: studio lora --help"
    ),
    ("run", "--stepz", "3"): (
        "studio run: no such option --stepz - did you mean --steps? See: studio run --help"
    ),
    ("run", "--out"): "studio run: option '--out' requires an argument. See: studio run --help",
    ("export",): "studio export: RUN is missing - expected a run folder. See: studio export --help",
    ("train", "judge"): (
        "studio train: --out is missing - expected folder of the weights; of judge and image-text "
        "the file. See: studio train --help"
    ),
    ("train", "pockt"): (
        "no such training 'pockt' - did you mean pocket? Expected one of pocket, pocket-mv, judge, "
        "image-text, pocket-ip2p, pocket-uni, pocket-control-depth, pocket-control-normal, "
        "pocket-control-edge, pocket-control-seg, pocket-control-keypoints."
    ),
}


@pytest.mark.parametrize(("words", "message"), WRONG.items(), ids=" ".join)
def test_a_wrong_command_line_is_one_line_that_says_what_to_do(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["studio", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert (stop.value.code, capsys.readouterr().err) == (2, f"error: {message}\n")


def test_a_wrong_command_line_is_told_as_json_too(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["studio", "run", "--stepz", "--json"])
    with pytest.raises(SystemExit):
        main()
    told = json.loads(capsys.readouterr().out)
    assert (told["error"], told["exit_code"]) == ("ConfigError", 2)


def test_the_version_is_told():
    assert re.fullmatch(r"studio \d+\.\d+\S*\n", studio("--version").stdout)


@pytest.mark.parametrize("group", [(), ("lora",)], ids=["studio", "studio lora"])
def test_no_first_sentence_in_help_is_cut(group):
    done = studio(*group, "--help")
    assert done.stdout.startswith(f"Usage: {' '.join(['studio', *group])} ")
    assert "..." not in done.stdout.split("Commands:")[1]
    assert studio(*group).stderr == done.stdout  # without a verb


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


def test_redirected_words_are_utf_8_whatever_the_system_writes():
    """Windows redirects in an old code page, which knows no Japanese."""
    prompt = "\u8d64\u3044\u30ad\u30ce\u30b3"
    done = subprocess.run(
        [sys.executable, "-m", "studio.cli", "run", "demo", f"prompt={prompt}", "--dry-run"],
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        check=True,
    )
    assert yaml.safe_load(done.stdout.decode("utf-8"))["prompt"] == prompt


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"
        ),
        MemoryError(),
    ],
)
def test_a_full_memory_is_one_line_and_names_the_switches(error, monkeypatch, capsys):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(explain, "run", fail)
    monkeypatch.setattr(sys, "argv", ["studio", "explain", "seed"])
    with pytest.raises(SystemExit) as stop:
        main()
    told = capsys.readouterr().err
    assert stop.value.code == 1
    assert told.startswith("error: The memory is full: ")
    assert "prior.memory" in told
    assert told.count("\n") == 1


def test_explain_tells_the_defaults_that_the_owner_gives():
    """One sampler's class serves many; its steps are 20 where the samples of a training are."""
    (samples,) = {
        entry.default
        for entry in explain.entries()
        if entry.path == "samples.sampler.steps" and entry.tasks == ("personalize",)
    }
    assert samples == SamplesConfig().sampler.steps != DdimConfig().steps


@pytest.mark.parametrize(
    ("key", "path"),
    [("prior.kind", "prior"), ("stages.shape.steps", "stages.steps"),
     ("stages.shape.guidance.kind", "stages.guidance")],
)  # fmt: skip
def test_explain_takes_kinds_and_names_of_stages(key, path):
    assert explain.find(key)[0].path == path

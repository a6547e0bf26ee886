"""Run folders: names, paths, run.json, index."""

from __future__ import annotations

import json
import re

import pytest

from studio.errors import ConfigError, StorageError
from studio.run_folder import RunFolder, create_run, open_run, slug, write_atomic


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a small blue teapot", "a-small-blue-teapot"),
        ("  Élan & Çava!  ", "elan-cava"),
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\Windows\\system32", "c-windows-system32"),
        ("x" * 5000, "x" * 48),
        ("one two " * 20, "one-two-one-two-one-two-one-two-one-two-one-two"),
        ("a\x00b\nc", "a-b-c"),
        ("~", "prompt-7ace431c"),
        ("", "prompt-e3b0c442"),
    ],
)
def test_slug_is_safe_short_and_never_empty(text, expected):
    assert slug(text) == expected


def test_reserved_names_of_windows_are_avoided():
    assert re.fullmatch(r"con-[0-9a-f]{8}", slug("CON"))


def test_slugs_of_unicode_prompts_differ():
    first, second = slug("赤いキノコ"), slug("青いアヒル")
    assert first != second
    assert re.fullmatch(r"prompt-[0-9a-f]{8}", first)
    assert re.fullmatch(r"[a-z0-9-]+", slug("\ud800 lone surrogate"))


def test_runs_are_never_overwritten(tmp_path):
    runs = [create_run(tmp_path, prompt="duck", method="demo", seed=3, info={}) for _ in range(3)]
    assert len({run.path for run in runs}) == 3
    assert all(run.path.name.startswith("demo-s3-") for run in runs)
    assert runs[0].path.parent.name == "duck"
    assert runs[0].checkpoints_dir.is_dir()


def test_info_is_merged_and_survives_unicode(tmp_path):
    run = create_run(tmp_path, prompt="キノコ", method="demo", seed=0, info={"argv": ["run"]})
    run.update_info({"status": "done", "metrics": {"opacity": 0.5}})
    info = open_run(run.path).read_info()
    assert info["prompt"] == "キノコ"
    assert (info["status"], info["argv"], info["metrics"]) == ("done", ["run"], {"opacity": 0.5})


def test_index_has_one_line_for_each_run(tmp_path):
    run = create_run(tmp_path, prompt="duck", method="demo", seed=0, info={})
    run.add_to_index()
    (line,) = (tmp_path / "index.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert tmp_path / entry["id"] == run.path
    assert entry["status"] == "started"


@pytest.mark.parametrize("given", [".", "run", "./run", "../slug/run"])
def test_a_run_that_is_named_from_near_by_is_listed_with_all_others(tmp_path, monkeypatch, given):
    run = create_run(tmp_path, prompt="duck", method="demo", seed=0, info={})
    (tmp_path / "slug").mkdir()
    run.path.rename(tmp_path / "slug" / "run")
    monkeypatch.chdir(tmp_path / "slug" / ("run" if given == "." else ""))
    found = open_run(given)
    assert (found.path.name, found.path.parent.name) == ("run", "slug")
    found.add_to_index()
    (line,) = (tmp_path / "index.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "slug/run"
    assert list(tmp_path.glob("slug/**/index.jsonl")) == []


def test_keys_of_the_info_are_dropped(tmp_path):
    run = create_run(tmp_path, prompt="duck", method="demo", seed=0, info={"old": 1, "kept": 2})
    run.update_info({"new": 3}, drop=("old", "absent"))
    info = run.read_info()
    assert (info["kept"], info["new"]) == (2, 3)
    assert "old" not in info


def test_write_atomic_replaces_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "a.txt"
    write_atomic(path, "one")
    write_atomic(path, "two")
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_is_no_run_suggests_the_newest_run_inside(tmp_path):
    run = create_run(tmp_path / "runs", prompt="duck", method="demo", seed=0, info={})
    with pytest.raises(ConfigError, match=str(run.path)):
        open_run(tmp_path / "runs")
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="is no run folder"):
        open_run(tmp_path / "other")
    with pytest.raises(ConfigError, match="no such folder"):
        open_run(tmp_path / "missing")


def test_a_run_in_the_home_folder_is_found(tmp_path, monkeypatch):
    run = create_run(tmp_path / "my runs", prompt="un château", method="demo", seed=0, info={})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_run(f"~/{run.path.relative_to(tmp_path)}").path == run.path


def test_damaged_run_json_is_a_clear_error(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        RunFolder(tmp_path).read_info()


def test_unwritable_place_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"Cannot create a run folder in .*--out"):
        create_run(tmp_path / "file", prompt="duck", method="demo", seed=0, info={})

"""Committed tables are what the code makes of the figures beside them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import rewrite_tables
from benchmarks.editing.results import read_entries

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results"
PAGES = sorted(RESULTS.glob("*.md"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_committed_table_is_current(path):
    document, text = rewrite_tables.rewritten(path.with_suffix(".json"))
    assert text == path.read_text()
    assert set(document) == set(json.loads(path.with_suffix(".json").read_text()))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_no_committed_interval_is_without_width(path):
    assert not re.findall(r"\[([+-]?[0-9.]+), \1\]", path.read_text())


def test_summaries_are_of_the_assets_and_files_are_written_whole(tmp_path):
    path = tmp_path / "text_to_3d--five.json"
    document = json.loads((RESULTS / path.name).read_text())
    path.write_text(json.dumps(document | {"assets": document["assets"][:1], "summary": {}}))
    rewrite_tables.main([str(path)])
    found = json.loads(path.read_text())
    (figures,) = (groups["all"] for groups in found["summary"].values())
    value = document["assets"][0]["metrics"]["chamfer"]
    assert figures["chamfer"] == {"value": value, "low": None, "high": None, "n": 1}
    assert "1 seed(s), 1 assets" in path.with_suffix(".md").read_text()


def test_a_file_without_tables_is_refused(tmp_path):
    path = tmp_path / "steps--cpu.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="the schema None has no tables"):
        rewrite_tables.rewritten(path)


def test_committed_rows_of_edits_say_what_they_were_measured_on():
    entries = read_entries(RESULTS / "editing--pocket.json").values()
    assert all(entry.processor for entry in entries if entry.reason is None)

"""The fixed prompts and their table."""

from __future__ import annotations

import pytest

from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES
from studio.evaluation.assets import AssetMetrics
from studio.evaluation.prompt_parsing import parse_prompt
from studio.evaluation.suite import METRICS, SUITE, markdown, plain_summary, summary


def metrics(prompt: str, **values: float | None) -> AssetMetrics:
    """Metrics of a made-up asset; what is not given is 0.5."""
    return AssetMetrics(
        prompt=prompt,
        source="glb",
        kind="duck",
        color="purple",
        seen_kinds={},
        seen_colors={},
        chroma=0.5,
        coverage=0.5,
        **(dict.fromkeys(METRICS, 0.5) | values),
    )


def test_the_suite_has_one_prompt_for_each_kind_and_eight_held_out_ones():
    assert sorted(item.kind for item in SUITE) == sorted(KIND_NAMES)
    assert {item.color for item in SUITE} == set(COLOR_NAMES)
    assert [item.held_out for item in SUITE] == [False] * 24 + [True] * 8


def test_every_prompt_of_the_suite_is_understood():
    for item in SUITE:
        spec = parse_prompt(item.prompt)
        assert (spec.kind, spec.color) == (item.kind, item.color)


def test_the_summary_keeps_seen_and_held_out_apart():
    seen, held_out = SUITE[0].prompt, SUITE[-1].prompt
    found = summary(
        {seen: metrics(seen, kind_accuracy=1.0), held_out: metrics(held_out, kind_accuracy=0.0)}
    )
    values = {group: figures["kind_accuracy"].value for group, figures in found.items()}
    assert values == {"seen": 1.0, "held out": 0.0, "all": 0.5}
    assert found["all"]["kind_accuracy"].n == 2


def test_a_failed_run_counts_as_wrong_and_a_missing_metric_not_at_all():
    first, second, third = (item.prompt for item in SUITE[:3])
    found = summary(
        {first: metrics(first), second: None, third: metrics(third, janus=None, chamfer=0.1)}
    )["seen"]
    assert found["kind_accuracy"].value == pytest.approx(1.0 / 3)
    assert found["chamfer"].value == pytest.approx(0.3)
    assert (found["chamfer"].n, found["janus"].n) == (2, 1)


def test_the_table_has_a_line_for_each_prompt_and_marks_what_is_special():
    seen, held_out = SUITE[0].prompt, SUITE[-1].prompt
    lines = markdown({seen: metrics(seen, janus=None), held_out: None}).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[0].startswith("| | n | kind | colour |")
    assert lines[-2] == f"| {seen} | 1 | 0.50 | 0.50 | 0.50 | – | 0.50 | 0.50 | 0.50 | 0.50 |"
    assert lines[-1].startswith(f"| {held_out} (held out) (failed) | 1 | 0.00 |")


def test_the_plain_summary_is_json():
    prompt = SUITE[0].prompt
    found = plain_summary({prompt: metrics(prompt)})
    assert found["seen"]["janus"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 1}
    assert found["held out"] == {}

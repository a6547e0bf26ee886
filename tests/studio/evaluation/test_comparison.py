"""Figures of systems, paired differences, and the tables made of them."""

from __future__ import annotations

import json
import re

import pytest

from studio.evaluation.comparison import (
    BIASES,
    COSTS,
    METRICS,
    Result,
    comparison_markdown,
    differences,
    estimate,
    plain_summary,
    result_of,
    systems_of,
)
from studio.evaluation.tables import runs_table
from studio.run_folder import create_run


def result(system: str, prompt: str, seed: int = 0, **values: float | None) -> Result:
    """A made-up result; metrics that are not given are 0.5, costs 100."""
    names = (*METRICS, *BIASES)
    metrics = dict.fromkeys(names, 0.5) | {k: v for k, v in values.items() if k in names}
    costs = dict.fromkeys(COSTS, 100.0) | {k: v for k, v in values.items() if k in COSTS}
    return Result(system, prompt, seed, "done", metrics, costs)


def failed(system: str, prompt: str) -> Result:
    """One that could not be made."""
    return Result(system, prompt, 0, "diverged", dict.fromkeys(METRICS), {"seconds": 7.0})


def is_red(prompt: str) -> bool:
    """Stands for the held-out prompts."""
    return "red" in prompt


def test_seeds_of_a_prompt_are_one_observation():
    """Ten seeds of a hard prompt do not outweigh one of an easy prompt."""
    results = [result("a", "hard", seed, janus=1.0) for seed in range(10)]
    results.append(result("a", "easy", janus=0.0))
    found = estimate(results, "janus")
    assert (found.value, found.n) == (0.5, 2)
    assert not found.has_interval


def test_a_failed_run_counts_as_wrong_and_a_missing_metric_not_at_all():
    results = [result("a", "x", kind_accuracy=1.0), failed("a", "y"), result("a", "z", janus=None)]
    assert estimate(results, "kind_accuracy").value == pytest.approx((1.0 + 0.0 + 0.5) / 3)
    assert estimate(results, "janus").n == 1
    assert estimate(results, "seconds").value == pytest.approx((100 + 7 + 100) / 3)
    assert estimate([failed("a", "y")], "chamfer") is None


@pytest.mark.parametrize("status", ["waiting", "interrupted", "running", "optimised", "done"])
def test_a_run_that_had_no_turn_or_was_not_measured_counts_nowhere(status):
    absent = Result("a", "y", 0, status)
    assert estimate([absent], "kind_accuracy") is None
    results = [result("a", "x", kind_accuracy=1.0), absent]
    assert estimate(results, "kind_accuracy").value == 1.0
    row = runs_table(results).splitlines()[2]
    assert "0.000" not in row
    assert row.split()[1:10] == ["-"] * 9
    page = comparison_markdown(results, is_red)
    assert "failed)" not in page
    assert "| y | – |" in page


def test_differences_are_paired_over_prompts():
    """A gain that varies little is certain, however much the prompts differ among themselves."""
    results = [result("a", f"p{k}", chamfer=0.1 * k) for k in range(9)]
    results += [result("b", f"p{k}", chamfer=0.1 * k + 0.05 + 0.01 * (k % 2)) for k in range(7)]
    results.append(result("b", "only b", chamfer=9.0))
    (found,) = differences(results, "chamfer", to="a").values()
    assert found.n == 7
    assert found.value == pytest.approx(0.05 + 0.03 / 7)
    assert 0.045 < found.low < found.high < 0.065


def test_a_right_answer_in_all_of_few_prompts_is_not_certain():
    """Nine prompts of 1.00 have Wilson's interval, and two such systems may still differ."""
    results = [result(s, f"p{k}", kind_accuracy=1.0) for s in ("a", "b") for k in range(9)]
    found = estimate(results[:9], "kind_accuracy")
    assert (found.low, found.high) == pytest.approx((0.701, 1.0), abs=5e-4)
    (difference,) = differences(results, "kind_accuracy", to="a").values()
    assert difference.value == 0.0
    assert difference.low < -0.2
    text = comparison_markdown(results, is_red)
    assert "| 1.00 [0.70, 1.00] |" in text
    assert "+0.00 [-0.25, +0.25]" in text
    assert "+0.00 (all equal)" in text
    assert not re.search(r"\[[+-]?([0-9.]+), [+-]?\1\]", text.replace("[-0.25, +0.25]", ""))
    assert "Fewer than 5 prompts give no interval" in text


def test_the_summary_keeps_seen_and_held_out_apart():
    results = [result("a", "blue x", janus=0.0), result("a", "red x", janus=1.0)]
    found = json.loads(json.dumps(plain_summary(results, is_red)))["a"]
    assert {group: figures["janus"]["value"] for group, figures in found.items()} == {
        "seen": 0.0,
        "held out": 1.0,
        "all": 0.5,
    }


def test_the_page_has_all_systems_groups_and_prompts():
    results = [
        result("a", "blue x", janus=0.25),
        result("b", "blue x", janus=0.125),
        result("a", "red x"),
        failed("b", "red x"),
    ]
    text = comparison_markdown(results, is_red)
    tables = [part for part in text.split("\n\n") if part.startswith("|")]
    assert [len(table.splitlines()) for table in tables] == [2 + 6, 2 + 1, 2 + 2]
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "| **b** | held out | 1 (1 failed) | 0.00 |" in text
    # Janus of b against a, on the prompt that both have
    assert "| -0.12 (n 1) |" in text
    assert "| red x (held out) | 0.50 · 0.50 | failed |" in text


def test_a_figure_of_fewer_assets_than_its_row_says_how_many():
    results = [
        result("a", "blue x", janus=0.25),
        result("a", "blue y", janus=None),
        result("b", "blue x", janus=0.125),
        result("b", "blue y", janus=0.5),
        result("c", "blue y", janus=None),
    ]
    text = comparison_markdown(results, is_red)
    figures, differences = (part.splitlines() for part in text.split("\n\n") if "| system" in part)
    column = figures[0].split("|").index(" Janus ↓ ")
    cells = {line.split("|")[1].strip(" *"): line.split("|")[column] for line in figures[2:]}
    assert cells["a"] == " 0.25 (n 1) "
    assert cells["b"] == " 0.31 "
    assert cells["c"] == " – "
    assert sum(line.count("(n ") for line in figures) == 2  # janus of a, seen and all
    assert "kinds without a front have no Janus score" in text
    assert differences[2].count("(n 1)") == 1
    assert "(n " not in differences[3]
    assert "kinds without a front" not in comparison_markdown(results[2:4], is_red)


def test_small_distances_keep_three_decimals():
    results = [result("a", "x", chamfer=0.0512), result("b", "x", chamfer=0.0478)]
    text = comparison_markdown(results, is_red)
    assert "| 0.051 |" in text
    assert "| -0.003 |" in text


@pytest.mark.parametrize(
    ("prompts", "gain", "bold"), [(6, 0.3, True), (5, 0.3, False), (6, 0, False)]
)
def test_only_certain_differences_are_bold(prompts, gain, bold):
    results = [result("a", f"p{k}", janus=0.1 * k) for k in range(prompts)]
    results += [
        result("b", f"p{k}", janus=0.1 * k + gain + 0.01 * (-1) ** k * (k // 2))
        for k in range(prompts)
    ]
    row = comparison_markdown(results, is_red).split("## Difference")[1].split("## Prompts")[0]
    assert (row.count("**") == 4) is bold  # the name of the system is the other pair


def test_the_page_of_one_system_has_no_differences():
    assert "Difference" not in comparison_markdown([result("a", "x")], is_red)


def test_a_result_is_read_from_run_json(tmp_path):
    run = create_run(tmp_path, prompt="a red duck", method="demo", seed=3, info={})
    assert not result_of(run).measured
    run.update_info(
        {
            "status": "done",
            "seconds": {"load": 2.0, "optimise": 60.0},
            "peak_memory_bytes": 2**31,
            "denoiser_evaluations": 2400,
            "evaluation": {"kind_accuracy": 0.75, "janus": None, "yaw_deg": 15.0},
            "weights": {"prior": {"fingerprint": "abc"}},
        }
    )
    found = result_of(run)
    assert (found.system, found.prompt, found.seed, found.prior) == ("demo", "a red duck", 3, "abc")
    assert found.measured
    assert [found.value(name) for name in COSTS] == [60.0, 2.0, 2400]
    assert found.value("kind_accuracy") == 0.75
    assert found.value("janus") is None
    assert result_of(run, system="mine").system == "mine"


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, None),
        ({"stages.a.prior": {"fingerprint": "mv"}, "prior": {"fingerprint": "2d"}}, "2d"),
        ({"stages.a.subject": {"fingerprint": "own", "subject": {"weights": "full"}}}, None),
        (
            {
                "stages.a.subject": {"fingerprint": "own", "subject": {"weights": "full"}},
                "stages.b.prior": {"fingerprint": "mv", "subject": None},
            },
            "mv",
        ),
    ],
)
def test_the_prior_of_a_run_is_what_no_subject_changed(tmp_path, weights, expected):
    run = create_run(tmp_path, prompt="a red duck", method="demo", seed=3, info={})
    run.update_info({"weights": weights})
    assert result_of(run).prior == expected


def measured_saturation(out, signed: float, **more: float) -> Result:
    """A result read from a run with this signed error."""
    run = create_run(out, prompt=f"off by {signed}", method="demo", seed=0, info={})
    run.update_info({"evaluation": {"saturation_error": signed} | more})
    return result_of(run)


def test_too_much_and_too_little_saturation_do_not_cancel(tmp_path):
    """Ranked is the mean of amounts; the signed mean is told beside it."""
    results = [measured_saturation(tmp_path, s, saturation_abs=abs(s)) for s in (-0.2, 0.2)]
    assert estimate(results, "saturation_abs").value == pytest.approx(0.2)
    assert estimate(results, "saturation_error").value == pytest.approx(0.0)
    (row,) = [x for x in comparison_markdown(results, is_red).splitlines() if "| seen |" in x]
    assert "| 0.20 | 0.00 |" in row
    assert not set(BIASES) & set(METRICS)


def test_an_evaluation_with_the_signed_saturation_only_is_still_read(tmp_path):
    found = measured_saturation(tmp_path, -0.3)
    assert (found.value("saturation_abs"), found.value("saturation_error")) == (0.3, -0.3)
    absent = create_run(tmp_path, prompt="x", method="demo", seed=0, info={})
    absent.update_info({"evaluation": {"saturation_error": None}})
    assert result_of(absent).value("saturation_abs") is None


def test_systems_keep_their_order():
    results = [result(name, "x") for name in ("c", "a", "c", "b")]
    assert systems_of(results) == ["c", "a", "b"]


def test_the_terminal_s_table_has_a_line_for_each_run_and_each_mean():
    results = [
        result("demo", "a red duck", 0, kind_accuracy=1.0, denoiser_evaluations=None),
        result("demo", "a red duck", 1, kind_accuracy=0.5),
        failed("magic3d", "a very long prompt about nothing in particular"),
    ]
    lines = runs_table(results).splitlines()
    assert len(lines) == 1 + 3 + 1
    assert len({len(line) for line in (*lines[:3], *lines[4:])}) == 1
    assert lines[1].startswith("a red duck, demo, seed 0")
    assert lines[1].split()[-3:] == ["1.7", "100.00", "-"]
    assert lines[3].endswith("diverged")
    assert "…" in lines[3]
    assert lines[4].startswith("mean of demo (2)")
    assert lines[4].split()[4] == "0.750"
    assert len(runs_table(results[:1]).splitlines()) == 2

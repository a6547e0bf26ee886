"""Progress lines and the metrics file."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.errors import StorageError
from studio.metrics_log import MetricsLog, read_metrics
from studio.progress import (
    BarProgress,
    LineProgress,
    format_seconds,
    logged_to,
    make_progress,
    say,
)
from tests.studio.conftest import disk_full_at


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0:00"), (65.0, "1:05"), (3725.0, "1:02:05"), (59.6, "1:00")]
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_plain_progress_writes_ten_lines():
    lines: list[str] = []
    progress = LineProgress(total=57, done=0, write=lines.append)
    for step in range(1, 58):
        progress.update(step, "shape", {"opacity": 0.123456})
    assert len(lines) == 10
    assert lines[-1].startswith("shape 57/57 (100 %)")
    assert "opacity 0.123" in lines[0]
    assert "ETA" in lines[0]


def test_time_left_counts_steps_alone(monkeypatch):
    """90 of 100 seconds were preparations: nine steps like the first one take 90 more."""
    now = [1000.0]
    monkeypatch.setattr("studio.progress.time.monotonic", lambda: now[0])
    lines: list[str] = []
    progress = LineProgress(total=10, done=0, write=lines.append)
    now[0] += 100.0
    progress.leave_out(90.0)
    progress.update(1, "shape", {})
    assert "0.10 it/s  ETA 1:30" in lines[0]


def test_resumed_progress_does_not_repeat_lines():
    lines: list[str] = []
    progress = LineProgress(total=100, done=55, write=lines.append)
    progress.update(56, "shape", {})
    assert lines == []
    progress.update(60, "detail", {})
    assert lines[0].startswith("detail 60/100 (60 %)")


def test_what_is_said_goes_to_stderr_and_into_the_log(tmp_path, capsys):
    path = tmp_path / "log.txt"
    with logged_to(path):
        say("step 3")
    say("not logged")
    assert capsys.readouterr().err == "step 3\nnot logged\n"
    (line,) = path.read_text().splitlines()
    assert line.endswith(" step 3")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_costs_lines_of_the_log_and_nothing_else(capsys):
    with logged_to(Path("/dev/full")):
        say("step 3")
    with logged_to(Path("/no/such/folder/log.txt")):
        say("step 4")
    assert capsys.readouterr().err == "step 3\nstep 4\n"


def test_no_bar_without_a_terminal_and_the_bar_starts_and_stops(capsys):
    assert isinstance(make_progress(10, 0), LineProgress)
    bar = BarProgress(10, 0)
    bar.update(10, "shape", {"loss": 1.0})
    bar.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "10/10" in captured.err


def test_metrics_of_a_resumed_run_equal_those_of_an_uninterrupted_one(tmp_path):
    whole, parts = tmp_path / "whole.csv", tmp_path / "parts.csv"
    log = MetricsLog(whole)
    for step in range(1, 7):
        log.write({"step": step, "loss": step / 3})
    log.close()
    log = MetricsLog(parts)
    for step in range(1, 6):
        log.write({"step": step, "loss": step / 3})
    log.close()
    log = MetricsLog(parts, after_step=4)  # the checkpoint was at step 4
    for step in range(5, 7):
        log.write({"step": step, "loss": step / 3})
    log.close()
    assert parts.read_text() == whole.read_text()
    assert [row["step"] for row in read_metrics(whole)] == ["1", "2", "3", "4", "5", "6"]


def test_cut_off_line_is_ignored(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,0.5\n2,0.2")
    assert read_metrics(path) == [{"step": "1", "loss": "0.5"}]
    log = MetricsLog(path, after_step=9)
    log.write({"step": 2, "loss": 0.25})
    log.close()
    assert path.read_text() == "step,loss\n1,0.5\n2,0.25\n"


def test_restart_from_the_beginning_starts_a_new_file(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,other\n5,0.5\n")
    log = MetricsLog(path, after_step=0)
    log.write({"step": 1, "loss": 2.0, "count": 3})
    log.close()
    assert path.read_text() == "step,loss,count\n1,2,3\n"


def test_a_later_stage_may_add_columns(tmp_path):
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path)
    log.write({"step": 1, "loss": 0.5})
    log.write({"step": 2, "loss": 0.25, "critic_loss": 1.0})
    log.write({"step": 3, "critic_loss": 2.0, "loss": 0.125})
    log.close()
    assert read_metrics(path) == [
        {"step": "1", "loss": "0.5", "critic_loss": ""},
        {"step": "2", "loss": "0.25", "critic_loss": "1"},
        {"step": "3", "loss": "0.125", "critic_loss": "2"},
    ]


def test_rows_that_a_full_disk_refused_are_written_once_there_is_space(tmp_path):
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path)
    log.write({"step": 1, "loss": 0.5})
    with disk_full_at(path.stat().st_size + 3):  # in the middle of a row
        for step in (2, 3):
            with pytest.raises(StorageError, match=r"Cannot write .*metrics\.csv"):
                log.write({"step": step, "loss": 0.25})
    log.write({"step": 4, "loss": 0.125})
    log.close()
    assert [row["step"] for row in read_metrics(path)] == ["1", "2", "3", "4"]


def test_a_log_is_closed_on_a_full_disk_and_goes_on_from_its_last_whole_row(tmp_path):
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path)
    log.write({"step": 1, "loss": 0.5})
    with disk_full_at(path.stat().st_size + 3):
        with pytest.raises(StorageError):
            log.write({"step": 2, "loss": 0.25})
        log.close()
    log = MetricsLog(path, after_step=9)
    log.write({"step": 2, "loss": 0.25})
    log.close()
    assert [row["step"] for row in read_metrics(path)] == ["1", "2"]


@pytest.mark.parametrize("rows_before", [0, 1])
def test_columns_that_a_full_disk_refused_come_with_a_later_row(tmp_path, rows_before):
    """A stage with new columns begins while the disk is full; the run goes on."""
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path)
    for step in range(rows_before):
        log.write({"step": step, "loss": 0.5})
    with disk_full_at(path.stat().st_size + 3):
        rows = [{"step": 7, "loss": 0.5}, *({"step": k, "loss": 0.25, "critic": 1} for k in (8, 9))]
        for row in rows:
            with pytest.raises(StorageError):
                log.write(row)
    log.write({"step": 10, "loss": 0.25, "critic": 1})
    log.close()
    assert read_metrics(path)[-1] == {"step": "10", "loss": "0.25", "critic": "1"}

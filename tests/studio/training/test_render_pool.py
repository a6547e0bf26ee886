"""Rows drawn in processes: the same rows in the same order, and no process for a few."""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path

import pytest

from studio import waiting
from studio.training import render_pool
from studio.training.render_pool import draw_rows, worker_count


def test_processes_draw_the_rows_that_one_draws_in_their_order() -> None:
    rows = range(3, 50)
    alone = list(draw_rows(partial(math.pow, 1.5), rows, workers=1))
    assert alone == [1.5**k for k in rows]
    assert list(draw_rows(partial(math.pow, 1.5), rows, workers=2)) == alone


def test_rows_that_are_not_asked_for_are_not_drawn_here() -> None:
    drawn = []
    found = draw_rows(lambda k: drawn.append(k) or k, range(100), workers=1)
    assert [next(found), next(found)] == [0, 1]
    assert drawn == [0, 1]


def test_an_error_of_a_row_comes_out() -> None:
    with pytest.raises(ValueError, match=r"math domain error|expected a nonnegative input"):
        list(draw_rows(math.sqrt, [4, 1, -1, 9], workers=2))


def test_few_rows_get_no_process_and_many_get_the_cores_that_are_granted(monkeypatch) -> None:
    for name in ("QUOTA", "OLD_QUOTA"):  # a container that runs this may have less
        monkeypatch.setattr(waiting, name, Path("no quota"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    enough = render_pool.ROWS_WORTH_A_PROCESS
    assert worker_count(0) == worker_count(enough - 1) == 1
    assert worker_count(3 * enough) == 3
    assert worker_count(100 * enough) == 6
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert worker_count(100 * enough) == 1

"""Rows drawn in several processes: rendering is on the CPU, and one row asks nothing of another.

    for row, drawn in zip(rows, draw_rows(partial(draw_one, config, seed), rows)):
        ...

Rows come in order and are those that one process would draw, so that caches do not depend on the
number of cores. Few rows are drawn here, where a process would take longer to start.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from studio.waiting import granted_cores

__all__ = ["draw_rows", "worker_count"]

Drawn = TypeVar("Drawn")

ROWS_WORTH_A_PROCESS = 1500  # half a minute of rendering, beside seconds of starting
ROWS_AT_ONCE = 20


def worker_count(rows: int) -> int:
    """Processes for so many rows: the cores that this process may use, fewer for few rows."""
    return max(1, min(granted_cores(), rows // ROWS_WORTH_A_PROCESS))


def draw_rows(
    draw: Callable[[int], Drawn], rows: Sequence[int], *, workers: int | None = None
) -> Iterator[Drawn]:
    """``draw(k)`` of each row, in order.

    Args:
        draw: a function of a module, or a ``partial`` of one, so that it can be sent to a process.
        rows: their numbers.
        workers: processes; :func:`worker_count` of the rows when not given.
    """
    workers = worker_count(len(rows)) if workers is None else workers
    if workers < 2:
        yield from map(draw, rows)
        return
    # A forked process would inherit the locks of running thread pools.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        try:
            yield from pool.map(draw, rows, chunksize=ROWS_AT_ONCE)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one_thread() -> None:
    import numba
    import torch

    torch.set_num_threads(1)
    numba.set_num_threads(1)

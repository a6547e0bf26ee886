"""What suites of many runs share on the command line: how runs are made, and how a call ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from studio.progress import say

__all__ = ["add_run_options", "tell"]


def add_run_options(parser: argparse.ArgumentParser, *, results: Path, runs: str) -> None:
    """Options of suites whose rows are runs of the studio.

    Args:
        parser: the command line, which gets them.
        results: folder of the result files.
        runs: the default folder of the runs, as shown.
    """
    add = parser.add_argument
    add("--workers", type=int, default=1, help="runs at a time")
    add("--threads", type=int, help="of each; all cores are shared when not given")
    add("--minutes", type=float, help="begin no run later than this")
    add("--retry", action="store_true", help="make failed runs again")
    add("--measure-again", action="store_true", help="also what was measured before")
    add("--runs", type=Path, help=f"folder of the runs ({runs})")
    add("--results", type=Path, default=results)


def tell(table: str, paths: Sequence[Path], *, left: int, total: int, what: str) -> None:
    """Print the results; exit as an interrupted program does where something is left to do."""
    sys.stdout.write(table + "\n" + "\n".join(map(str, paths)) + "\n")
    if left:
        say(f"{left} of {total} {what} are left; go on with the same command.")
        sys.exit(130)

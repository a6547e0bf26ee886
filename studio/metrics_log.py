"""metrics.csv: one line for each logged step, readable while the run goes on.

The first row gives the columns, and a later stage may add some, which are empty above. A resumed
run drops the rows after its checkpoint, so the file is the same as without the interruption.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studio.run_folder import write_atomic

__all__ = ["MetricsLog", "read_metrics"]


class MetricsLog:
    """Appends rows to a CSV file."""

    def __init__(self, path: Path, *, after_step: int = 0) -> None:
        """Open ``path``; rows of steps beyond ``after_step`` are dropped."""
        self.path = path
        self.columns: list[str] | None = None
        if path.exists():
            rows = [row for row in read_metrics(path) if int(row["step"]) <= after_step]
            path.unlink() if not rows else self._rewrite(rows)
        self._file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115 - held open

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        """Write the kept rows in place of the file."""
        self.columns = list(rows[0])
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, text.getvalue())

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; it must hold ``step``. Numbers are written with six digits."""
        writer_needs_header = self.columns is None
        if self.columns is None:
            self.columns = list(row)
        elif not set(row) <= set(self.columns):
            self._widen([name for name in row if name not in self.columns])
        values = {key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()}
        writer = csv.DictWriter(self._file, self.columns, restval="", lineterminator="\n")
        if writer_needs_header:
            writer.writeheader()
        writer.writerow(values)
        self._file.flush()

    def _widen(self, names: list[str]) -> None:
        """Add columns, empty in the rows so far."""
        self._file.close()
        rows = read_metrics(self.path)
        self._rewrite([{**row, **dict.fromkeys(names, "")} for row in rows])
        self._file = open(self.path, "a", newline="", encoding="utf-8")  # noqa: SIM115

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Rows of a metrics file; a last line that a crash cut off is left out."""
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    return [row for row in csv.DictReader(io.StringIO(complete)) if None not in row.values()]

"""metrics.csv: one line for each logged step, readable while the run goes on.

The first row gives the columns, and a later stage may add some, which are empty above. A resumed
run drops the rows after its checkpoint, so the file is the same as without the interruption.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from studio.run_folder import storage_errors, write_atomic

__all__ = ["MetricsLog", "read_metrics"]


class MetricsLog:
    """Appends rows to a CSV file."""

    def __init__(self, path: Path, *, after_step: int = 0) -> None:
        """Open ``path``; rows of steps beyond ``after_step`` are dropped.

        Raises:
            StorageError: it cannot be written.
        """
        self.path = path
        self.columns: list[str] | None = None
        with storage_errors(path, "write"):
            if path.exists():
                rows = [row for row in read_metrics(path) if int(row["step"]) <= after_step]
                path.unlink() if not rows else self._rewrite(list(rows[0]), rows)
            self._file = self._open()

    def _open(self) -> TextIO:
        """The file, to be held open."""
        return open(self.path, "a", newline="", encoding="utf-8")

    def _rewrite(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        """Write these rows in place of the file."""
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, text.getvalue())
        self.columns = columns

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; it must hold ``step``. Numbers are written with six digits.

        Raises:
            StorageError: the disk is full; what it did not take is written with the next row.
        """
        with storage_errors(self.path, "write"):
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
        self.close()
        try:
            self._rewrite([*self.columns, *names], read_metrics(self.path))
        finally:
            self._file = self._open()

    def close(self) -> None:
        """Close the file. Rows that a full disk did not take are lost; ``write`` has told so."""
        with suppress(OSError):
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Rows of a metrics file; a last line that a crash cut off is left out."""
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    return [row for row in csv.DictReader(io.StringIO(complete)) if None not in row.values()]

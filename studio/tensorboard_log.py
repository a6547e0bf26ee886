"""A run's metrics and previews for TensorBoard, while the run goes on (extra: log).

It follows the files of the run folder, so the optimisation knows nothing of it, and a resumed run
shows its whole history.

    with TensorboardLog(run):
        ...                       # tensorboard --logdir runs
"""

from __future__ import annotations

import csv
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from studio.errors import require
from studio.run_folder import RunFolder

if TYPE_CHECKING:
    import numpy as np
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["NewRows", "TensorboardLog", "check_tensorboard"]

POLL_S = 2.0
NO_CURVES = {"step", "stage"}


def check_tensorboard() -> ModuleType:
    """The package.

    Raises:
        BackendMissing: it is not installed.
    """
    return require("tensorboard", extra="log", why="--log tensorboard (metrics.csv needs nothing)")


class NewRows:
    """Rows of a growing CSV file, each given once; a file that was replaced is read anew."""

    def __init__(self, path: Path) -> None:
        """The file may not exist yet."""
        self.path = path
        self.restarts = 0
        """How often another file had taken its place."""
        self._place, self._file_id = 0, 0
        self._columns: list[str] = []

    def read(self) -> Iterator[dict[str, str]]:
        """The whole lines that were added since the last call."""
        if not self.path.is_file():
            return
        with open(self.path, encoding="utf-8", newline="") as file:
            found = self.path.stat()
            if self._file_id != found.st_ino or found.st_size < self._place:
                self.restarts += self._file_id != 0
                self._file_id, self._place, self._columns = found.st_ino, 0, []
            file.seek(self._place)
            text = file.read()
            whole = text[: text.rfind("\n") + 1]
            self._place += len(whole.encode("utf-8"))
        for cells in csv.reader(whole.splitlines()):
            if self._columns:
                yield dict(zip(self._columns, cells))
            else:
                self._columns = cells


class TensorboardLog:
    """Writes what appears in a run folder to its folder ``tb``."""

    def __init__(self, run: RunFolder) -> None:
        """Nothing is written before it is entered."""
        self.run = run
        self.folder = run.path / "tb"
        self._rows = NewRows(run.metrics_path)
        self._restarts = 0
        self._shown: set[Path] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tensorboard", daemon=True)

    def __enter__(self) -> TensorboardLog:
        """Begin to follow; an earlier log of the same run is written anew."""
        check_tensorboard()
        self.writer = self._open()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Write what is left and close."""
        self._ended.set()
        self._thread.join()
        with suppress(OSError):  # what a full disk does to the run is the error to show
            self._read()
            self.writer.close()

    def _open(self) -> SummaryWriter:
        """An empty log."""
        from torch.utils.tensorboard import SummaryWriter

        for old in self.folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._shown.clear()
        return SummaryWriter(str(self.folder))

    def _follow(self) -> None:
        """Look again every few seconds until the run ends."""
        while not self._ended.wait(POLL_S):
            with suppress(OSError):  # a full disk costs points of the curves
                self._read()

    def _read(self) -> None:
        """Add the rows and previews that are new."""
        for row in self._rows.read():
            if self._rows.restarts != self._restarts:  # a resumed run dropped its last rows
                self._restarts = self._rows.restarts
                self.writer.close()
                self.writer = self._open()
            self._add(row)
        for path in sorted(set(self.run.previews_dir.glob("step-*.png")) - self._shown):
            self._shown.add(path)
            step = int(path.stem.split("-")[-1])
            self.writer.add_image("preview", _pixels(path), step, dataformats="HWC")

    def _add(self, row: dict[str, str]) -> None:
        """One row of the metrics as scalars."""
        for name, text in row.items():
            if name not in NO_CURVES and text != "":
                group = "loss" if name.startswith("loss") else "run"
                self.writer.add_scalar(f"{group}/{name}", float(text), int(row["step"]))


def _pixels(path: Path) -> np.ndarray:
    """A picture as an array."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"))

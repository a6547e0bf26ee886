"""The folder of one run: typed paths, its name, `run.json`, and the index of all runs.

    runs/index.jsonl
    runs/a-small-blue-teapot/demo-s0-20261123-031500/{run.json, scene.yaml, resolved.yaml, …}

Nothing is ever overwritten: a second run in the same second gets the suffix -2.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from studio.errors import ConfigError, StorageError
from studio.suggestions import command

__all__ = ["RunFolder", "create_run", "open_run", "slug", "storage_errors", "write_atomic"]

MAX_SLUG = 48
SUBFOLDERS = ("checkpoints", "previews", "asset", "renders")
_RESERVED = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10))}


def slug(text: str, *, limit: int = MAX_SLUG) -> str:
    """``text`` as a folder name: [a-z0-9-], at most ``limit`` characters, never empty.

    Accents are dropped; text without any Latin letter or digit gets a short hash, so that two such
    prompts do not share a folder.
    """
    folded = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", folded).strip("-")
    if len(words) > limit:
        words = words[: limit + 1].rpartition("-")[0] or words[:limit]
    if not words or words in _RESERVED:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        words = f"{words or 'prompt'}-{digest}"
    return words


@contextmanager
def storage_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError while writing under ``path`` into one clear line.

    Raises:
        StorageError: naming the path, the reason and what to do.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        todo = "Make the folder writable for you, or choose another one (--out of a new run)."
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            todo = "Free some space, then continue with studio run --resume."
        raise StorageError(f"Cannot {doing} {path}: {reason}. {todo}") from error


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that readers and crashes see the old or the new one, nothing between."""
    content = data.encode("utf-8") if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class RunFolder:
    """Typed paths of one run and its `run.json`."""

    def __init__(self, path: str | Path) -> None:
        """Name the folder; nothing is read or made."""
        self.path = Path(path)

    def __repr__(self) -> str:
        """The path, for messages."""
        return f"RunFolder({str(self.path)!r})"

    @property
    def info_path(self) -> Path:
        """`run.json`: status, arguments, versions, timings, weights, metrics."""
        return self.path / "run.json"

    @property
    def scene_path(self) -> Path:
        """`scene.yaml`: the scene as given."""
        return self.path / "scene.yaml"

    @property
    def resolved_path(self) -> Path:
        """`resolved.yaml`: everything filled in."""
        return self.path / "resolved.yaml"

    @property
    def log_path(self) -> Path:
        """`log.txt`."""
        return self.path / "log.txt"

    @property
    def metrics_path(self) -> Path:
        """`metrics.csv`."""
        return self.path / "metrics.csv"

    @property
    def checkpoints_dir(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def previews_dir(self) -> Path:
        """Folder of the contact sheets written while training."""
        return self.path / "previews"

    @property
    def subject_dir(self) -> Path:
        """Folder of what was made of a subject's photos."""
        return self.path / "subject"

    @property
    def start_dir(self) -> Path:
        """Copy of the finished run that this one edits; itself a run folder."""
        return self.path / "start"

    @property
    def asset_dir(self) -> Path:
        """Folder of the exported asset."""
        return self.path / "asset"

    @property
    def renders_dir(self) -> Path:
        """Folder of turntables and stills."""
        return self.path / "renders"

    @property
    def images_dir(self) -> Path:
        """Folder of single pictures, of runs that make pictures."""
        return self.path / "images"

    @property
    def report_path(self) -> Path:
        """`report.html`."""
        return self.path / "report.html"

    def read_info(self) -> dict[str, Any]:
        """Content of `run.json`.

        Raises:
            ConfigError: this is no run folder, or the file is damaged.
        """
        try:
            return json.loads(self.info_path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(
                f"{self.path} is no run folder (it has no run.json) - expected a folder that "
                "studio run made, such as runs/a-red-mushroom/demo-s0-20261123-031500."
            ) from error
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.info_path} cannot be read: {error}.") from error

    def update_info(self, values: dict[str, Any], *, drop: Sequence[str] = ()) -> None:
        """Set keys of `run.json` and drop others, atomically.

        Raises:
            StorageError: the file cannot be written.
        """
        info = self.read_info() if self.info_path.exists() else {}
        kept = {key: value for key, value in info.items() if key not in drop}
        with storage_errors(self.path, "write"):
            text = json.dumps({**kept, **values}, indent=2, ensure_ascii=False)
            write_atomic(self.info_path, text + "\n")

    def add_to_index(self) -> None:
        """Append this run's line to `index.jsonl` of all runs; the last line of an id counts."""
        info = self.read_info()
        keys = ("prompt", "method", "seed", "status", "seconds", "metrics")
        root = self.path.parent.parent
        line = {"id": str(self.path.relative_to(root))} | {key: info.get(key) for key in keys}
        with storage_errors(root, "write"), open(root / "index.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(line, ensure_ascii=False) + "\n")


def glb_command(run: RunFolder) -> str:
    """The export that adds a GLB to the files that are there; an export replaces the one before."""
    files = run.read_info().get("export", {}).get("files", {})
    formats = ["glb", *(name for name in ("obj", "ply") if name in files)]
    return command("export", run.path, "--format", ",".join(formats))


def create_run(
    out: str | Path,
    *,
    prompt: str,
    method: str,
    seed: int,
    info: dict[str, Any],
    folders: Sequence[str] = SUBFOLDERS,
) -> RunFolder:
    """Make a new run folder under ``out`` with its subfolders and `run.json`.

    Raises:
        StorageError: ``out`` cannot be written.
    """
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    parent = Path(out) / slug(prompt)
    name = f"{slug(method, limit=40)}-s{seed}-{stamp}"
    with storage_errors(Path(out), "create a run folder in"):
        started_in = os.getcwd()  # relative paths of its scene count from here
        parent.mkdir(parents=True, exist_ok=True)
        path, copy = parent / name, 1
        while True:
            try:
                path.mkdir()
                break
            except FileExistsError:
                copy += 1
                path = parent / f"{name}-{copy}"
        run = RunFolder(path)
        for folder in folders:
            (path / folder).mkdir()
    known = {"status": "started", "prompt": prompt, "method": method, "seed": seed}
    run.update_info({**known, "created": stamp, "cwd": started_in, **info})
    return run


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:  # another process removed it after it was listed
        return 0.0


def open_run(path: str | Path) -> RunFolder:
    """An existing run folder.

    Raises:
        ConfigError: it is no run folder; a `latest` run below it is suggested.
    """
    run = RunFolder(Path(path).expanduser())  # no shell expands edit.run=~/runs/...
    if not run.path.is_dir():
        raise ConfigError(f"{path}: no such folder - expected a run folder that studio run made.")
    if not run.info_path.is_file():
        # Only where runs lie, runs/PROMPT/RUN: a deep search of a home folder would take minutes.
        inside = [*run.path.glob("*/run.json"), *run.path.glob("*/*/run.json")]
        if inside:
            newest = max(inside, key=_modified).parent
            raise ConfigError(f"{path} is no run folder. The newest run inside it is {newest}")
    run.read_info()
    # Its name and its parent's say what it is; "." and a bare name do not have them.
    is_named = len(run.path.parts) > 1 and ".." not in run.path.parts
    return run if is_named else RunFolder(run.path.resolve())

"""Tensors written as safetensors files, for everyone whom the folder is open to.

safetensors 0.8 makes its files readable by their owner alone, whatever the user's umask, and tells
the system's errors as its own; here they are files, and errors, like any other.

    write_safetensors(path, tensors, {"format": "pt"})
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["save_tensors", "write_safetensors"]


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, which share no memory, in place.

    Raises:
        OSError: the file cannot be written, or the disk is full.
    """
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(content, path, dict(metadata) if metadata else None)
    except SafetensorError as error:
        raise _as_os_error(error, path) from error
    path.chmod(mode)


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, which share no memory, to a file that appears whole or not at all.

    Raises:
        OSError: the file cannot be written, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    try:
        save_tensors(partial, tensors, metadata)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _as_os_error(error: SafetensorError, path: Path) -> OSError:
    """safetensors hides the system's error in its message: "… (os error 28)"."""
    found = re.search(r"os error (\d+)", str(error))
    number = int(found[1]) if found else 5
    return OSError(number, os.strerror(number), str(path))

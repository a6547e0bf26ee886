"""What two files must share to be called equal."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["bits_of"]


def bits_of(path: Path) -> object:
    """The bytes of a file; of a safetensors file its header as values, and then the bytes.

    The format does not fix the order of header texts, and its writer draws a new one each time.
    """
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return data
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]

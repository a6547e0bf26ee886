"""Commands that messages suggest, written so that they run when they are copied into a shell.

Paths with blanks or quotes would be taken apart there.

    command("export", run.path, "--format", "glb")  # studio export 'my runs/duck' --format glb
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

__all__ = ["command", "quoted"]


def command(*words: str | Path) -> str:
    """``studio`` with these words, each quoted where a shell would take it apart."""
    parts = ["studio", *map(str, words)]
    return subprocess.list2cmdline(parts) if os.name == "nt" else shlex.join(parts)


def quoted(prompt: str) -> str:
    """A prompt as one word, in double quotes unless a shell reads something in them."""
    return shlex.quote(prompt) if set(prompt) & set('"$`\\!') else f'"{prompt}"'

"""Commands that messages suggest, written so that they run when they are copied into a shell.

Paths with blanks or quotes would be taken apart there.

    command("export", run.path, "--format", "glb")  # studio export 'my runs/duck' --format glb
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = ["command", "quoted", "shell_words"]


def command(*words: str | Path) -> str:
    """``studio`` with these words, each quoted where a shell would take it apart."""
    return shell_words(["studio", *map(str, words)])


def shell_words(words: Sequence[str]) -> str:
    """Any command as the shell of this system reads it."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def quoted(prompt: str) -> str:
    """A prompt as one word, in double quotes unless a shell reads something in them."""
    return shlex.quote(prompt) if set(prompt) & set('"$`\\!') else f'"{prompt}"'

"""Text embeddings on disk, keyed by the prior's fingerprint and the prompt.

One safetensors file per prompt, written beside its place and renamed, so that a reader never sees
half a file. A file that cannot be read counts as absent and is written again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path

from image_tools.diffusion.conditions import TextEmbedding

__all__ = ["PromptCache"]

logger = logging.getLogger(__name__)


class PromptCache:
    """A folder of text embeddings."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).expanduser()

    def path(self, fingerprint: str, prompt: str) -> Path:
        """File of one prompt; its name is a hash, so any prompt is a valid name."""
        digest = hashlib.sha256(_key(fingerprint, prompt).encode()).hexdigest()
        return self.folder / f"{digest[:40]}.safetensors"

    def read(self, fingerprint: str, prompt: str) -> TextEmbedding | None:
        """The stored embedding of one prompt, or None if absent, damaged or of another key."""
        from safetensors import SafetensorError, safe_open

        path = self.path(fingerprint, prompt)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                key = (file.metadata() or {}).get("key")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            logger.warning("Prompt cache: %s cannot be read (%s); encoding again.", path, error)
            return None
        if key != _key(fingerprint, prompt) or "tokens" not in tensors:
            return None
        return TextEmbedding(tensors["tokens"], tensors.get("pooled"))

    def write(self, fingerprint: str, prompt: str, embedding: TextEmbedding) -> None:
        """Store one prompt. A folder that cannot be written is reported and costs only time."""
        from safetensors.torch import save

        tensors = {"tokens": embedding.tokens.detach().cpu().contiguous()}
        if embedding.pooled is not None:
            tensors["pooled"] = embedding.pooled.detach().cpu().contiguous()
        content = save(tensors, metadata={"key": _key(fingerprint, prompt)})
        try:
            self._replace(self.path(fingerprint, prompt), content)
        except OSError as error:
            logger.warning("Prompt cache: cannot write to %s (%s).", self.folder, error)

    def _replace(self, target: Path, content: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(name).replace(target)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


def _key(fingerprint: str, prompt: str) -> str:
    """Fingerprint and prompt as one line, stored in the file and hashed for its name."""
    return json.dumps([fingerprint, prompt])

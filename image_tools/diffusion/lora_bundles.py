"""Names of the Textual Inversion vectors that A1111 bundles with a LoRA's tensors.

bundle_emb.<word>.string_to_param.*     the only text encoder of Stable Diffusion 1.x and 2.x
bundle_emb.<word>.emb_params            the same by kohya's name; read only
bundle_emb.<word>.clip_l, .clip_g       the two of SDXL

bundled_part("bundle_emb.my-dog.clip_l")        # ("my-dog", "clip_l")
bundle_key("my-dog", "*")                       # "bundle_emb.my-dog.string_to_param.*"
"""

from __future__ import annotations

import re

__all__ = ["BUNDLE_PREFIX", "ONLY", "PAIR", "bundle_key", "bundled_part"]

BUNDLE_PREFIX = "bundle_emb."
ONLY = "*"
"""The encoder of a model that has one."""
PAIR = ("clip_l", "clip_g")
"""The encoders of SDXL, in its order."""

_KEY = re.compile(r"bundle_emb\.(.+?)\.(?:(clip_l|clip_g)|string_to_param\..+|emb_params|\*)")


def bundled_part(key: str) -> tuple[str, str] | None:
    """Word and encoder of a bundled tensor: ``*``, clip_l or clip_g; None for a LoRA's own."""
    match = _KEY.fullmatch(key)
    return None if match is None else (match[1], match[2] or ONLY)


def bundle_key(word: str, encoder: str) -> str:
    """The tensor's name, as A1111 writes it."""
    return f"{BUNDLE_PREFIX}{word}.{'string_to_param.*' if encoder == ONLY else encoder}"

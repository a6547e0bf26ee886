"""What prompts and seeds of a scene may be, whatever its task; without torch."""

from __future__ import annotations

import unicodedata

__all__ = ["prompt_problems", "seed_problems"]

MAX_PROMPT = 1000  # characters; text encoders read 24 to 77 tokens, so more is a mistake


def prompt_problems(prompt: str, negative_prompt: str) -> list[str]:
    """Each reason why the prompts cannot be meant; empty if there is none."""
    problems = []
    if not prompt.strip():
        problems.append(
            "prompt: is empty - expected what to make, such as prompt='a red mushroom'."
        )
    for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
        if len(text) > MAX_PROMPT:
            problems.append(
                f"{name}: has {len(text)} characters - expected at most {MAX_PROMPT}; "
                "a text encoder reads its first few dozen words only."
            )
        bad = {c for c in text if unicodedata.category(c) in {"Cc", "Cs"} and c not in "\n\t"}
        if bad:
            codes = ", ".join(f"U+{ord(c):04X}" for c in sorted(bad)[:3])
            problems.append(f"{name}: holds control characters ({codes}). Remove them.")
    return problems


def seed_problems(seed: int) -> list[str]:
    """Why a seed cannot be one; empty if it can."""
    if 0 <= seed < 2**63:
        return []
    return [f"seed: got {seed} - expected 0 or more, below 2^63."]

"""Configuration of prompt debiasing, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DebiasConfig"]


@dataclass(frozen=True)
class DebiasConfig:
    """Drops from each view's prompt the words that speak against the view (arXiv 2303.15413)."""

    model: str
    """Folder of a masked language model in transformers layout, such as BERT's, on this machine."""
    threshold: float = 0.95
    """A word is dropped from a view's prompt when p(view | prompt) / p(view | prompt without the
    word) is below this. 0.95 is the published code's value; 0 drops nothing."""
    words: tuple[str, ...] = ()
    """Words of the prompt that may be dropped; empty for all."""

    def __post_init__(self) -> None:
        """Refuse thresholds that would drop neutral words."""
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold is {self.threshold} - expected 0 to 1.")
        if not self.model.strip():
            raise ValueError("model is empty - expected the folder of a masked language model.")

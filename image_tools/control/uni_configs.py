"""Settings of Uni-ControlNet: frozen dataclasses, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "GlobalAdapterSettings",
    "LocalAdapterSettings",
    "UniContentConfig",
    "UniDropoutConfig",
]

CONDITIONS = ("canny", "mlsd", "hed", "sketch", "openpose", "midas", "seg")


@dataclass(frozen=True)
class LocalAdapterSettings:
    """Shape of the local adapter, beside the denoiser that it copies (arXiv 2305.16322)."""

    conditions: tuple[str, ...] = CONDITIONS
    """Names of the maps, in the order of their channels, three each."""
    stem_widths: tuple[int, int, int, int, int] = (32, 64, 64, 128, 128)
    """Channels of the convolutions at the size of the image and above the latents."""
    level_widths: tuple[int, ...] = (192, 256, 384, 512)
    """Channels of the features, for each level of the denoiser."""
    image_factor: int = 8
    """Pixels for each latent along an axis: 2, 4 or 8."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.image_factor not in (2, 4, 8):
            raise ValueError(f"image_factor is {self.image_factor} - expected 2, 4 or 8.")
        if not self.conditions or len(set(self.conditions)) < len(self.conditions):
            raise ValueError(
                f"conditions are {list(self.conditions)} - expected different names, at least one."
            )


@dataclass(frozen=True)
class GlobalAdapterSettings:
    """Shape of the global adapter: an image embedding into words."""

    width: int = 768
    """Width of the image embedding and of the text's tokens, which must be equal."""
    tokens: int = 4
    """Tokens appended to the text."""
    expansion: float = 4.0
    """Width inside of a feed-forward layer, as a factor of its input's."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.tokens < 1 or int(self.expansion * self.width) < 1:
            raise ValueError(
                f"tokens is {self.tokens}, expansion {self.expansion} of width {self.width} - "
                "expected at least one token and one channel."
            )


@dataclass(frozen=True)
class UniContentConfig:
    """A picture whose look is copied, by the adapter's global part."""

    path: str
    """The picture."""
    encoder: str | None = None
    """Folder of the CLIP vision model whose embeddings the adapter reads; empty for the colours of
    the picture alone, which pocket-uni reads."""
    strength: float = 1.0
    """Factor of the words that the adapter makes of it; 0 switches it off."""


@dataclass(frozen=True)
class UniDropoutConfig:
    """What training hides from the adapters, so that every subset of conditions works."""

    text: float = 0.5
    """Probability of an empty prompt."""
    keep_all: float = 0.1
    """Probability that all conditions stay."""
    drop_all: float = 0.1
    """Probability that none stays."""
    drop_each: float = 0.5
    """Otherwise, probability of each condition to be dropped."""

    def __post_init__(self) -> None:
        """Refuse what are no probabilities."""
        for name in ("text", "keep_all", "drop_all", "drop_each"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)} - expected 0 to 1.")
        if self.keep_all + self.drop_all > 1.0:
            raise ValueError(
                f"keep_all {self.keep_all} and drop_all {self.drop_all} - expected at most 1 "
                "together."
            )

"""Low-rank weight changes in memory (LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353).

One ``LoraDelta`` changes one linear or convolution layer by ``(alpha / rank) up down``. A
``LoraFile`` holds them by section (denoiser, text encoders) and by the layer's name in a diffusers
model; a CLIP text encoder's names stand without ``text_model.``, whatever its file or model says.
The true alpha is kept beside the rank: most converters lose it, and with it the strength.

    lora = LoraFile({"unet": {"mid_block.attentions.0.proj_in": LoraDelta(down, up, alpha=4.0)}})
    delta_weight = lora.sections["unet"]["mid_block.attentions.0.proj_in"].weight()
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from image_tools.errors import UnsupportedModel, WeightsMissing

__all__ = ["SECTIONS", "BaseModel", "LoraDelta", "LoraFile", "Section"]

Section = Literal["unet", "text_encoder", "text_encoder_2"]
SECTIONS: tuple[Section, ...] = ("unet", "text_encoder", "text_encoder_2")

BaseModel = Literal["sd1", "sd2", "sdxl", "unknown"]
# Width of the text features that cross-attention reads, which tells the families apart.
_TEXT_WIDTHS: dict[int, BaseModel] = {768: "sd1", 1024: "sd2", 2048: "sdxl"}


@dataclass(frozen=True)
class LoraDelta:
    """Change of one layer's weight: ``(alpha / rank) up down``."""

    down: Tensor
    """[rank, in], of a convolution [rank, in, kernel, kernel]; the A of papers and of peft."""
    up: Tensor
    """[out, rank], of a convolution [out, rank, 1, 1]; the B of papers and of peft."""
    alpha: float
    """Strength: the product is scaled by alpha / rank."""
    magnitude: Tensor | None = None
    """[out] lengths of the changed weight's rows, for DoRA; None for LoRA."""

    def __post_init__(self) -> None:
        """Refuse shapes that do not multiply, and numbers that are none."""
        shapes = f"down {list(self.down.shape)}, up {list(self.up.shape)}"
        fits = self.down.ndim in (2, 4) and self.up.ndim == self.down.ndim
        fits = fits and self.up.shape[1] == self.down.shape[0] > 0
        fits = fits and all(side == 1 for side in self.up.shape[2:])
        if not fits:
            raise WeightsMissing(
                f"A LoRA delta has {shapes}. Expected [rank, in] and [out, rank], or [rank, in, k, "
                "k] and [out, rank, 1, 1]: the file is damaged or of an unknown layout."
            )
        if self.magnitude is not None and self.magnitude.shape != self.up.shape[:1]:
            raise WeightsMissing(
                f"A DoRA magnitude has shape {list(self.magnitude.shape)} beside {shapes}. "
                "Expected one for each output; files normed along the inputs are not supported."
            )
        if not math.isfinite(self.alpha):
            raise WeightsMissing(f"A LoRA delta has alpha {self.alpha}. Expected a finite number.")

    @property
    def rank(self) -> int:
        """Inner size of the product."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """Factor of the product: alpha / rank."""
        return self.alpha / self.rank

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight that is changed."""
        return torch.Size((self.up.shape[0], *self.down.shape[1:]))

    def weight(self) -> Tensor:
        """The change as one float32 tensor in the shape of the layer's weight.

        Raises:
            UnsupportedModel: for DoRA, whose change depends on the weight itself.
        """
        if self.magnitude is not None:
            raise UnsupportedModel(
                "A DoRA delta is no sum: its change depends on the weight that it is applied to. "
                "Attach it to a model, or merge it into one and extract the difference."
            )
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (self.scale * product).reshape(self.shape)

    def scaled(self, factor: float) -> LoraDelta:
        """The same change ``factor`` times as strong."""
        return replace(self, alpha=self.alpha * factor)

    def with_alpha(self, alpha: float) -> LoraDelta:
        """The same change with another alpha, the factor moved into ``up``."""
        if alpha == self.alpha:
            return self
        up = (self.up.float() * (self.alpha / alpha)).to(self.up)
        return replace(self, up=up, alpha=alpha)

    def to(self, *, dtype: torch.dtype) -> LoraDelta:
        """The same change in another number format."""
        magnitude = None if self.magnitude is None else self.magnitude.to(dtype)
        return replace(self, down=self.down.to(dtype), up=self.up.to(dtype), magnitude=magnitude)


@dataclass(frozen=True)
class LoraFile:
    """What one LoRA file holds."""

    sections: Mapping[Section, Mapping[str, LoraDelta]]
    """Deltas by section and by the layer's name."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Texts from the file's header: training settings, title, licence."""
    embeddings: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Bundled Textual Inversion vectors [n, d] by token and by encoder: "*" for the only one,
    or clip_l and clip_g."""
    layers_per_block: int = 2
    """ResNets in each down block of the denoiser (2 in every published model of the family);
    block numbers in Stability's naming depend on it."""

    def __post_init__(self) -> None:
        """Refuse a file without content and sections that no model has."""
        unknown = [name for name in self.sections if name not in SECTIONS]
        if unknown:
            raise UnsupportedModel(
                f"A LoRA has the section '{unknown[0]}'. Expected {', '.join(SECTIONS)}."
            )
        if not any(self.sections.values()):
            raise WeightsMissing("A LoRA has no deltas. Expected at least one layer's.")

    @property
    def base_model(self) -> BaseModel:
        """The family that it was made for, as far as its shapes tell."""
        if self.sections.get("text_encoder_2"):
            return "sdxl"
        for name, delta in self.sections.get("unet", {}).items():
            if name.endswith(("attn2.to_k", "attn2.to_v")):
                return _TEXT_WIDTHS.get(delta.shape[1], "unknown")
        return "unknown"

    @property
    def is_dora(self) -> bool:
        """Whether any delta has a magnitude."""
        return any(delta.magnitude is not None for _, _, delta in self.deltas())

    def deltas(self) -> Iterator[tuple[Section, str, LoraDelta]]:
        """All deltas with their section and layer, in a fixed order."""
        for section in SECTIONS:
            for name, delta in sorted(self.sections.get(section, {}).items()):
                yield section, name, delta

    def scaled(self, factor: float) -> LoraFile:
        """The same LoRA ``factor`` times as strong.

        Raises:
            UnsupportedModel: for DoRA, whose strength is no factor.
        """
        if self.is_dora:
            raise UnsupportedModel(
                "A DoRA cannot be scaled, because its change is no sum. Give it a weight where it "
                "is attached instead."
            )
        sections = {
            section: {name: delta.scaled(factor) for name, delta in deltas.items()}
            for section, deltas in self.sections.items()
        }
        return replace(self, sections=sections)

    def to(self, *, dtype: torch.dtype) -> LoraFile:
        """The same LoRA in another number format."""
        sections = {
            section: {name: delta.to(dtype=dtype) for name, delta in deltas.items()}
            for section, deltas in self.sections.items()
        }
        return replace(self, sections=sections)

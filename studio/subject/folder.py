"""The folder ``subject`` of a run: what was made of the photos, by typed paths.

subject/photos/00.png photos.json      as they are used, with captions.json where there are some
subject/word/                          vectors of a placeholder
subject/class_images/                  prior preservation
subject/training/log.csv               losses; its state goes when it is finished
subject/partial/ full/ multiview/      weights.safetensors, or a LoRA in diffusers' layout
subject/lora/                          the full subject as a LoRA, whatever was trained
subject/samples/                       pictures of what each of the weights draws
subject/grids/training/                the same during a training, with loop.sample_every
subject/views/                         renders, masks, what controls see, pseudo views, views.json
subject/sheets/                        the same laid out for the report
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.lora_files import LORA_WEIGHT_NAME
from image_tools.personalization.class_images import read_image, write_image
from studio.subject.configs import SubjectWeights

__all__ = ["SubjectFolder", "read_images", "write_images"]

FULL_NAME = "weights.safetensors"
WORD_NAME = "learned_embeds.safetensors"


class SubjectFolder:
    """Typed paths; nothing is read or made."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def photos(self) -> Path:
        """Photos as they are used."""
        return self.path / "photos"

    @property
    def word(self) -> Path:
        """The vectors of a placeholder."""
        return self.path / "word" / WORD_NAME

    @property
    def class_images(self) -> Path:
        """Images of the class."""
        return self.path / "class_images"

    @property
    def lora(self) -> Path:
        """The full subject as a LoRA file."""
        return self.path / "lora" / LORA_WEIGHT_NAME

    @property
    def samples(self) -> Path:
        """What each of the weights draws."""
        return self.path / "samples"

    def grids(self, training: str) -> Path:
        """What a training draws on its way."""
        return self.path / "grids" / training

    @property
    def sheets(self) -> Path:
        """Contact sheets for the report."""
        return self.path / "sheets"

    def training(self, name: str) -> Path:
        """The folder in which a training keeps its state."""
        return self.path / name

    def weights(self, name: SubjectWeights, *, is_lora: bool) -> Path:
        """Weights of the whole denoiser, or a LoRA."""
        return self.path / name / (LORA_WEIGHT_NAME if is_lora else FULL_NAME)

    def views(self, kind: str) -> Path:
        """Folder of ``renders``, ``masks``, ``pseudo`` views, or of what a control sees."""
        return self.path / "views" / kind

    @property
    def views_record(self) -> Path:
        """Angles and prompts of the views."""
        return self.path / "views" / "views.json"


def image_path(folder: Path, index: int) -> Path:
    """Image number ``index`` of a folder."""
    return folder / f"{index:02d}.png"


def write_images(folder: Path, images: Float[Tensor, "n h w 3"]) -> None:
    """Write numbered PNGs, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        write_image(image_path(folder, index), image)


def read_images(folder: Path) -> Float[Tensor, "n h w 3"]:
    """Read numbered PNGs in order."""
    return torch.stack([read_image(path) for path in sorted(folder.glob("*.png"))])

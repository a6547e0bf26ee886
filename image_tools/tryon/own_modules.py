"""Networks of try-on models that diffusers does not have, in folders like diffusers' own.

A module keeps its settings, a frozen dataclass, and is written as ``config.json`` beside
``diffusion_pytorch_model.safetensors``, so that trainers treat it as any stock module. Buffers that
training changes (the statistics of batch normalisation) are kept for a resumed training, too.

    module.save_pretrained(folder)
    module = read_own(WarpNet, WarpSettings, folder)
"""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from image_tools.diffusion.weight_writing import write_safetensors
from image_tools.diffusion.weights import read_json
from image_tools.errors import UnsupportedModel
from image_tools.personalization.tensor_files import fill
from image_tools.tryon.tryon_weights import STEM, read_component

__all__ = ["KeptBuffers", "OwnModule", "read_own"]


class OwnModule(nn.Module):
    """A network with settings."""

    def __init__(self, settings: Any) -> None:
        """Keep a frozen dataclass of numbers, words and tuples."""
        super().__init__()
        self.settings = settings

    def save_pretrained(self, folder: Path) -> None:
        """Write settings and weights."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"_class_name": type(self).__name__, **dataclasses.asdict(self.settings)}
        (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        write_safetensors(folder / f"{STEM}.safetensors", self.state_dict(), {"format": "pt"})


Own = TypeVar("Own", bound=OwnModule)


def read_own(kind: type[Own], settings_kind: type, folder: Path) -> Own:
    """A frozen module from its folder.

    Raises:
        WeightsMissing: files are absent or damaged; UnsafeWeights if they are pickles.
        UnsupportedModel: another module, or tensors that do not fit its settings.
    """
    said = read_json(folder / "config.json", role=f"{kind.__name__}'s settings")
    if said.get("_class_name") != kind.__name__:
        raise UnsupportedModel(
            f"'{folder}' holds a {said.get('_class_name')}. Expected a {kind.__name__}; name the "
            "folder that its training wrote."
        )
    known = {field.name for field in dataclasses.fields(settings_kind)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in said.items() if k in known}
    tensors = read_component(folder, role=kind.__name__)
    return fill(
        partial(kind, settings_kind(**values)),
        tensors,
        what=f"'{folder}'",
        expected="all that its training wrote",
    )


class KeptBuffers:
    """Running statistics as parameters without gradients, so that a loop saves and restores them.

    Attributes:
        parameters: by the buffers' names.
    """

    def __init__(self, module: nn.Module) -> None:
        """Take over the module's floating point buffers."""
        self._buffers = {n: b for n, b in module.named_buffers() if b.is_floating_point()}
        self.parameters = {n: nn.Parameter(b.detach().clone()) for n, b in self._buffers.items()}

    @torch.no_grad()
    def keep(self) -> None:
        """Take in the buffers as they are now."""
        for name, buffer in self._buffers.items():
            self.parameters[name].copy_(buffer)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the buffers what was kept."""
        for name, buffer in self._buffers.items():
            buffer.copy_(self.parameters[name])

"""Pictures of one cell of the 2D bench, drawn once and kept beside its row.

Picture k of a subject starts from the same noise for every variant, so that variants are compared
on equal draws. A file knows what it was made of; a change of settings, of a training or of the
prior makes it anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.configs import DdimConfig
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.sampling import sample_images

__all__ = ["Pictures", "digest_of", "draw", "read_pictures", "write_pictures"]

Pictures = Mapping[str, Float[Tensor, "n h w 3"]]
"""Pictures by what they are for: asked, class, unrelated."""
AT_ONCE = 8
KEY = "made_of"


def digest_of(*parts: object) -> str:
    """A hash of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def draw(
    prior: NoisePrior, prompts: Sequence[str], sampler: DdimConfig, *, seed: int
) -> Float[Tensor, "n h w 3"]:
    """One picture for each prompt; picture k depends on the prior, its prompt, the seed and k."""
    images = []
    for start in range(0, len(prompts), AT_ONCE):
        chunk = prompts[start : start + AT_ONCE]
        generators = [
            torch.Generator().manual_seed(seed * 1_000_003 + start + k) for k in range(len(chunk))
        ]
        images.append(sample_images(prior, chunk, generators=generators, config=sampler).cpu())
    return torch.cat(images)


def write_pictures(path: Path, pictures: Pictures, key: str) -> None:
    """Keep pictures as bytes, with what they were made of."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (images.clamp(0, 1) * 255).round().to(torch.uint8).contiguous()
        for name, images in pictures.items()
    }
    partial = path.with_suffix(".tmp")
    save_file(tensors, partial, metadata={KEY: key})
    partial.replace(path)


def read_pictures(path: Path, key: str) -> dict[str, Tensor] | None:
    """The pictures, or None if there are none that were made of this."""
    from safetensors import safe_open

    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get(KEY) != key:
            return None
        return {name: file.get_tensor(name).float() / 255.0 for name in file.offset_keys()}

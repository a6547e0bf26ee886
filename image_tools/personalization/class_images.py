"""Images of a class from the untrained prior, for prior preservation (arXiv 2208.12242, Eq. 2).

Each image is one PNG beside ``class_images.json``, which says what made them. A second call with
the same prior, prompt, seed and sampler makes only what is missing; others are never overwritten.
Numbers come from the files in any case, so that a resumed training sees the same pixels.

    images = make_class_images(prior, "a photo of a dog", folder, config=config, seed=0, log=print)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.sampling import sample_images
from image_tools.personalization.captioned import CaptionedImages
from image_tools.personalization.dreambooth_configs import ClassImagesConfig
from image_tools.personalization.loop import batch_generator
from renderers.errors import StudioError

__all__ = ["make_class_images", "read_image", "write_image"]

RECORD = "class_images.json"
MADE_AT_ONCE = 8


def make_class_images(
    prior: DiffusionPrior,
    prompt: str,
    folder: Path,
    *,
    config: ClassImagesConfig,
    seed: int,
    log: Callable[[str], None],
    check_stop: Callable[[], None] = lambda: None,
) -> CaptionedImages:
    """Class images with the prompt as their caption.

    Args:
        prior: before any training.
        prompt: such as "a photo of a dog".
        folder: where they are kept, or are already.
        config: how many and how.
        seed: image k depends on the seed and k alone.
        log: told about progress.
        check_stop: called before a few images are made; what it raises ends the making, and those
            that are made are kept.

    Raises:
        StudioError: the folder holds images made in another way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_record(folder, prior, prompt, config, seed)
    paths = [folder / f"{index:04d}.png" for index in range(config.count)]
    missing = [index for index, path in enumerate(paths) if not path.is_file()]
    for start in range(0, len(missing), MADE_AT_ONCE):
        chosen = missing[start : start + MADE_AT_ONCE]
        check_stop()
        log(f"class images: {len(missing) - start} to make of '{prompt}'")
        images = sample_images(
            prior,
            [prompt] * len(chosen),
            generators=[batch_generator(seed, index) for index in chosen],
            config=config.sampler,
        )
        for index, image in zip(chosen, images, strict=True):
            write_image(paths[index], image)
    images = torch.stack([read_image(path) for path in paths])
    return CaptionedImages(images, (prompt,) * len(paths))


def write_image(path: Path, image: Float[Tensor, "h w 3"]) -> None:
    """Write a PNG that appears whole or not at all."""
    pixels = (image.detach().cpu().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    partial = path.with_name(path.name + ".tmp")
    Image.fromarray(pixels.numpy()).save(partial, format="PNG")
    partial.replace(path)


def read_image(path: Path) -> Float[Tensor, "h w 3"]:
    """Read an image in 0..1."""
    with Image.open(path) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0)


def _check_record(
    folder: Path, prior: DiffusionPrior, prompt: str, config: ClassImagesConfig, seed: int
) -> None:
    """Write down what makes the images, or compare with what did."""
    path = folder / RECORD
    record = {
        "prior": prior.fingerprint,
        "prompt": prompt,
        "seed": seed,
        "sampler": dataclasses.asdict(config.sampler),
    }
    if not path.exists():
        partial = path.with_suffix(".json.tmp")
        partial.write_text(json.dumps(record, indent=2))
        partial.replace(path)
        return
    found = json.loads(path.read_text())
    different = [key for key, value in record.items() if found.get(key) != value]
    if different:
        key = different[0]
        raise StudioError(
            f"The class images in '{folder}' were made with {key} {found.get(key)!r} - expected "
            f"{record[key]!r}. Choose another folder, or remove this one to make them again."
        )

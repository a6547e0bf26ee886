"""Pairs of the wardrobe as batches for try-on trainers, drawn once and kept in one file.

Pictures are kept as bytes, so that 20,000 pairs of 64x48 pixels take 0.7 GB of memory. On a GPU the
pairs are rendered there, hundreds at a time; on CPUs in several processes. Row k depends on the
split and k alone, whatever drew it.

    store = draw_store(folder, StoreConfig(pairs=20_000), log=print)
    batches = store.batches(batch_size=16)
    sample = batches(17, generator)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from image_tools.diffusion.weight_writing import write_safetensors
from image_tools.tryon.garment_configs import GarmentCategory
from image_tools.tryon.pose_maps import part_colors
from image_tools.tryon.samples import Garment, TryOnSample
from scenes.wardrobe.labels import BODY_25, COCO_18
from scenes.wardrobe.samples import PairConfig, Pairs, Split, draw_pairs
from studio.errors import ConfigError
from studio.training.render_pool import draw_rows

__all__ = ["StoreConfig", "TryOnStore", "draw_store", "keypoint_shares", "samples_of"]

ROWS_AT_ONCE, ROWS_ON_GPU = 16, 256
CATEGORIES: tuple[GarmentCategory, ...] = ("upper", "lower", "dress")


@dataclass(frozen=True)
class StoreConfig:
    """Which pairs are kept."""

    pairs: int = 20_000
    """Number of pairs."""
    height: int = 64
    """Rows of the pictures; they are three quarters as wide."""
    split: Split = "train"
    """Which people and garments."""
    first: int = 0
    """Number of the first pair."""
    other: bool = False
    """Keep the people in the second garment, too: the truth of unpaired try-on."""
    category: int | None = None
    """UPPER, LOWER or DRESS of scenes/wardrobe; all of them where None."""


@dataclass(frozen=True)
class TryOnStore:
    """Kept pairs."""

    tensors: dict[str, Tensor]
    captions: tuple[str, ...]
    captions_other: tuple[str, ...]

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.captions)

    def sample(self, rows: Sequence[int] | Tensor) -> TryOnSample:
        """People and the garments that they wear."""
        return self._sample(rows, "product", self.captions)

    def unpaired(
        self, rows: Sequence[int] | Tensor
    ) -> tuple[TryOnSample, Float[Tensor, "b h w 3"]]:
        """People and another garment, and the true picture of them in it.

        Raises:
            ValueError: the second garments were not kept.
        """
        if "person_other" not in self.tensors:
            raise ValueError("The store has no second garments. Draw it with other=True.")
        index = torch.as_tensor(rows)
        sample = self._sample(rows, "product_other", self.captions_other)
        return sample, _as_float(self.tensors["person_other"][index])

    def batches(self, batch_size: int) -> Callable[[int, torch.Generator], TryOnSample]:
        """What trainers take: random pairs for each batch, from its generator alone."""

        def batch(number: int, generator: torch.Generator) -> TryOnSample:
            return self.sample(torch.randint(len(self), (batch_size,), generator=generator))

        return batch

    def _sample(
        self, rows: Sequence[int] | Tensor, product: str, captions: tuple[str, ...]
    ) -> TryOnSample:
        index = torch.as_tensor(rows)
        own = {name: tensor[index] for name, tensor in self.tensors.items()}
        numbers = index.tolist()
        is_own = product == "product"
        garment = Garment(
            _as_float(own[product]),
            tuple(CATEGORIES[k] for k in own["category"].tolist()),
            tuple(captions[k] for k in numbers),
            own[f"{product}_mask"][..., None].float(),
        )
        return TryOnSample(
            _as_float(own["person"]),
            (garment,),
            own["mask"][..., None].float(),
            captions=tuple(captions[k] for k in numbers),
            densepose=part_colors(own["parts"].long()),
            keypoints=own["keypoints"],
            parse=own["parse"].long(),
            worn_mask=own["worn"][..., None].float() if is_own else None,
        )


def samples_of(pairs: Pairs) -> TryOnStore:
    """Pairs as they are kept."""
    tensors = {
        "person": _as_bytes(pairs.worn.rgb),
        "product": _as_bytes(pairs.product),
        "product_mask": pairs.product_mask > 0.5,
        "mask": pairs.mask,
        "worn": pairs.worn_mask,
        "parts": pairs.worn.densepose.to(torch.uint8),
        "parse": pairs.worn.atr.to(torch.uint8),
        "keypoints": keypoint_shares(pairs),
        "category": pairs.wardrobe.target.to(torch.uint8),
    }
    if pairs.worn_other is not None:
        tensors["person_other"] = _as_bytes(pairs.worn_other.rgb)
        tensors["product_other"] = _as_bytes(pairs.product_other)
        tensors["product_other_mask"] = pairs.product_other_mask > 0.5
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    return TryOnStore(tensors, pairs.captions, pairs.captions_other)


def keypoint_shares(pairs: Pairs) -> Float[Tensor, "b 18 3"]:
    """Keypoints in the order of COCO, as shares of width and height."""
    order = [BODY_25.index(name) for name in COCO_18]
    points = pairs.worn.keypoints[:, order]
    height, width = pairs.worn.rgb.shape[1:3]
    return points / points.new_tensor([width, height, 1.0]) * points[..., 2:]


def draw_store(
    path: Path,
    config: StoreConfig,
    *,
    device: torch.device | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> TryOnStore:
    """The pairs of a file, drawn first if it is not there.

    Args:
        path: a .safetensors file.
        config: which pairs.
        device: a GPU that renders; None for the CPU's processes.
        log: gets a line for people now and then.

    Raises:
        ConfigError: the file holds other pairs.
    """
    key = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()[:16]
    if path.exists():
        return _read(path, key)
    is_gpu = device is not None and device.type == "cuda"
    step = ROWS_ON_GPU if is_gpu else ROWS_AT_ONCE
    starts = range(config.first, config.first + config.pairs, step)
    draw = partial(_draw_part, config, step, device if is_gpu else None)
    parts = []
    for start, part in zip(starts, map(draw, starts) if is_gpu else draw_rows(draw, starts)):
        parts.append(part)
        if (start - config.first) // step % 50 == 0:
            log(f"pairs {start - config.first + len(part)}/{config.pairs}")
    names = parts[0].tensors
    store = TryOnStore(
        {name: torch.cat([part.tensors[name] for part in parts]) for name in names},
        tuple(caption for part in parts for caption in part.captions),
        tuple(caption for part in parts for caption in part.captions_other),
    )
    words = {"captions": store.captions, "captions_other": store.captions_other}
    write_safetensors(path, store.tensors, {"key": key, "words": json.dumps(words)})
    return store


def _draw_part(
    config: StoreConfig, step: int, device: torch.device | None, start: int
) -> TryOnStore:
    count = min(step, config.first + config.pairs - start)
    pairs = PairConfig(config.height, category=config.category, other=config.other)
    drawn = draw_pairs(pairs, split=config.split, first=start, count=count, device=device)
    return samples_of(drawn)


def _read(path: Path, key: str) -> TryOnStore:
    with safe_open(path, "pt") as file:
        header = file.metadata() or {}
    if header.get("key") != key:
        raise ConfigError(
            f"'{path}' holds other pairs than are asked for. Name another file, or delete this one."
        )
    words = json.loads(header["words"])
    return TryOnStore(load_file(path), tuple(words["captions"]), tuple(words["captions_other"]))


def _as_bytes(images: Tensor) -> Tensor:
    return (images.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)


def _as_float(images: Tensor) -> Float[Tensor, "b h w 3"]:
    return images.float() / 255.0

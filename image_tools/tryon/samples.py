"""A batch of people and the garments that they shall wear: what every try-on model reads.

All pictures are [b, h, w, c] in 0..1, of one size, and portrait as a rule (3:4). The mask is 1
where the picture is painted anew and 0 where it is kept, for every model: those that were trained
with the opposite turn it round themselves. What a model does not need may be absent; one that needs
it says so by :meth:`TryOnSample.need`.

The models know only masks of zeros and ones (:attr:`TryOnSample.hardened`); a soft one blends the
pictures at its rim when they are pasted back.

    sample = TryOnSample(person, (Garment(shirt, ("upper",), ("a red shirt",)),), mask)
    result = sample.paste_back(images)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from image_tools.tryon.garment_configs import GarmentCategory
from image_tools.tryon.pictures import fitted
from renderers.errors import ShapeError, StudioError, check_shape

__all__ = ["KEYPOINT_NAMES", "Garment", "TryOnBatches", "TryOnSample"]

KEYPOINT_NAMES = (
    *("nose", "neck", "right_shoulder", "right_elbow", "right_wrist"),
    *("left_shoulder", "left_elbow", "left_wrist", "right_hip", "right_knee", "right_ankle"),
    *("left_hip", "left_knee", "left_ankle", "right_eye", "left_eye", "right_ear", "left_ear"),
)
"""The 18 COCO keypoints in OpenPose's order; right is the person's own."""
GREY = 0.5  # of pixels that are painted anew: zero in the range -1..1 of the networks


@dataclass(frozen=True)
class Garment:
    """Product pictures of one garment for each row."""

    images: Float[Tensor, "b h w 3"]
    """The garment alone, on white as a rule."""
    categories: tuple[GarmentCategory, ...]
    """What it is."""
    captions: tuple[str, ...]
    """What it is in words, such as "short sleeve round neck t-shirt"."""
    masks: Float[Tensor, "b h w 1"] | None = None
    """1 where the picture shows the garment."""

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        check_shape("garment images", self.images, "B H W 3")
        rows = len(self.images)
        for name in ("categories", "captions"):
            if len(getattr(self, name)) != rows:
                raise ShapeError(
                    f"{rows} garments came with {len(getattr(self, name))} {name}. Give one each."
                )
        if self.masks is not None:
            height, width = self.images.shape[1:3]
            check_shape("garment masks", self.masks, f"{rows} {height} {width} 1")

    def __len__(self) -> int:
        return len(self.images)

    def sized(self, size: tuple[int, int]) -> Garment:
        """The same in pictures of a height and width, on white and not stretched."""
        if tuple(self.images.shape[1:3]) == tuple(size):
            return self
        masks = self.masks
        if masks is not None:
            masks = fitted(masks.expand(-1, -1, -1, 3), size, around=0.0)[..., :1]
        return replace(self, images=fitted(self.images, size), masks=masks)

    def select(self, rows: Int[Tensor, " selected"]) -> Garment:
        """Rows by index, in the order given; an index may repeat."""
        return _select(self, rows)

    def to(self, device: torch.device) -> Garment:
        """The same on another device."""
        return _map(self, lambda values: values.to(device))


@dataclass(frozen=True)
class TryOnSample:
    """People, garments, and what is known of their bodies."""

    person: Float[Tensor, "b h w 3"]
    """The people; in training they wear the garments already."""
    garments: tuple[Garment, ...]
    """What they shall wear, one or several for each; as many for every row."""
    mask: Float[Tensor, "b h w 1"]
    """1 where the picture is painted anew."""
    captions: tuple[str, ...] = ()
    """What the people wear, in words; empty where no words are known."""
    densepose: Float[Tensor, "b h w 3"] | None = None
    """Body parts in colours, as ``pose_maps.part_colors`` paints them."""
    keypoints: Float[Tensor, "b 18 3"] | None = None
    """Column and row as shares of width and height, and 1 where the point is known; in the order of
    ``KEYPOINT_NAMES``."""
    parse: Int[Tensor, "b h w"] | None = None
    """Labels of clothes and body parts, ATR's 18."""
    worn_mask: Float[Tensor, "b h w 1"] | None = None
    """1 where the person's picture shows the garment itself; known in training only."""
    warped: Float[Tensor, "b h w 3"] | None = None
    """The garment bent to the body, on white."""

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        check_shape("person", self.person, "B H W 3")
        rows, height, width = self.person.shape[:3]
        size = f"{rows} {height} {width}"
        shapes = {
            "mask": f"{size} 1",
            "densepose": f"{size} 3",
            "keypoints": f"{rows} 18 3",
            "parse": size,
            "worn_mask": f"{size} 1",
            "warped": f"{size} 3",
        }
        for name, shape in shapes.items():
            if getattr(self, name) is not None:
                check_shape(name, getattr(self, name), shape)
        if not self.garments or any(len(garment) != rows for garment in self.garments):
            counts = ", ".join(str(len(garment)) for garment in self.garments) or "no garment"
            raise ShapeError(f"{rows} people came with {counts}. Give each person a garment.")
        if self.captions and len(self.captions) != rows:
            raise ShapeError(f"{rows} people came with {len(self.captions)} captions.")

    def __len__(self) -> int:
        return len(self.person)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return tuple(self.person.shape[1:3])

    @property
    def agnostic(self) -> Float[Tensor, "b h w 3"]:
        """The people without what is painted anew, which is grey."""
        return torch.lerp(self.person, torch.full_like(self.person, GREY), self.mask)

    @property
    def hardened(self) -> TryOnSample:
        """With a mask of zeros and ones; from a half on it is one."""
        return replace(self, mask=(self.mask >= 0.5).to(self.mask))

    def need(self, name: str, *, model: str) -> Tensor:
        """A part that a model cannot do without.

        Raises:
            StudioError: it is absent.
        """
        value = getattr(self, name)
        if value is None:
            raise StudioError(
                f"{model} needs the people's {name}, and the sample has none. Give it, or take a "
                "model that does without."
            )
        return value

    def only_garment(self, *, model: str) -> Garment:
        """The garment, for a model that knows one at a time.

        Raises:
            StudioError: there are several.
        """
        if len(self.garments) != 1:
            raise StudioError(
                f"{model} got {len(self.garments)} garments for each person - expected one. Dress "
                "people in one after the other, or take BootComp."
            )
        return self.garments[0]

    def paste_back(self, images: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b h w 3"]:
        """Painted pictures inside the mask, and the people's own outside, bit for bit.

        Raises:
            ShapeError: if the pictures have another size.
        """
        check_shape("images", images, " ".join(str(side) for side in self.person.shape))
        person, mask = self.person.to(images), self.mask.to(images)
        return torch.where(mask == 0.0, person, torch.lerp(person, images, mask))

    def select(self, rows: Int[Tensor, " selected"]) -> TryOnSample:
        """Rows by index, in the order given; an index may repeat."""
        garments = tuple(garment.select(rows) for garment in self.garments)
        return _select(self, rows, {"garments": garments})

    def to(self, device: torch.device) -> TryOnSample:
        """The same on another device."""
        garments = tuple(garment.to(device) for garment in self.garments)
        return replace(_map(self, lambda values: values.to(device)), garments=garments)


TryOnBatches = Callable[[int, torch.Generator], TryOnSample]
"""What trainers take: batch number k, in which everything random comes from the generator. People
wear their garments."""


def _map(
    item: Garment | TryOnSample,
    change: Callable[[Tensor], Tensor],
    others: Mapping[str, Any] | None = None,
) -> Garment | TryOnSample:
    """All tensors changed at once with other fields, so that they are checked together."""
    values = {field.name: getattr(item, field.name) for field in fields(item)}
    changed = {name: change(v) for name, v in values.items() if isinstance(v, Tensor)}
    return replace(item, **{**changed, **(others or {})})


def _select(
    item: Garment | TryOnSample, rows: Tensor, others: Mapping[str, Any] | None = None
) -> Garment | TryOnSample:
    """Rows of tensors and of words, and other fields."""
    index = rows.tolist()
    words = {
        name: tuple(getattr(item, name)[k] for k in index)
        for name in ("captions", "categories")
        if getattr(item, name, ())
    }
    return _map(item, lambda values: values[rows.to(values.device)], {**words, **(others or {})})

"""Folders of try-on data sets as they are published: VITON-HD and DressCode.

VITON-HD (arXiv 2103.16874) has people in tops:

    {train,test}/{image,cloth}/*.jpg               people, products
    {train,test}/cloth-mask/*.jpg, image-parse-v3/*.png (LIP), image-densepose/*.jpg
    {train,test}/agnostic-mask/*_mask.png, openpose_json/*_keypoints.json (BODY_25)
    {train,test}/vitonhd_{train,test}_tagged.json  words, as of IDM-VTON's authors; may be absent,
                                                   and those without are "shirts"
    {train,test}_pairs.txt                         a person and, for unpaired tests, a product

DressCode (arXiv 2204.08532) has people in everything, in a folder for each category:

    {upper_body,lower_body,dresses}/images/N_0.jpg, N_1.jpg    a person, their garment
    .../masks/N_1.png, keypoints/N_2.json, label_maps/N_4.png (ATR)
    .../dense/N_5.png                                          DensePose's part numbers
    .../dc_caption.txt                                         words; may be absent
    .../{train_pairs,test_pairs_paired,test_pairs_unpaired}.txt

Training data are paired: each person with what they wear. Where a data set has no mask of what is
painted anew, one is made of its maps (``image_tools/tryon/masks.py``). DressCode's products are put
on white by their masks, and its part numbers are painted in DensePose's colours, as the models see
them.

    data = read_viton_hd(Path("zalando-hd"), "test", size=(512, 384), paired=False)
    sample = data.sample([0, 1])
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from image_tools.tryon.garment_configs import GarmentCategory
from image_tools.tryon.label_files import read_labels
from image_tools.tryon.masks import BodyMaps, agnostic_mask
from image_tools.tryon.masks_configs import MaskConfig, ParseLayout
from image_tools.tryon.pictures import WHITE
from image_tools.tryon.pose_files import read_keypoints
from image_tools.tryon.pose_maps import part_colors, part_labels
from image_tools.tryon.samples import KEYPOINT_NAMES, Garment, TryOnSample
from renderers.errors import StudioError

__all__ = ["LIP_TO_ATR", "TryOnFolder", "read_dress_code", "read_viton_hd"]

Read = TypeVar("Read")
DressCodeCategory = Literal["upper_body", "lower_body", "dresses"]
CATEGORIES: dict[str, GarmentCategory] = {
    "upper_body": "upper",
    "lower_body": "lower",
    "dresses": "dress",
}
NO_WORDS = "shirts"
"""What tops of VITON-HD are called where no words are known, as in IDM-VTON's training."""
DRESS_CODE_FRAME = (512, 384)
"""Rows and columns in which DressCode gives keypoints."""
WORN: dict[ParseLayout, dict[GarmentCategory, tuple[int, ...]]] = {
    "atr": {"upper": (4,), "lower": (5, 6), "dress": (7,)},
    "lip": {"upper": (5, 6, 7)},  # VITON-HD's tops may be called dresses and coats
}
LIP_TO_ATR = (0, 1, 2, 0, 3, 4, 7, 4, 0, 6, 11, 17, 5, 11, 14, 15, 12, 13, 9, 10)
"""ATR's class for each of LIP's; coats are tops, VITON-HD's necks faces, socks and gloves nothing.
"""


@dataclass(frozen=True)
class _Entry:
    """Files of one person and one product; those that may be absent are None where they are."""

    person: Path
    product: Path
    product_mask: Path
    parse: Path
    densepose: Path
    keypoints: Path
    mask: Path | None
    caption: str
    category: GarmentCategory


@dataclass(frozen=True)
class TryOnFolder:
    """A split of a data set."""

    entries: tuple[_Entry, ...]
    size: tuple[int, int]
    """Rows and columns that pictures are brought to."""
    layout: ParseLayout
    """What the numbers of its label maps mean."""
    read_keypoints: Callable[[Path, tuple[int, int]], Float[Tensor, "18 3"]]
    masks: MaskConfig
    """How masks are made where there are none."""
    paired: bool
    """People wear the garments that come with them."""
    products_on_white: bool
    """Products are cut out by their masks, as the data set's authors read them."""

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.entries)

    def sample(self, rows: Sequence[int]) -> TryOnSample:
        """Some pairs.

        Raises:
            StudioError: naming a file that is absent or no picture.
        """
        chosen = [self.entries[row] for row in rows]
        person = torch.cat([self._picture(entry.person) for entry in chosen])
        products = torch.cat([self._picture(entry.product) for entry in chosen])
        product_masks = torch.cat([self._mask(entry.product_mask) for entry in chosen])
        if self.products_on_white:
            products = torch.lerp(torch.full_like(products, WHITE), products, product_masks)
        labels = torch.cat([self._labels(entry.parse) for entry in chosen])
        points = [self.read_keypoints(e.keypoints, _size_of(e.person)) for e in chosen]
        wanted = [torch.tensor(WORN[self.layout][entry.category]) for entry in chosen]
        worn = [torch.isin(own, numbers) for own, numbers in zip(labels, wanted, strict=True)]
        garment = Garment(
            products,
            tuple(entry.category for entry in chosen),
            tuple(entry.caption for entry in chosen),
            product_masks,
        )
        return TryOnSample(
            person,
            (garment,),
            torch.stack([self._anew(*given) for given in zip(chosen, labels, points, strict=True)]),
            captions=tuple(entry.caption for entry in chosen) if self.paired else (),
            densepose=torch.cat([self._parts(entry.densepose) for entry in chosen]),
            keypoints=torch.stack(points),
            parse=self._as_atr(labels),
            worn_mask=torch.stack(worn).float()[..., None] if self.paired else None,
        )

    def _anew(self, entry: _Entry, labels: Tensor, keypoints: Tensor) -> Float[Tensor, "h w 1"]:
        if entry.mask is not None:
            return self._mask(entry.mask)[0]
        needs_parts = self.masks.algorithm == "cat_vton"
        parts = part_labels(self._parts(entry.densepose))[0].numpy() if needs_parts else None
        body = BodyMaps(labels.numpy(), self.layout, keypoints.numpy(), parts)
        area = agnostic_mask(body, entry.category, self.masks)
        return torch.from_numpy(area)[..., None].float()

    def _picture(self, path: Path) -> Float[Tensor, "1 h w 3"]:
        pixels = torch.from_numpy(_pixels(path, "RGB")).float().div(255.0).movedim(-1, 0)[None]
        if pixels.shape[-2:] != self.size:
            shrinks = pixels.shape[-2] > self.size[0]
            pixels = F.interpolate(pixels, self.size, mode="bilinear", antialias=shrinks)
        return pixels.clamp(0.0, 1.0).movedim(1, -1)

    def _mask(self, path: Path) -> Float[Tensor, "1 h w 1"]:
        levels = torch.from_numpy(_pixels(path, "L")).float()[None, None]
        sized = F.interpolate(levels, self.size, mode="nearest")
        return (sized > 127.0).float().movedim(1, -1)

    def _parts(self, path: Path) -> Float[Tensor, "1 h w 3"]:
        """Body parts in colours, in which the picture has them or a number for each."""
        if _readable(_has_colors, path):
            return self._picture(path)
        return part_colors(self._labels(path))

    def _labels(self, path: Path) -> Int[Tensor, "1 h w"]:
        labels = torch.from_numpy(_readable(read_labels, path))
        return F.interpolate(labels[None, None].float(), self.size, mode="nearest").long()[0]

    def _as_atr(self, labels: Int[Tensor, "b h w"]) -> Int[Tensor, "b h w"]:
        if self.layout == "atr":
            return labels
        return torch.tensor(LIP_TO_ATR)[labels.clamp(max=len(LIP_TO_ATR) - 1)]


def read_viton_hd(
    root: Path,
    split: Literal["train", "test"],
    *,
    size: tuple[int, int] = (512, 384),
    paired: bool = True,
    masks: MaskConfig | None = None,
) -> TryOnFolder:
    """A split of VITON-HD.

    Args:
        root: the data set's folder.
        split: train or test.
        size: rows and columns that pictures are brought to.
        paired: each person with their own garment, as in training, whatever the list says.
        masks: how masks are made where the folder agnostic-mask is absent.

    Raises:
        StudioError: the list of pairs is absent.
    """
    folder = root / split
    words = _viton_words(folder / f"vitonhd_{split}_tagged.json")
    has_masks = (folder / "agnostic-mask").is_dir()
    entries = []
    for name, product in _pairs(root / f"{split}_pairs.txt"):
        product, stem = name if paired else product, Path(name).stem
        entries.append(
            _Entry(
                person=folder / "image" / name,
                product=folder / "cloth" / product,
                product_mask=folder / "cloth-mask" / product,
                parse=folder / "image-parse-v3" / f"{stem}.png",
                densepose=folder / "image-densepose" / name,
                keypoints=folder / "openpose_json" / f"{stem}_keypoints.json",
                mask=folder / "agnostic-mask" / f"{stem}_mask.png" if has_masks else None,
                caption=words.get(product) or NO_WORDS,
                category="upper",
            )
        )
    masks = masks or MaskConfig("viton_hd")
    return TryOnFolder(
        tuple(entries), size, "lip", _open_pose, masks, paired, products_on_white=False
    )


def read_dress_code(
    root: Path,
    split: Literal["train", "test"],
    *,
    categories: Sequence[DressCodeCategory] = ("upper_body", "lower_body", "dresses"),
    size: tuple[int, int] = (512, 384),
    paired: bool = True,
    masks: MaskConfig | None = None,
) -> TryOnFolder:
    """A split of DressCode; arguments as of ``read_viton_hd``.

    Args:
        root: the data set's folder.
        split: train or test.
        categories: which of its folders.
        size: rows and columns that pictures are brought to.
        paired: each person with their own garment; training has no other.
        masks: how masks are made; DressCode has none.
    """
    order = "" if split == "train" else "_paired" if paired else "_unpaired"
    entries = []
    for category in categories:
        folder = root / category
        words = _dress_code_words(folder / "dc_caption.txt")
        for name, product in _pairs(folder / f"{split}_pairs{order}.txt"):
            number, other = name.split("_")[0], product.split("_")[0]
            entries.append(
                _Entry(
                    person=folder / "images" / name,
                    product=folder / "images" / product,
                    product_mask=folder / "masks" / f"{other}_1.png",
                    parse=folder / "label_maps" / f"{number}_4.png",
                    densepose=folder / "dense" / f"{number}_5.png",
                    keypoints=folder / "keypoints" / f"{number}_2.json",
                    mask=None,
                    caption=words.get(product, ""),
                    category=CATEGORIES[category],
                )
            )
    masks = masks or MaskConfig("viton_hd", arm_width=45.0)
    return TryOnFolder(
        tuple(entries), size, "atr", _dress_code_points, masks, paired, products_on_white=True
    )


def _pairs(path: Path) -> list[tuple[str, str]]:
    """First two columns of a list."""
    if not path.is_file():
        raise StudioError(
            f"The list of pairs '{path}' is missing. Expected the data set's own folders and "
            "lists; correct its path."
        )
    pairs = []
    for number, line in enumerate(_lines(path), start=1):
        row = line.split()
        if len(row) == 1:
            raise StudioError(
                f"Line {number} of '{path}' is '{line.strip()}' - expected two files, a person and "
                "a product. Correct the line, or unpack the data set again."
            )
        pairs += [(row[0], row[1])] if row else []
    return pairs


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StudioError(
            f"'{path}' cannot be read ({error}). Expected a text file of the data set as it is "
            "published; unpack it again."
        ) from error


def _pixels(path: Path, mode: str) -> np.ndarray:
    from PIL import Image

    def read(file: Path) -> np.ndarray:
        with Image.open(file) as image:
            return np.array(image.convert(mode))

    return _readable(read, path)


def _has_colors(path: Path) -> bool:
    from PIL import Image

    with Image.open(path) as image:
        return len(image.getbands()) > 1


def _readable(read: Callable[[Path], Read], path: Path) -> Read:
    """What is read of a picture."""
    try:
        return read(path)
    except OSError as error:
        raise StudioError(
            f"'{path}' cannot be read as a picture ({error}). Expected the data set as it is "
            "published; unpack it again."
        ) from error


def _size_of(path: Path) -> tuple[int, int]:
    """Rows and columns of a picture, of its header alone."""
    from PIL import Image

    with Image.open(path) as image:
        return image.height, image.width


def _open_pose(path: Path, size: tuple[int, int]) -> Float[Tensor, "18 3"]:
    return read_keypoints(path, size)[0]


def _dress_code_points(path: Path, size: tuple[int, int]) -> Float[Tensor, "18 3"]:
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))["keypoints"]
        points = torch.tensor(numbers, dtype=torch.float32).reshape(len(KEYPOINT_NAMES), -1)[:, :2]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise StudioError(
            f"Keypoints in '{path}' cannot be read ({type(error).__name__}: {error}) - expected "
            f"DressCode's JSON: keypoints, {len(KEYPOINT_NAMES)} rows of x and y."
        ) from error
    return _as_shares(points, DRESS_CODE_FRAME)


def _as_shares(points: Float[Tensor, "18 2"], size: tuple[int, int]) -> Float[Tensor, "18 3"]:
    """Shares of width and height; places at the very corner mean that a point is not known."""
    known = (points > 1.0).all(dim=1, keepdim=True).float()
    return torch.cat([points / points.new_tensor([size[1], size[0]]) * known, known], dim=1)


def _viton_words(path: Path) -> dict[str, str]:
    """Sleeve length, neckline and item of each product."""
    if not path.is_file():
        return {}
    words = {}
    try:
        for rows in json.loads("\n".join(_lines(path))).values():
            for row in rows:
                tags = {tag["tag_name"]: tag["tag_category"] for tag in row["tag_info"]}
                said = [tags.get(name) for name in ("sleeveLength", "neckLine", "item")]
                words[row["file_name"]] = " ".join(word for word in said if word)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudioError(
            f"Words in '{path}' cannot be read ({type(error).__name__}: {error}) - expected the "
            "JSON of IDM-VTON's authors: lists of file_name and tag_info. Without the file, "
            f"all products are called '{NO_WORDS}'."
        ) from error
    return words


def _dress_code_words(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    rows = (line.partition(" ") for line in _lines(path))
    return {name: said.strip() for name, _, said in rows if name}

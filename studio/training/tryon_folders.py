"""Pairs of the wardrobe as folders of VITON-HD and DressCode, as those data sets are published.

So that the readers of the real data sets, and tools that know only those, meet exact ground truth.
What the data sets cannot have, the true picture of an unpaired try-on, is beside them in the folder
``truth``. Photographs are JPEGs, maps are PNGs.

    write_viton_hd(folder, {"train": train, "test": test})
    write_dress_code(folder, {"train": train, "test": test})
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from image_tools.tryon.pose_maps import part_colors, skeleton
from scenes.wardrobe.captions import garment_tags
from scenes.wardrobe.garments import DRESS, LOWER, UPPER
from scenes.wardrobe.labels import LIP
from scenes.wardrobe.samples import Pairs
from studio.training.tryon_data import keypoint_shares

__all__ = ["write_dress_code", "write_viton_hd"]

JPEG = {"quality": 98, "subsampling": 0}
GREY = 128
DRESS_CODE_FOLDERS = {UPPER: "upper_body", LOWER: "lower_body", DRESS: "dresses"}
DRESS_CODE_FRAME = (512, 384)


def write_viton_hd(root: Path, splits: Mapping[str, Pairs]) -> None:
    """Write tops in the layout of VITON-HD.

    Person k wears product k; the list pairs them with product k + n, the second garment, of which
    ``truth`` has the picture.

    Args:
        root: the data set's folder.
        splits: pairs by the name of the split; those that are no tops are left out.
    """
    for split, pairs in splits.items():
        _check_whole(pairs)
        folder, lines = root / split, []
        rows = (pairs.wardrobe.target == UPPER).nonzero()[:, 0].tolist()
        names = [f"{k:05d}_00.jpg" for k in range(2 * len(rows))]
        for k, row in enumerate(rows):
            _viton_person(folder, Path(names[k]).stem, pairs, row)
            second = len(rows) + k
            views = (pairs.product, pairs.product_other)
            masks = (pairs.product_mask, pairs.product_other_mask)
            for number, view, mask in zip((k, second), views, masks):
                _save(folder / "cloth" / names[number], view[row])
                _save_mask(folder / "cloth-mask" / names[number], mask[row] > 0.5)
            _save(folder / "truth" / names[k], pairs.worn_other.rgb[row])
            lines.append(f"{names[k]} {names[second]}\n")
        root.mkdir(parents=True, exist_ok=True)
        (root / f"{split}_pairs.txt").write_text("".join(lines))
        _write_tags(folder / f"vitonhd_{split}_tagged.json", pairs, rows, names)


def write_dress_code(root: Path, splits: Mapping[str, Pairs]) -> None:
    """Write pairs in the layout of DressCode, train before test, numbered through.

    Args:
        root: the data set's folder.
        splits: pairs by ``train`` and ``test``.
    """
    starts = dict.fromkeys(DRESS_CODE_FOLDERS, 0)
    for split, pairs in splits.items():
        _check_whole(pairs)
        for category, name in DRESS_CODE_FOLDERS.items():
            rows = (pairs.wardrobe.target == category).nonzero()[:, 0].tolist()
            folder, first = root / name, starts[category]
            folder.mkdir(parents=True, exist_ok=True)
            words, lines = [], {"paired": [], "unpaired": []}
            for k, row in enumerate(rows):
                number, second = first + k, first + len(rows) + k
                _dress_code_person(folder, f"{number:06d}", pairs, row)
                _dress_code_product(folder, f"{number:06d}", pairs.product, pairs.product_mask, row)
                other = (pairs.product_other, pairs.product_other_mask)
                _dress_code_product(folder, f"{second:06d}", *other, row)
                _save(folder / "truth" / f"{number:06d}_0.jpg", pairs.worn_other.rgb[row])
                words.append(f"{number:06d}_1.jpg {pairs.captions[row]}\n")
                words.append(f"{second:06d}_1.jpg {pairs.captions_other[row]}\n")
                lines["paired"].append(f"{number:06d}_0.jpg\t{number:06d}_1.jpg\n")
                lines["unpaired"].append(f"{number:06d}_0.jpg\t{second:06d}_1.jpg\n")
            starts[category] += 2 * len(rows)
            with (folder / "dc_caption.txt").open("a") as file:
                file.writelines(words)
            for order, listed in lines.items():
                if split == "train" and order == "unpaired":
                    continue
                ending = "" if split == "train" else f"_{order}"
                (folder / f"{split}_pairs{ending}.txt").write_text("".join(listed))


def _check_whole(pairs: Pairs) -> None:
    if pairs.worn_other is None:
        raise ValueError("The pairs have no second garments. Draw them with other=True.")


def _viton_person(folder: Path, stem: str, pairs: Pairs, row: int) -> None:
    worn, mask = pairs.worn, pairs.mask[row]
    grey = torch.where(mask[..., None], GREY / 255.0, worn.rgb[row])
    _save(folder / "image" / f"{stem}.jpg", worn.rgb[row])
    _save(folder / "agnostic-v3.2" / f"{stem}.jpg", grey)
    _save_mask(folder / "agnostic-mask" / f"{stem}_mask.png", mask)
    _save_labels(folder / "image-parse-v3" / f"{stem}.png", worn.lip[row])
    hidden = torch.where(mask, LIP["background"], worn.lip[row])
    _save_labels(folder / "image-parse-agnostic-v3.2" / f"{stem}.png", hidden)
    _save(folder / "image-densepose" / f"{stem}.jpg", part_colors(worn.densepose[row][None])[0])
    points = keypoint_shares(pairs)[row]
    size = tuple(worn.rgb.shape[1:3])
    _save(folder / "openpose_img" / f"{stem}_rendered.png", skeleton(points[None], size)[0])
    # OpenPose counts from the first pixel's centre; what is not seen is 0.
    offset = torch.tensor([0.5, 0.5, 0.0], device=points.device)
    found = (worn.keypoints[row] - offset) * worn.keypoints[row, :, 2:]
    people = [{"pose_keypoints_2d": [round(v, 3) for v in found.flatten().tolist()]}]
    _write_json(folder / "openpose_json" / f"{stem}_keypoints.json", {"people": people})


def _dress_code_person(folder: Path, number: str, pairs: Pairs, row: int) -> None:
    worn = pairs.worn
    _save(folder / "images" / f"{number}_0.jpg", worn.rgb[row])
    _save_labels(folder / "label_maps" / f"{number}_4.png", worn.atr[row])
    points = keypoint_shares(pairs)[row]
    size = tuple(worn.rgb.shape[1:3])
    _save(folder / "skeletons" / f"{number}_5.jpg", skeleton(points[None], size)[0])
    _save_labels(folder / "dense" / f"{number}_5.png", worn.densepose[row])
    uv = worn.uv[row].movedim(-1, 0).cpu().numpy().astype(np.float32)
    np.savez_compressed(folder / "dense" / f"{number}_5_uv.npz", uv=uv)
    height, width = DRESS_CODE_FRAME
    placed = [[x * width, y * height, known, k] for k, (x, y, known) in enumerate(points.tolist())]
    _write_json(folder / "keypoints" / f"{number}_2.json", {"keypoints": placed})


def _dress_code_product(folder: Path, number: str, views: Tensor, masks: Tensor, row: int) -> None:
    _save(folder / "images" / f"{number}_1.jpg", views[row])
    _save_mask(folder / "masks" / f"{number}_1.png", masks[row] > 0.5)


def _write_tags(path: Path, pairs: Pairs, rows: list[int], names: list[str]) -> None:
    """Words of all products, as IDM-VTON's authors have them."""
    tags = [garment_tags(pairs.wardrobe.garment), garment_tags(pairs.wardrobe.other)]
    entries = [
        {
            "file_name": names[part * len(rows) + k],
            "category_name": "TOPS",
            "tag_info": [
                {"tag_name": name, "tag_category": said} for name, said in tags[part][row].items()
            ],
        }
        for part in (0, 1)
        for k, row in enumerate(rows)
    ]
    _write_json(path, {"data": entries})


def _save(path: Path, picture: Float[Tensor, "h w 3"]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (picture.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).cpu().numpy()
    Image.fromarray(pixels).save(path, **(JPEG if path.suffix == ".jpg" else {}))


def _save_mask(path: Path, mask: Bool[Tensor, "h w"]) -> None:
    _save(path, mask.float()[..., None].expand(-1, -1, 3))


def _save_labels(path: Path, labels: Tensor) -> None:
    """A picture whose bytes are the labels' numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.to(torch.uint8).cpu().numpy()).save(path)


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))

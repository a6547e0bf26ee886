"""Synthetic people: labels, keypoints and body parts of a standing figure, drawn by hand."""

from __future__ import annotations

import numpy as np
import torch

from image_tools.tryon.masks import BodyMaps
from image_tools.tryon.samples import KEYPOINT_NAMES, Garment, TryOnSample

__all__ = ["SIZE", "person_keypoints", "person_maps", "tiny_sample"]

SIZE = (128, 96)  # rows and columns of the figure

# Column and row of each keypoint in pixels of the figure.
POINTS = {
    "nose": (48, 20),
    "neck": (48, 34),
    "right_shoulder": (36, 36),
    "left_shoulder": (60, 36),
    "right_elbow": (28, 52),
    "right_wrist": (24, 68),
    "left_elbow": (68, 52),
    "left_wrist": (72, 68),
    "right_hip": (41, 70),
    "left_hip": (55, 70),
    "right_knee": (41, 92),
    "left_knee": (55, 92),
    "right_ankle": (41, 114),
    "left_ankle": (55, 114),
    "right_eye": (45, 18),
    "left_eye": (51, 18),
    "right_ear": (42, 20),
    "left_ear": (54, 20),
}


def person_keypoints() -> np.ndarray:
    """[18, 3] as shares of width and height, all known."""
    rows, columns = SIZE
    points = [POINTS[name] for name in KEYPOINT_NAMES]
    return np.array([(x / columns, y / rows, 1.0) for x, y in points], dtype=np.float32)


def person_maps(*, sleeves: bool = True) -> BodyMaps:
    """A person in a shirt and pants, with ATR's labels; bare arms without sleeves."""
    rows, columns = np.indices(SIZE) + 0.5
    parse, parts = np.zeros(SIZE, dtype=np.int64), np.zeros(SIZE, dtype=np.int64)

    def line(names: tuple[str, str], width: float) -> np.ndarray:
        (x0, y0), (x1, y1) = (POINTS[name] for name in names)
        share = ((columns - x0) * (x1 - x0) + (rows - y0) * (y1 - y0)) / (
            (x1 - x0) ** 2 + (y1 - y0) ** 2
        )
        share = share.clip(0.0, 1.0)
        across = np.hypot(columns - x0 - share * (x1 - x0), rows - y0 - share * (y1 - y0))
        return across <= width / 2.0

    for k, side in enumerate(("right", "left")):
        thigh, shin = (
            line((f"{side}_hip", f"{side}_knee"), 11),
            line((f"{side}_knee", f"{side}_ankle"), 9),
        )
        parse[thigh | shin] = 6
        parts[thigh], parts[shin] = 9 + k, 11 + k
        foot = np.hypot(columns - POINTS[f"{side}_ankle"][0], rows - 117) < 5
        parse[foot], parts[foot] = 10 - k, 5 + k
    torso = (abs(columns - 48) < 13) & (rows > 34) & (rows < 72)
    parse[torso], parts[torso] = 4, 2
    for k, side in enumerate(("right", "left")):
        upper, lower = (
            line((f"{side}_shoulder", f"{side}_elbow"), 8),
            line((f"{side}_elbow", f"{side}_wrist"), 7),
        )
        parse[upper | lower] = 4 if sleeves else 15 - k
        parts[upper], parts[lower] = 15 + k, 19 + k
        x, y = POINTS[f"{side}_wrist"]
        hand = np.hypot(columns - x, rows - (y + 6)) < 5
        parse[hand], parts[hand] = 15 - k, 3 + k
    head = np.hypot((columns - 48) / 9, (rows - 19) / 12) < 1
    parse[head], parts[head] = 11, 23
    parse[head & (rows < 12)] = 2
    return BodyMaps(parse, "atr", person_keypoints(), parts)


def tiny_sample(*, rows: int = 2, size: tuple[int, int] = (32, 16), seed: int = 0) -> TryOnSample:
    """Random pictures of people and garments whose mask is a box, with everything that is known."""
    generator = torch.Generator().manual_seed(seed)
    pictures = [torch.rand(rows, *size, 3, generator=generator) for _ in range(3)]
    mask = torch.zeros(rows, *size, 1)
    mask[:, size[0] // 4 : 3 * size[0] // 4, size[1] // 4 :] = 1.0
    garment = Garment(pictures[1], ("upper",) * rows, ("a red shirt",) * rows)
    return TryOnSample(
        pictures[0],
        (garment,),
        mask,
        captions=("a long sleeve shirt",) * rows,
        densepose=pictures[2],
        keypoints=torch.from_numpy(person_keypoints())[None].repeat(rows, 1, 1),
    )

"""Agnostic masks: where a person is painted anew so that nothing tells of the old garment.

Three public data sets and models have each their own way to make them of clothes' labels, keypoints
and DensePose's parts. All three are here, on the same inputs, without OpenCV:

    viton_hd   garment, drawn arms and neck, widened; hands are what arms' labels show beyond the
               drawn arms (VITON-HD, arXiv 2103.16874; LaDI-VTON, arXiv 2305.13501)
    idm_vton   the same with thinner, longer arms, of which the largest piece is kept and filled
               (OOTDiffusion, arXiv 2403.01779; IDM-VTON, arXiv 2403.05139)
    cat_vton   hull of body parts and garment, smoothed; parts are protected strongly or weakly
               (CatVTON, arXiv 2407.15886)

ATR has no neck: what it calls face reaches down to the neckline. So in its maps the face's label
below the shoulders' line is the neck, as LaDI-VTON takes it for DressCode, unless the maps tell
neck and face apart with a label 18, as IDM-VTON's do (ATR's face where LIP sees none).

Deviations: kernels are round and scale with the picture's rows, where the originals' are squares of
fixed size. idm_vton keeps hair, which IDM-VTON's demo paints anew within reach of the garment, and
paints legs and belt anew for a dress, as LaDI-VTON's masks of DressCode do with legs: a long dress
may take the place of a short one.

    mask = agnostic_mask(BodyMaps(parse, "atr", keypoints), "upper", MaskConfig())
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from image_tools.tryon.garment_configs import BodyPart
from image_tools.tryon.masks_configs import MaskConfig, ParseLayout
from image_tools.tryon.samples import KEYPOINT_NAMES
from renderers.errors import ShapeError, StudioError

__all__ = ["LABELS", "BodyMaps", "agnostic_mask"]

LABELS: dict[ParseLayout, dict[str, tuple[int, ...]]] = {
    "atr": {
        "hat": (1,),
        "hair": (2,),
        "sunglasses": (3,),
        "upper": (4,),
        "skirt": (5,),
        "pants": (6,),
        "dress": (7,),
        "belt": (8,),
        "shoes": (9, 10),
        "face": (11,),
        "legs": (12, 13),
        "arms": (14, 15),
        "bag": (16,),
        "scarf": (17,),
        "neck": (18,),
    },
    "lip": {
        "hat": (1,),
        "hair": (2,),
        "gloves": (3,),
        "sunglasses": (4,),
        "upper": (5,),
        "dress": (6,),
        "coat": (7,),
        "socks": (8,),
        "pants": (9,),
        "neck": (10,),
        "scarf": (11,),
        "skirt": (12,),
        "face": (13,),
        "arms": (14, 15),
        "legs": (16, 17),
        "shoes": (18, 19),
    },
}
"""Numbers of clothes' labels by name. 18 in ATR is a neck that IDM-VTON adds; 10 in LIP is the neck
in VITON-HD's maps."""
ARM_LABELS = {"left": 14, "right": 15}  # in both layouts; left is the person's own

CLOTHES: dict[BodyPart, tuple[str, ...]] = {
    "upper": ("upper", "coat", "dress"),
    "lower": ("pants", "skirt", "legs", "socks"),
    "dress": ("dress", "upper", "coat", "pants", "skirt", "belt", "legs", "socks"),
}
HEAD = ("hat", "hair", "face", "sunglasses")
KEPT: dict[BodyPart, tuple[str, ...]] = {
    "upper": (*HEAD, "bag", "gloves", "shoes", "pants", "skirt", "legs", "socks"),
    "lower": (*HEAD, "bag", "gloves", "shoes", "upper", "coat", "arms", "scarf", "neck"),
    "dress": (*HEAD, "bag", "gloves", "shoes"),
}
# Parts of DensePose.
TORSO, ARMS, LEGS, HANDS, FEET = (1, 2), tuple(range(15, 23)), tuple(range(7, 15)), (3, 4), (5, 6)
COVERED: dict[BodyPart, tuple[int, ...]] = {
    "upper": (*TORSO, *ARMS),
    "lower": LEGS,
    "dress": (*TORSO, *ARMS, *LEGS),
}
REFERENCE_ROWS = 512
# In pixels of a picture with so many rows.
VITON_ARM_WIDTH, IDM_ARM_WIDTH = 90.0, 60.0
WIDENED, ARMS_WIDENED, PART_MARGIN, SMOOTHED = 10.0, 8.0, 4.0, 6.0
WRIST_REACH = 1.2
NECK_REACH, NECK_WIDTH = 0.4, 0.4  # shares of the way from neck to nose, and of the shoulders
NECK_ABOVE_SHOULDERS = 20.0
SMOOTH_LEVEL = 25.0 / 255.0

Mask = np.ndarray


@dataclass(frozen=True)
class BodyMaps:
    """What is known of the person in one picture."""

    parse: np.ndarray
    """Labels of clothes and body parts, [h, w]."""
    layout: ParseLayout = "atr"
    """What the labels' numbers mean."""
    keypoints: np.ndarray | None = None
    """[18, 3] as in ``TryOnSample``."""
    parts: np.ndarray | None = None
    """DensePose's part numbers, [h, w], 0 in the background."""

    def __post_init__(self) -> None:
        """Refuse maps that do not belong together."""
        if self.parse.ndim != 2:
            raise ShapeError(f"parse has shape {self.parse.shape}, expected [h, w].")
        if self.parts is not None and self.parts.shape != self.parse.shape:
            raise ShapeError(
                f"parts has shape {self.parts.shape}, parse {self.parse.shape}. Expected equal "
                "sizes; resize one of them to the nearest pixel."
            )
        if self.keypoints is not None and self.keypoints.shape != (len(KEYPOINT_NAMES), 3):
            raise ShapeError(f"keypoints has shape {self.keypoints.shape}, expected (18, 3).")

    @property
    def scale(self) -> float:
        """Pixels of this picture for each of one with 512 rows."""
        return self.parse.shape[0] / REFERENCE_ROWS

    def labelled(self, *names: str) -> Mask:
        """Where the picture shows any of these."""
        numbers = [n for name in names for n in LABELS[self.layout].get(name, ())]
        return np.isin(self.labels, numbers)

    @cached_property
    def labels(self) -> np.ndarray:
        """The labels, with a neck of its own where ATR counts it as face."""
        (neck,), (face,) = LABELS["atr"]["neck"], LABELS["atr"]["face"]
        if self.layout != "atr" or (self.parse == neck).any():
            return self.parse
        return np.where((self.parse == face) & self._below_head(), neck, self.parse)

    def _below_head(self) -> Mask:
        """Lower than 20 of 512 rows above the shoulders' line, or than the neck's keypoint where
        they are not known; without these what DensePose sees as torso, or nothing."""
        *shoulders, neck = (self.point(n) for n in ("right_shoulder", "left_shoulder", "neck"))
        rows, columns = np.indices(self.parse.shape) + 0.5
        if all(shoulder is not None for shoulder in shoulders):
            # Level beyond the shoulders, so that it stays below the head of people seen from aside.
            x, y = np.transpose(sorted(shoulders, key=lambda point: point[0]))
            return rows > np.interp(columns, x, y) - NECK_ABOVE_SHOULDERS * self.scale
        if neck is not None:
            return rows > neck[1]
        return np.isin(0 if self.parts is None else self.parts, TORSO)

    def in_parts(self, numbers: tuple[int, ...]) -> Mask:
        """Where it shows any of DensePose's parts."""
        return np.isin(self.parts, numbers)

    def point(self, name: str) -> np.ndarray | None:
        """Column and row of a keypoint in pixels, or None where it is not known."""
        if self.keypoints is None:
            return None
        x, y, known = self.keypoints[KEYPOINT_NAMES.index(name)]
        height, width = self.parse.shape
        return np.array([x * width, y * height]) if known > 0 else None


@dataclass(frozen=True)
class _Found:
    """A mask and what must stay in it."""

    area: Mask
    kept: Mask


def agnostic_mask(body: BodyMaps, part: BodyPart, config: MaskConfig) -> Mask:
    """True where the picture is painted anew, [h, w].

    Args:
        body: maps of the person.
        part: what the new garment covers.
        config: algorithm and mode.

    Raises:
        StudioError: the algorithm needs keypoints or parts that are absent, or nothing is found.
    """
    finders: dict[str, Callable[[BodyMaps, BodyPart, MaskConfig], _Found]] = {
        "viton_hd": _viton_hd,
        "idm_vton": _idm_vton,
        "cat_vton": _cat_vton,
    }
    wanted = "parts" if config.algorithm == "cat_vton" else "keypoints"
    if getattr(body, wanted) is None:
        raise StudioError(
            f"Masks of {config.algorithm} need {wanted}, and there are none. Give them, take "
            f"another algorithm, or give a mask of your own."
        )
    found = finders[config.algorithm](body, part, config)
    mask = _in_mode(found, body, config)
    if not mask.any():
        raise StudioError(
            f"The mask for '{part}' is empty: the labels show no such garment, and no keypoints or "
            "parts say where it would be. Check the labels' layout, or give a mask of your own."
        )
    return mask


def _viton_hd(body: BodyMaps, part: BodyPart, config: MaskConfig) -> _Found:
    width = (config.arm_width or VITON_ARM_WIDTH) * body.scale
    arms = _drawn_arms(body, width, reach=1.0)
    area, kept = body.labelled(*CLOTHES[part]), body.labelled(*KEPT[part])
    if part != "lower":
        area = area | arms | body.labelled("neck") | _neck(body)
        kept = kept | (body.labelled("arms") & ~arms)
    return _Found(_widened(area, WIDENED * body.scale), kept)


def _idm_vton(body: BodyMaps, part: BodyPart, config: MaskConfig) -> _Found:
    width = (config.arm_width or IDM_ARM_WIDTH) * body.scale
    area, kept = body.labelled(*CLOTHES[part]), body.labelled(*KEPT[part])
    area = _widened(area, WIDENED * body.scale)
    if part != "lower":
        arms = _drawn_arms(body, width, reach=WRIST_REACH) | _unseen_arms(body)
        kept = kept | (body.labelled("arms") & ~arms)
        neck = _widened(body.labelled("neck") | _neck(body), WIDENED * body.scale)
        area = area | neck | _widened(arms, ARMS_WIDENED * body.scale)
    area = area & ~kept
    return _Found(ndimage.binary_fill_holes(_largest(area)), kept)


def _cat_vton(body: BodyMaps, part: BodyPart, config: MaskConfig) -> _Found:
    margin = PART_MARGIN * body.scale
    limbs = body.labelled("arms", "legs", "shoes", "face")
    strong = (_widened(body.in_parts((*HANDS, *FEET)), margin) & limbs) | body.labelled("face")
    weak = strong | body.labelled(*KEPT[part])
    clothes = body.labelled(*(name for name in CLOTHES[part] if name not in ("legs", "socks")))
    covered = _widened(body.in_parts(COVERED[part]), margin)
    area = _hull(clothes | covered) & ~weak
    smooth = ndimage.gaussian_filter(area.astype(np.float32), SMOOTHED * body.scale) > SMOOTH_LEVEL
    area = _widened((smooth & ~weak) | clothes, margin)
    return _Found(area, strong | body.labelled(*KEPT[part]))


def _in_mode(found: _Found, body: BodyMaps, config: MaskConfig) -> Mask:
    """Tight, loose or a box."""
    tight = found.area & ~found.kept
    if config.mode == "tight" or not tight.any():
        return tight
    margin = config.loose_margin * body.scale
    if config.mode == "loose":
        return _widened(_hull(tight), margin) & ~found.kept
    rows, columns = (np.flatnonzero(tight.any(axis=axis)) for axis in (1, 0))
    box = np.zeros_like(tight)
    grow = round(margin)
    top, left = max(rows[0] - grow, 0), max(columns[0] - grow, 0)
    box[top : rows[-1] + 1 + grow, left : columns[-1] + 1 + grow] = True
    return box & ~body.labelled(*HEAD)


def _drawn_arms(body: BodyMaps, width: float, *, reach: float) -> Mask:
    """Thick lines from wrist over elbow to shoulder, and from shoulder to shoulder."""
    drawn = np.zeros(body.parse.shape, dtype=bool)
    shoulders = []
    for side in ("right", "left"):
        names = (f"{side}_shoulder", f"{side}_elbow", f"{side}_wrist")
        shoulder, elbow, wrist = (body.point(name) for name in names)
        shoulders.append(shoulder)
        if elbow is not None and wrist is not None:
            drawn |= _line(drawn.shape, elbow, elbow + reach * (wrist - elbow), width)
        if shoulder is not None and elbow is not None:
            drawn |= _line(drawn.shape, shoulder, elbow, width)
    if all(shoulder is not None for shoulder in shoulders):
        drawn |= _line(drawn.shape, *shoulders, width)
    return drawn


def _unseen_arms(body: BodyMaps) -> Mask:
    """All that the labels call arm on a side whose elbow or wrist is not known, hand and all."""
    numbers = [
        number
        for side, number in ARM_LABELS.items()
        if any(body.point(f"{side}_{joint}") is None for joint in ("elbow", "wrist"))
    ]
    return np.isin(body.labels, numbers)


def _neck(body: BodyMaps) -> Mask:
    """A strip from the neck upwards, for new necklines; empty where keypoints are not known."""
    names = ("neck", "nose", "right_shoulder", "left_shoulder")
    points = [body.point(name) for name in names]
    if any(point is None for point in points):
        return np.zeros(body.parse.shape, dtype=bool)
    neck, nose, right, left = points
    width = NECK_WIDTH * float(np.linalg.norm(left - right))
    return _line(body.parse.shape, neck, neck + NECK_REACH * (nose - neck), width)


def _line(shape: tuple[int, int], start: np.ndarray, end: np.ndarray, width: float) -> Mask:
    """Pixels whose centres are within half a width of a line."""
    rows, columns = np.indices(shape) + 0.5
    along = end - start
    length = max(float(along @ along), 1e-8)
    share = ((columns - start[0]) * along[0] + (rows - start[1]) * along[1]) / length
    share = share.clip(0.0, 1.0)
    across = (columns - start[0] - share * along[0], rows - start[1] - share * along[1])
    return across[0] ** 2 + across[1] ** 2 <= (width / 2.0) ** 2


def _widened(mask: Mask, radius: float) -> Mask:
    """All pixels at most ``radius`` away."""
    if not mask.any():
        return mask
    return ndimage.distance_transform_edt(~mask) <= radius


def _largest(mask: Mask) -> Mask:
    """The largest piece."""
    pieces, count = ndimage.label(mask)
    if count <= 1:
        return mask
    sizes = np.bincount(pieces.ravel())[1:]
    return pieces == 1 + int(sizes.argmax())


def _hull(mask: Mask) -> Mask:
    """Pixels inside the convex hull."""
    points = np.argwhere(mask)
    try:
        hull = ConvexHull(points)
    except (QhullError, ValueError):  # fewer than three pixels, or all on one line
        return mask
    rows, columns = np.indices(mask.shape)
    inside = np.ones_like(mask)
    for row, column, offset in hull.equations:
        inside &= row * rows + column * columns + offset <= 1e-6
    return inside

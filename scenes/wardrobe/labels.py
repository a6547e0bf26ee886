"""Names of what a pixel shows in the numberings of public try-on data sets.

ATR has 18 classes (DressCode), LIP 20 (VITON-HD), DensePose 24 body parts. DensePose knows the body
under the clothes; of its two ids for a limb the first is taken for the back.
"""

from __future__ import annotations

__all__ = ["ATR", "BODY_25", "CLOTHES", "COCO_18", "DENSEPOSE", "LIP", "atr_of", "lip_of"]

ATR = {
    "background": 0,
    "hat": 1,
    "hair": 2,
    "sunglasses": 3,
    "upper": 4,
    "skirt": 5,
    "trousers": 6,
    "dress": 7,
    "belt": 8,
    "left foot": 9,
    "right foot": 10,
    "face": 11,
    "left leg": 12,
    "right leg": 13,
    "left arm": 14,
    "right arm": 15,
    "bag": 16,
    "scarf": 17,
}
LIP = {
    "background": 0,
    "hat": 1,
    "hair": 2,
    "glove": 3,
    "sunglasses": 4,
    "upper": 5,
    "dress": 6,
    "coat": 7,
    "socks": 8,
    "trousers": 9,
    "neck": 10,
    "scarf": 11,
    "skirt": 12,
    "face": 13,
    "left arm": 14,
    "right arm": 15,
    "left leg": 16,
    "right leg": 17,
    "left foot": 18,
    "right foot": 19,
}
CLOTHES = ("upper", "dress", "trousers", "skirt")
DENSEPOSE = {
    "torso": (1, 2),
    "right hand": (3, 3),
    "left hand": (4, 4),
    "left foot": (5, 5),
    "right foot": (6, 6),
    "right thigh": (7, 9),
    "left thigh": (8, 10),
    "right shin": (11, 13),
    "left shin": (12, 14),
    "left upper arm": (15, 17),
    "right upper arm": (16, 18),
    "left forearm": (19, 21),
    "right forearm": (20, 22),
    "head": (23, 24),
}
"""Ids of a part's back and front; of the head's right and left half."""
COCO_18 = (
    *("nose", "neck", "right shoulder", "right elbow", "right wrist"),
    *("left shoulder", "left elbow", "left wrist", "right hip", "right knee", "right ankle"),
    *("left hip", "left knee", "left ankle", "right eye", "left eye", "right ear", "left ear"),
)
BODY_25 = (
    *COCO_18[:8],
    *("root", *COCO_18[8:14], *COCO_18[14:]),
    *("left toe", "left toe", "left heel", "right toe", "right toe", "right heel"),
)
TORSO_PARTS = ("chest", "belly", "right bust", "left bust", "right clavicle", "left clavicle")


def atr_of(part: str) -> int:
    """ATR class of a body part or a kind of clothes; the neck counts as face, as in DressCode."""
    return ATR[_class_of(part, neck="face")]


def lip_of(part: str) -> int:
    """LIP class of a body part or a kind of clothes; neck and bare torso are VITON-HD's 10."""
    return LIP[_class_of(part, neck="neck")]


def _class_of(part: str, *, neck: str) -> str:
    side, _, limb = part.partition(" ")
    if part in ("background", *CLOTHES) or limb == "foot":
        return part
    if part.startswith("hair"):
        return "hair"
    if part in ("skull", "jaw", "nose") or limb == "ear":
        return "face"
    if part == "neck" or part in TORSO_PARTS:
        return neck
    return f"{side} arm" if limb in ("upper arm", "forearm", "hand") else f"{side} leg"

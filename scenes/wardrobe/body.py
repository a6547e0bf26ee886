"""From a person's numbers to joints and to the rounded cones of the bare body.

World as everywhere: +z up, the person looks to +x, their left is +y, and the ground is z = 0.
Lengths are metres of a person of stature 1 (1.75 m).

    frame = pose(people)
    cones = body_cones(people, frame)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from scenes.wardrobe.cones import Cones, Limb, cat_cones, ellipsoid
from scenes.wardrobe.people import HAIR_STYLES, People

__all__ = ["PARTS", "SIDES", "Frame", "body_cones", "body_limbs", "pose"]

SIDES = ("right", "left")
HIP_HEIGHT, HIP_OUT = 0.93, 0.085
SHOULDER = (-0.005, 0.165, 0.435)
NECK_LOW, NECK_HIGH, HEAD = 0.475, 0.59, 0.672
UPPER_ARM, FOREARM, HAND = 0.285, 0.245, 0.085
THIGH, SHIN, ANKLE = 0.43, 0.41, 0.075
TORSO_DEPTH = 0.66
# Slab (normal, low, high) that leaves the face free of hair, in the hair's radii.
HAIRLINE = (0.80, 0.0, -0.60, -2.0, 0.13)

PARTS: tuple[str, ...] = (
    *("chest", "belly", "right bust", "left bust", "right clavicle", "left clavicle"),
    *("right upper arm", "left upper arm", "right forearm", "left forearm"),
    *("right hand", "left hand", "right thigh", "left thigh", "right shin", "left shin"),
    *("right foot", "left foot", "neck", "skull", "jaw", "nose", "right ear", "left ear"),
    *("hair cap", "hair back", "hair bun"),
)
"""Names of the body's cones, in order."""


@dataclass(frozen=True)
class Frame:
    """Joints and axes of posed people."""

    joints: dict[str, Float[Tensor, "b 3"]]
    torso: Float[Tensor, "b 3 3"]
    """Rows are front, left and up of the upper body."""
    head: Float[Tensor, "b 3 3"]

    @property
    def front(self) -> Float[Tensor, "b 3"]:
        """Where the torso looks."""
        return self.torso[:, 0]

    def torso_point(self, x: Tensor, y: Tensor, z: Tensor) -> Float[Tensor, "b 3"]:
        """A point of the upper body, from the middle of the hips."""
        return _at(self.joints["root"], self.torso, x, y, z)


def _at(origin: Tensor, axes: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    local = torch.stack(torch.broadcast_tensors(x, y, z), dim=-1)
    return origin + (local[:, None] @ axes)[:, 0]


def _turned(degrees: Tensor, axis: int) -> Float[Tensor, "b 3 3"]:
    """Axes (rows) turned about x, y or z."""
    c, s = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()
    rows = torch.eye(3, device=degrees.device).repeat(len(degrees), 1, 1)
    i, j = ((1, 2), (2, 0), (0, 1))[axis]
    rows[:, i, i], rows[:, j, j], rows[:, i, j], rows[:, j, i] = c, c, s, -s
    return rows


def pose(people: People) -> Frame:
    """Joints of all people; they stand on the ground."""
    size = people.stature
    hips = _turned(people.turn, 2)
    torso = _turned(-people.lean, 0) @ hips
    head = _turned(people.head[:, 0], 2) @ _turned(-people.head[:, 1], 0) @ torso
    zero = torch.zeros_like(size)
    root = torch.stack([zero, zero, HIP_HEIGHT * size], dim=1)
    joints = {"root": root}
    for name, height in (("waist", 0.14), ("neck", NECK_LOW), ("head", NECK_HIGH)):
        joints[name] = _at(root, torso, zero, zero, height * size)
    joints["skull"] = _at(joints["head"], head, 0.012 * size, zero, (HEAD - NECK_HIGH) * size)
    for k, side in enumerate(SIDES):
        sign = 2.0 * k - 1.0
        _add_arm(joints, people, torso, side, sign)
        _add_leg(joints, people, hips, side, sign)
        for name, place in (("eye", (0.080, 0.031, 0.012)), ("ear", (0.0, 0.078, 0.0))):
            x, y, z = (torch.full_like(size, v) * size for v in place)
            joints[f"{side} {name}"] = _at(joints["skull"], head, x, sign * y, z)
    joints["nose"] = _at(joints["skull"], head, 0.098 * size, zero, -0.02 * size)
    return Frame(joints, torso, head)


def _add_arm(joints: dict, people: People, torso: Tensor, side: str, sign: float) -> None:
    k, size = SIDES.index(side), people.stature
    x, y, z = (torch.full_like(size, v) * size for v in SHOULDER)
    shoulder = _at(joints["root"], torso, x, sign * y * people.shoulders, z)
    out, swing = torch.deg2rad(people.arm_out[:, k]), torch.deg2rad(people.arm_swing[:, k])
    upper = torch.stack([swing.sin() * out.cos(), sign * out.sin(), -swing.cos() * out.cos()], 1)
    bend, towards = torch.deg2rad(people.elbow[:, k]), torch.deg2rad(people.elbow_side[:, k])
    zero = torch.zeros_like(bend)
    flex = torch.stack([towards.cos(), -sign * towards.sin(), zero], dim=1)
    flex = F.normalize(flex - (flex * upper).sum(-1, keepdim=True) * upper, dim=-1)
    lower = bend.cos()[:, None] * upper + bend.sin()[:, None] * flex
    upper, lower = (upper[:, None] @ torso)[:, 0], (lower[:, None] @ torso)[:, 0]
    joints[f"{side} shoulder"] = shoulder
    joints[f"{side} elbow"] = shoulder + UPPER_ARM * size[:, None] * upper
    joints[f"{side} wrist"] = joints[f"{side} elbow"] + FOREARM * size[:, None] * lower
    joints[f"{side} hand"] = joints[f"{side} wrist"] + HAND * size[:, None] * lower


def _add_leg(joints: dict, people: People, hips: Tensor, side: str, sign: float) -> None:
    k, size = SIDES.index(side), people.stature
    zero = torch.zeros_like(size)
    hip = _at(joints["root"], hips, zero, sign * HIP_OUT * size * people.hips, zero)
    out = torch.deg2rad(people.leg_out[:, k])
    down = torch.stack([zero, sign * out.sin(), -out.cos()], dim=1)
    down = (down[:, None] @ hips)[:, 0]
    joints[f"{side} hip"] = hip
    joints[f"{side} knee"] = hip + THIGH * size[:, None] * down
    joints[f"{side} ankle"] = joints[f"{side} knee"] + SHIN * size[:, None] * down
    heel = joints[f"{side} ankle"].clone()
    heel[:, 2] = 0.04
    joints[f"{side} heel"] = heel - 0.03 * size[:, None] * hips[:, 0]
    joints[f"{side} toe"] = heel + 0.13 * size[:, None] * hips[:, 0]


def body_limbs(people: People, frame: Frame) -> dict[str, Limb]:
    """The limbs of the bare body by their names in PARTS; clothes are drawn over them."""
    return {**_torso_limbs(people, frame), **_outer_limbs(people, frame)}


def body_cones(people: People, frame: Frame) -> Cones:
    """The bare body and the hair: one cone for each of PARTS."""
    limbs = body_limbs(people, frame)
    drawn = [
        limb.cone(active=people.bust > 0.0 if "bust" in name else None)
        for name, limb in limbs.items()
    ]
    return cat_cones([*drawn, *_head_cones(people, frame)])


def _torso_limbs(people: People, frame: Frame) -> dict[str, Limb]:
    size, girth = people.stature, people.girth
    zero, front, place = torch.zeros_like(size), frame.front, frame.torso_point
    wide = people.shoulders * size
    waist, hip = 0.118 * girth * size, 0.158 * people.hips * size
    depth = TORSO_DEPTH * girth
    low, high = place(zero, zero, 0.15 * size), place(zero, zero, 0.335 * size)
    limbs = {"chest": Limb(low, high, waist, 0.147 * wide, front, depth)}
    low, high = place(zero, zero, 0.16 * size), place(zero, zero, 0.01 * size)
    limbs["belly"] = Limb(low, high, waist, hip, front, depth)
    radius, one = 0.062 * size * people.bust.clamp(min=0.1), torch.ones_like(size)
    for k, side in enumerate(SIDES):
        x, y = 0.055 * size * girth, (2 * k - 1) * 0.066 * wide
        low, high = place(x, y, 0.300 * size), place(x, y, 0.312 * size)
        limbs[f"{side} bust"] = Limb(low, high, radius, radius, front, one)
    for k, side in enumerate(SIDES):
        neck = place(zero, (2 * k - 1) * 0.03 * size, 0.462 * size)
        shoulder = frame.joints[f"{side} shoulder"]
        limbs[f"{side} clavicle"] = Limb(neck, shoulder, 0.042 * size, 0.052 * size, front, one)
    return limbs


def _outer_limbs(people: People, frame: Frame) -> dict[str, Limb]:
    """Arms, hands, legs and feet."""
    size, thick = people.stature, people.stature * people.girth.sqrt()
    up, side_on = frame.torso[:, 2], frame.torso[:, 1]
    table = (
        ("upper arm", "shoulder", "elbow", 0.049 * thick, 0.037, frame.front, 1.0),
        ("forearm", "elbow", "wrist", 0.038 * thick, 0.026, frame.front, 1.0),
        ("hand", "wrist", "hand", 0.030 * size, 0.026, side_on, 0.6),
        ("thigh", "hip", "knee", 0.088 * thick, 0.055, frame.front, 1.0),
        ("shin", "knee", "ankle", 0.056 * thick, 0.036, frame.front, 1.0),
        ("foot", "heel", "toe", 0.040 * size, 0.034, up, 1.0),
    )
    joints = frame.joints
    return {
        f"{side} {name}": Limb(
            *(joints[f"{side} {start}"], joints[f"{side} {end}"], r0, r1 * size, front),
            torch.full_like(size, squash),
        )
        for name, start, end, r0, r1, front, squash in table
        for side in SIDES
    }


def _head_cones(people: People, frame: Frame) -> list[Cones]:
    size, axes, skull = people.stature, frame.head, frame.joints["skull"]
    one = torch.ones_like(size)

    def point(x: float, y: float, z: float) -> Tensor:
        return _at(skull, axes, x * size, y * size, z * size)

    def blob(place: tuple[float, float, float], radii: tuple[float, ...], **options) -> Cones:
        scaled = torch.tensor(radii, device=size.device) * size[:, None]
        return ellipsoid(point(*place), scaled, axes, **options)

    joints = frame.joints
    neck = Limb(joints["neck"], joints["head"], 0.054 * size, 0.050 * size, frame.front, one)
    style = people.hair_style
    is_bob, is_long, is_bun = (style == HAIR_STYLES.index(s) for s in ("bob", "long", "bun"))
    drop = is_long.to(size)
    end = _at(skull, axes, -0.066 * size, 0.0 * size, -(0.10 + 0.16 * drop) * size)
    widths = 0.104 * size, (0.096 + 0.012 * drop) * size
    back = Limb(point(-0.060, 0.0, 0.0), end, *widths, axes[:, 0], 0.55 * one)
    return [
        neck.cone(),
        blob((0.0, 0.0, 0.0), (0.094, 0.078, 0.108)),
        blob((0.014, 0.0, -0.052), (0.070, 0.058, 0.074)),
        blob((0.086, 0.0, -0.018), (0.018, 0.013, 0.024)),
        *(blob((0.0, s * 0.078, -0.006), (0.02, 0.012, 0.028)) for s in (-1.0, 1.0)),
        blob((-0.010, 0.0, 0.014), (0.108, 0.088, 0.116), slab=HAIRLINE),
        back.cone(active=is_bob | is_long),
        blob((-0.06, 0.0, 0.125), (0.05, 0.05, 0.045), active=is_bun),
    ]

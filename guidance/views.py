"""From camera angles to directions: which words describe a view, and how far it is between two.

Azimuth 0 is the front of the object, and the camera's distance plays no part, as in the published
rules. Angles may be given over any number of turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.configs import DirectionalPromptsConfig
from renderers.poses import wrap_deg

__all__ = [
    "VIEWS",
    "AzimuthMix",
    "CameraAngles",
    "azimuth_mix",
    "direction_index",
    "sided_row",
]

# Order of precedence: each direction overrides those before it.
VIEWS = ("side", "front", "back", "overhead")
SIDE, FRONT, BACK, OVERHEAD = range(4)


@runtime_checkable
class CameraAngles(Protocol):
    """What prompts need of a batch of cameras."""

    azimuth_deg: Tensor
    elevation_deg: Tensor


@dataclass(frozen=True)
class AzimuthMix:
    """A view between two neighbouring directions."""

    near: Int[Tensor, " b"]
    """Index into ``VIEWS`` of the direction with the smaller |azimuth|: front or side."""
    far: Int[Tensor, " b"]
    """Index of the one with the larger |azimuth|: side or back."""
    closeness: Float[Tensor, " b"]
    """1 at ``near``, 0 at ``far``."""


def sided_row(
    index: Int[Tensor, "b *n"], azimuth_deg: Float[Tensor, "b *#n"]
) -> Int[Tensor, "b *n"]:
    """Row of a direction among prompts for the left half (``VIEWS``), then for the right half."""
    is_right = wrap_deg(azimuth_deg) < 0.0
    return index + len(VIEWS) * is_right.long()


def direction_index(
    azimuth_deg: Float[Tensor, " b"],
    elevation_deg: Float[Tensor, " b"],
    config: DirectionalPromptsConfig,
) -> Int[Tensor, " b"]:
    """Index into ``VIEWS`` of each view; a view exactly on a boundary keeps the earlier one."""
    turn = wrap_deg(azimuth_deg).abs()
    index = torch.full_like(turn, SIDE, dtype=torch.long)
    index[turn < config.front_deg] = FRONT
    index[turn > 180.0 - config.back_deg] = BACK
    index[elevation_deg > config.overhead_deg] = OVERHEAD
    return index


def azimuth_mix(azimuth_deg: Float[Tensor, " b"]) -> AzimuthMix:
    """Where each view stands between front and side, or between side and back."""
    turn = wrap_deg(azimuth_deg).abs() / 90.0
    is_front_half = turn < 1.0
    side = torch.full_like(turn, SIDE, dtype=torch.long)
    return AzimuthMix(
        near=torch.where(is_front_half, FRONT, side),
        far=torch.where(is_front_half, side, BACK),
        closeness=torch.where(is_front_half, 1.0 - turn, 2.0 - turn),
    )

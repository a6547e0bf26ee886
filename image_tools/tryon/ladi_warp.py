"""The garment bent to the body and repainted (LaDI-VTON, arXiv 2305.13501, section 3.2).

bend = GarmentWarp(tps, refinement)
warped = bend(sample)
batches = bending(bend, batches)
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from image_tools.errors import UnsupportedModel
from image_tools.tryon.pose_maps import heat_maps
from image_tools.tryon.samples import KEYPOINT_NAMES, TryOnBatches, TryOnSample
from image_tools.tryon.warp_refine import RefinementNet
from image_tools.tryon.warp_tps import WarpNet, warp

__all__ = ["GarmentWarp", "WarpInputs", "bending"]

MODEL = "LaDI-VTON"
PERSON_CHANNELS = 3 + len(KEYPOINT_NAMES)


class WarpInputs:
    """What the networks see of a sample, [b, c, h, w], pictures in -1..1."""

    def __init__(self, sample: TryOnSample, device: torch.device) -> None:
        """Read a sample.

        Raises:
            StudioError: it has no keypoints, or several garments.
        """
        keypoints = sample.need("keypoints", model=MODEL).to(device)
        agnostic = sample.hardened.agnostic.to(device).movedim(-1, 1) * 2.0 - 1.0
        self.person = torch.cat([agnostic, heat_maps(keypoints, sample.size)], dim=1)
        garment = sample.only_garment(model=MODEL).sized(sample.size)
        self.garment = garment.images.to(device).movedim(-1, 1) * 2.0 - 1.0

    def small(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Garment and person at another size."""
        pair = (self.garment, self.person)
        return tuple(F.interpolate(x, size, mode="bilinear", antialias=True) for x in pair)


class GarmentWarp:
    """Two trained networks: one bends, one repaints."""

    def __init__(self, tps: WarpNet, refinement: RefinementNet) -> None:
        """Put them together.

        Raises:
            UnsupportedModel: if they take other maps.
        """
        found = (tps.settings.person_channels, refinement.settings.in_channels)
        if found != (PERSON_CHANNELS, PERSON_CHANNELS + 3):
            raise UnsupportedModel(
                f"The warping networks take {found[0]} and {found[1]} channels - expected "
                f"{PERSON_CHANNELS} and {PERSON_CHANNELS + 3}: a picture and {len(KEYPOINT_NAMES)} "
                "keypoints, and the bent garment. Name weights with keypoints."
            )
        self.tps, self.refinement = tps.eval(), refinement.eval()

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.tps.parameters()).device

    def bent(self, inputs: WarpInputs) -> Float[Tensor, "b 3 h w"]:
        """The garment bent alone, -1..1."""
        points = self.tps(*inputs.small(self.tps.settings.size))
        return warp(inputs.garment, self.tps.grid(points))

    @torch.no_grad()
    def __call__(self, sample: TryOnSample) -> Float[Tensor, "b h w 3"]:
        """The garment as it lies on the body, 0..1."""
        inputs = WarpInputs(sample, self.device)
        painted = self.refinement(torch.cat([inputs.person, self.bent(inputs)], dim=1))
        return (painted.clamp(-1.0, 1.0) / 2.0 + 0.5).movedim(1, -1).to(sample.person)


def bending(bend: GarmentWarp, batches: TryOnBatches) -> TryOnBatches:
    """Batches whose garments are bent to the bodies, which the denoiser's trainer wants.

    Args:
        bend: trained networks.
        batches: people with keypoints; a sample that has its bent garment is left as it is.
    """

    def bent(number: int, generator: torch.Generator) -> TryOnSample:
        sample = batches(number, generator)
        return sample if sample.warped is not None else replace(sample, warped=bend(sample))

    return bent

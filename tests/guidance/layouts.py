"""Cameras, renders and layouts that tests of rules with places share."""

from __future__ import annotations

import torch
from torch import Tensor

from guidance.configs import DirectionalPromptsConfig, SDSConfig, UniformTimestepsConfig
from guidance.layout_parts import LayoutObject
from guidance.prompts import ViewPrompts, build_view_prompts
from guidance.sds import SDSGuidance
from image_tools.diffusion.prior import DiffusionPrior
from renderers.box_configs import BoxConfig
from renderers.cameras import Cameras, orbit_cameras

SCENE = "a red duck left of a blue mushroom"
LEFT = BoxConfig((0.0, -0.4, 0.0), (0.5, 0.6, 0.8))
RIGHT = BoxConfig((0.0, 0.4, 0.0), (0.5, 0.6, 0.8))
EVERYTHING = BoxConfig((0.0, 0.0, 0.0), (20.0, 20.0, 20.0))


def cameras(n: int = 2) -> Cameras:
    """Views around the scene, the first from the front."""
    return orbit_cameras(n, elevation_deg=10.0, distance=2.9, fovy_deg=42.0, height=16, width=16)


def renders(n: int = 2, seed: int = 1) -> Tensor:
    """Random images with gradient."""
    images = torch.rand(n, 16, 16, 3, generator=torch.Generator().manual_seed(seed))
    return images.requires_grad_()


def prompts_of(prior: DiffusionPrior, text: str) -> ViewPrompts:
    """A prompt, encoded for all views."""
    return build_view_prompts(DirectionalPromptsConfig(), prior, text)


def objects_of(prior: DiffusionPrior, **boxes: BoxConfig) -> list[LayoutObject]:
    """Objects by their prompts, with _ for spaces."""
    return [
        LayoutObject(box, prompts_of(prior, name.replace("_", " "))) for name, box in boxes.items()
    ]


def sds_config(low: float = 0.02, high: float = 0.98) -> SDSConfig:
    """Plain score distillation between two noise levels."""
    return SDSConfig(guidance_scale=7.0, timesteps=UniformTimestepsConfig(min_t=low, max_t=high))


def gradient(rule: SDSGuidance, n: int = 2, *, seed: int = 0) -> Tensor:
    """What a rule does to random renders."""
    images = renders(n)
    generator = torch.Generator().manual_seed(seed)
    rule(images, cameras(n), fraction=0.5, generator=generator).loss.backward()
    return images.grad

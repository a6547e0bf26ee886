"""InstantID for a tiny prior, with random weights that do something."""

from __future__ import annotations

import torch
from torch import Tensor

from image_tools.personalization.instant_id import InstantID, InstantIDPrior, new_instant_id
from image_tools.personalization.instant_id_configs import HeadConfig
from tests.image_tools.control.tiny_controls import condition_images, tiny_controlnet

__all__ = ["IDENTITY_WIDTH", "person", "tiny_instant_id", "tiny_prior_of"]

IDENTITY_WIDTH = 12


def tiny_instant_id(prior, *, identity_width: int = IDENTITY_WIDTH) -> InstantID:
    """Keys and values that are not the text's, and a ControlNet that is not silent."""
    generator = torch.Generator().manual_seed(41)
    parts = new_instant_id(prior, identity_width=identity_width, generator=generator, width=64)
    with torch.no_grad():
        for parameter in parts.adapter.ip_adapter.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    parts.adapter.eval().requires_grad_(False)
    return InstantID(parts.adapter, tiny_controlnet(prior))


def person(seed: int = 1, count: int = 1) -> Tensor:
    """Embeddings of people."""
    return torch.randn(count, IDENTITY_WIDTH, generator=torch.Generator().manual_seed(seed))


def tiny_prior_of(prior, parts: InstantID, *, head: HeadConfig | None = None, **settings):
    """The prior that draws person number 1 along smooth random drawings."""
    tool = InstantIDPrior(prior, parts, condition_images(prior), head=head, **settings)
    tool.show_identity(person())
    return tool

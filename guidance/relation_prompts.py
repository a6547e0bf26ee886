"""Prompts of a scene of several objects that are true in the view they guide.

"a mushroom left of a teapot" is true from the front, false from behind, and from the sides one
stands before the other. Text-to-image models know such words as relations in the image, whatever
the camera, so one prompt for all views asks a scene for what no scene can be: the mushroom on the
left from everywhere. Here the words between two objects come from their boxes. With d from the
second object's centre to the first's, and the camera at azimuth a,

    front = d . (cos a, sin a, 0),   right = d . (-sin a, cos a, 0),   above = d_z

the largest in size names the relation. More objects make a chain, each with the next. Ours.

    prompts = build_relation_prompts(RelationPromptsConfig(), prior, [("a duck", box), ...])
    condition = prompts.at(cameras)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.configs import MAX_RELATED, RelationPromptsConfig
from guidance.prompts import ViewCondition
from guidance.views import CameraAngles
from image_tools.diffusion.conditions import TextEmbedding
from image_tools.diffusion.protocol import NoisePrior
from renderers.box_configs import BoxConfig
from renderers.errors import StudioError

__all__ = ["RELATIONS", "RelationPrompts", "build_relation_prompts", "relations_seen"]

RELATIONS = ("front", "behind", "right", "left", "above", "below")
"""Names of the words, in the order of :func:`relations_seen`."""
SLACK = 1e-4
"""Rounding that may turn a tie: a text too many is harmless, a missing one is not."""


@dataclass(frozen=True)
class RelationPrompts:
    """One text for each way in which the objects can stand to each other."""

    steps: Float[Tensor, "pairs 3"]
    """From each object's centre to that of the one before it."""
    rows: Int[Tensor, "..."]
    """Row of the text for each choice of relations, -1 where none was encoded; one axis a pair."""
    views: TextEmbedding
    uncond: TextEmbedding
    texts: tuple[str, ...]
    """The texts in words, by row."""
    prompt: str

    def rows_at(self, cameras: CameraAngles) -> Int[Tensor, " b"]:
        """Number of the text that is true in each view."""
        seen = relations_seen(self.steps, cameras.azimuth_deg.cpu())
        return self.rows[tuple(seen.unbind(dim=1))]

    def at(self, cameras: CameraAngles) -> ViewCondition:
        """The text that is true in each view."""
        text = self.views.select(self.rows_at(cameras)).seen_from(cameras.azimuth_deg)
        return ViewCondition(text, self.uncond)


def relations_seen(
    steps: Float[Tensor, "pairs 3"], azimuth_deg: Float[Tensor, " b"]
) -> Int[Tensor, "b pairs"]:
    """How the first object of each pair stands to the second: an index into ``RELATIONS``.

    Args:
        steps: from the second object's centre to the first's.
        azimuth_deg: of the cameras; 0 looks from +x.
    """
    angle = torch.deg2rad(azimuth_deg.to(steps))[:, None]
    x, y, z = steps.unbind(dim=1)
    front = x * angle.cos() + y * angle.sin()
    right = y * angle.cos() - x * angle.sin()
    parts = torch.stack([front, right, z.expand_as(front)], dim=-1)
    largest = parts.abs().argmax(dim=-1)
    is_less = parts.gather(-1, largest[..., None])[..., 0] < 0.0
    return 2 * largest + is_less.long()


@torch.no_grad()
def build_relation_prompts(
    config: RelationPromptsConfig,
    prior: NoisePrior,
    objects: Sequence[tuple[str, BoxConfig]],
    prompt: str,
    negative_prompt: str = "",
) -> RelationPrompts:
    """Encode what can be true of the objects, from any side.

    Args:
        config: words and template.
        prior: encodes the text.
        objects: prompt and box of each, at least two.
        prompt: the scene's, for what reads it without a view: critics, second priors.
        negative_prompt: what to avoid; empty for the prior's plain unconditional prediction.

    Raises:
        StudioError: there are fewer than two objects, or more than ``MAX_RELATED``.
    """
    if not 2 <= len(objects) <= MAX_RELATED:
        raise StudioError(
            f"view_prompts: relations got {len(objects)} objects - expected 2 to {MAX_RELATED}. "
            "Change the layout, or take view_prompts.kind: directional."
        )
    centers = torch.tensor([box.center for _, box in objects])
    steps = centers[:-1] - centers[1:]
    texts: list[str] = []
    rows = torch.full((len(RELATIONS),) * len(steps), -1)
    for chosen in product(*map(_possible, steps)):
        rows[chosen] = len(texts)
        texts.append(_text(config, [words for words, _ in objects], chosen))
    views, uncond = prior.encode_prompt(texts), prior.encode_negative([negative_prompt])
    return RelationPrompts(steps, rows, views, uncond, tuple(texts), prompt)


def _possible(step: Float[Tensor, " 3"]) -> list[int]:
    """What the pair can be to each other from any side: no text of another relation is needed.

    The larger of front and right is between r / sqrt 2 and r, r the distance on the ground.
    """
    ground, height = float(step[:2].norm()), float(step[2])
    found = [0, 1, 2, 3] if ground >= abs(height) * (1.0 - SLACK) else []
    if abs(height) >= ground / math.sqrt(2.0) * (1.0 - SLACK) and height != 0.0:
        found.append(RELATIONS.index("above" if height > 0.0 else "below"))
    return found


def _text(config: RelationPromptsConfig, objects: Sequence[str], chosen: Sequence[int]) -> str:
    text = objects[0]
    for relation, following in zip(chosen, objects[1:], strict=True):
        text += f" {getattr(config.words, RELATIONS[relation])} {following}"
    return config.template.replace("{objects}", text)

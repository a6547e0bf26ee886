"""Pictures by regions: for each seed the picture of the prompt alone and that of the plan.

    plan = plan_of(config)
    draw = make_regional(prior, config, plan)

The plan is had first, since a planner may fail, and loading a prior takes its time.
"""

from __future__ import annotations

import textwrap

import numpy as np
import torch
import yaml
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from image_tools.control.annotators import palette
from image_tools.control.planners import build_planner
from image_tools.control.regional import RegionalPrior, rect_masks
from image_tools.control.regional_configs import RegionalConfig, parse_ratio
from image_tools.diffusion.prior import DiffusionPrior
from studio.config import dump
from studio.images.configs import RegionalImageConfig
from studio.images.method_configs import ExplicitRegionsConfig
from studio.images.picture import Draw, Picture, draw_plainly
from studio.images.reading import read_mask

__all__ = ["PLAN_SIDE", "make_regional", "plan_of", "plan_picture", "plan_text"]

PLAN_SIDE = 192  # pixels
LIGHTER = 0.6  # share of white in a plan's colours, so that ink is read on them
INK = (28, 30, 36)
LABEL_SIZE = 13
LETTER_WIDTH = 7  # pixels


def plan_of(config: RegionalImageConfig) -> RegionalConfig:
    """The scene's own regions, or what its planner makes of the prompt.

    Raises:
        PlanError: the planner has no plan.
        RegionError: the plan does not fit together.
    """
    if isinstance(config.regions, ExplicitRegionsConfig):
        return config.regions
    return build_planner(config.regions).plan(config.prompt)


def plan_text(plan: RegionalConfig) -> str:
    """A plan as a file that ``regions: {kind: file}`` reads."""
    known = {key: value for key, value in dump(plan).items() if key not in ("kind", "masks")}
    return yaml.safe_dump(known, sort_keys=False, allow_unicode=True, width=100)


def make_regional(prior: DiffusionPrior, config: RegionalImageConfig, plan: RegionalConfig) -> Draw:
    """What draws by the plan.

    Raises:
        ConfigError: a mask cannot be read, or has another size.
    """
    masks = None
    if config.masks:
        size = prior.image_size
        files = enumerate(config.masks)
        read = [read_mask(path, f"regions.masks.{k}", size=size) for k, path in files]
        masks = torch.stack(read)
    tool = RegionalPrior(prior, plan, masks=None if masks is None else masks.to(prior.device))
    picture = Picture("plan", "plan", plan_picture(plan, masks), is_compared=False)

    def draw(seed: int) -> list[Picture]:
        plain, regional = (draw_plainly(one, config, seed) for one in (prior, tool))
        return [
            Picture("plain", "prompt alone", plain, config.prompt),
            picture,
            Picture("regional", "by regions", regional, config.prompt),
        ]

    return draw


def plan_picture(
    plan: RegionalConfig, masks: Float[Tensor, "regions h w"] | None = None
) -> Float[Tensor, "side side 3"]:
    """A plan as coloured places with their prompts."""
    size = (PLAN_SIDE, PLAN_SIDE)
    if masks is None:
        places = rect_masks(parse_ratio(plan.ratio), size)
    else:
        places = torch.nn.functional.interpolate(masks[None].cpu(), size, mode="nearest")[0]
    colors = LIGHTER + (1.0 - LIGHTER) * palette(len(places))
    canvas = torch.ones(*size, 3)
    for place, color in zip(places, colors, strict=True):
        canvas = torch.where(place[..., None] > 0.5, color, canvas)
    image = Image.fromarray((canvas * 255.0).round().to(torch.uint8).numpy())
    draw = ImageDraw.Draw(image)
    for place, region in zip(places, plan.regions, strict=True):
        _write(draw, place > 0.5, region.prompt)
    return torch.from_numpy(np.array(image, dtype=np.float32) / 255.0)


def _write(draw: ImageDraw.ImageDraw, place: Tensor, text: str) -> None:
    """A prompt in the middle of its place, wrapped at its width."""
    found = place.nonzero().float()
    if len(found) == 0:
        return
    (top, left), (bottom, right) = found.amin(0).tolist(), found.amax(0).tolist()
    letters = max(int((right - left) / LETTER_WIDTH), 4)
    lines = textwrap.wrap(text, letters, max_lines=4, placeholder=" …")
    font = ImageFont.load_default(LABEL_SIZE)
    middle = ((left + right) / 2, (top + bottom) / 2)
    draw.multiline_text(middle, "\n".join(lines), INK, font, anchor="mm", align="center")

"""Pictures of subjects in boxes: for each seed the picture without them, and with them.

    draw = make_subjects(prior, config)

Beside them stand the subjects' own pictures, named by their phrases, and the layout where boxes
make one. Pictures and weights are read when it is made, before anything is drawn.
"""

from __future__ import annotations

import torch

from image_tools.control.regional_configs import RegionalConfig, RegionConfig
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.ms_diffusion_attention import box_cells
from image_tools.personalization.ms_diffusion_configs import MSDiffusionConfig
from image_tools.personalization.ms_diffusion_loading import load_ms_diffusion_prior
from studio.images.configs import ReferenceImageConfig
from studio.images.picture import Draw, Picture, draw_plainly
from studio.images.reading import read_picture
from studio.images.regions import PLAN_SIDE, plan_picture

__all__ = ["make_subjects"]


def make_subjects(prior: DiffusionPrior, config: ReferenceImageConfig) -> Draw:
    """What draws the scene's subjects.

    Raises:
        ConfigError: a picture cannot be read.
        WeightsMissing: the tool's weights are not there.
        UnsupportedModel: they belong to another prior.
        WordsError: a phrase lies behind what the text encoder reads.
    """
    tool: MSDiffusionConfig = config.tool
    shown = [*_own_pictures(tool, prior.image_size), *_layout(tool)]
    placed = load_ms_diffusion_prior(tool, prior, prompt=config.prompt, steps=config.sampler.steps)

    def draw(seed: int) -> list[Picture]:
        plain, with_subjects = (draw_plainly(one, config, seed) for one in (prior, placed))
        return [
            Picture("plain", "without subjects", plain, config.prompt),
            *shown,
            Picture("referenced", "with subjects", with_subjects, config.prompt),
        ]

    return draw


def _own_pictures(tool: MSDiffusionConfig, size: int) -> list[Picture]:
    """Pictures of the subjects, in their order."""
    phrases = [subject.phrase for subject in tool.subjects for _ in subject.images]
    keyed = zip(tool.pictures(), phrases, strict=True)
    return [
        Picture(
            f"reference{number}",
            phrase,
            read_picture(path, f"tool.{key}", size=size, fit=tool.photos.fit)[0],
            is_compared=False,
        )
        for number, ((key, path), phrase) in enumerate(keyed, start=1)
    ]


def _layout(tool: MSDiffusionConfig) -> list[Picture]:
    """The boxes as a picture; none where no subject has one."""
    boxed = [subject for subject in tool.subjects if subject.box is not None]
    if not boxed:
        return []
    cells = box_cells(torch.tensor([subject.box for subject in boxed]), (PLAN_SIDE, PLAN_SIDE))
    ratio = ",".join("1" * len(boxed))  # the boxes take its place
    plan = RegionalConfig(ratio, tuple(RegionConfig(subject.phrase) for subject in boxed))
    return [Picture("layout", "layout", plan_picture(plan, cells.float()), is_compared=False)]

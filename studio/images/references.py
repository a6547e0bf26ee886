"""Pictures by reference pictures: for each seed the picture without the tool, and with it.

    draw = make_referenced(prior, config)

Pictures and weights are read when it is made, before anything is drawn.
"""

from __future__ import annotations

from pathlib import Path

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.ms_diffusion_configs import MSDiffusionConfig
from image_tools.personalization.references import build_reference_tool
from image_tools.personalization.style_aligned_configs import StyleAlignedConfig
from studio.images.configs import ReferenceImageConfig
from studio.images.picture import Draw, Picture, draw_plainly
from studio.images.reading import read_picture
from studio.images.style_sets import make_style_set
from studio.images.subjects import make_subjects

__all__ = ["make_referenced"]


def make_referenced(prior: DiffusionPrior, config: ReferenceImageConfig) -> Draw:
    """What draws with the scene's tool.

    Raises:
        ConfigError: a picture cannot be read.
        WeightsMissing: the tool's weights are not there.
        UnsupportedModel: they belong to another prior.
    """
    if isinstance(config.tool, StyleAlignedConfig):
        return make_style_set(prior, config)
    if isinstance(config.tool, MSDiffusionConfig):
        return make_subjects(prior, config)
    shown = reference_pictures(config, prior.image_size)
    tool = build_reference_tool(config.tool, prior)

    def draw(seed: int) -> list[Picture]:
        plain = draw_plainly(prior, config, seed, config.tool.plain_prompt(config.prompt))
        referenced = draw_plainly(tool, config, seed)
        return [
            Picture("plain", "without references", plain, config.prompt),
            *shown,
            Picture("referenced", "with references", referenced, config.prompt),
        ]

    return draw


def reference_pictures(config: ReferenceImageConfig, size: int) -> list[Picture]:
    """Every picture that the tool reads, as it shows in the sheet.

    Raises:
        ConfigError: one cannot be read.
    """
    return [
        Picture(
            f"reference{number}",
            Path(path).name,
            read_picture(path, f"tool.{key}", size=size)[0],
            is_compared=False,
        )
        for number, (key, path) in enumerate(config.tool.pictures(), start=1)
    ]

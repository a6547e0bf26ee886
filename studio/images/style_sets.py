"""Sets of pictures in one style: for each seed every picture alone, and all of them in one style.

    draw = make_style_set(prior, config)

The style is that of the first picture, or of the tool's own picture, which is read and inverted
when it is made. Both halves of a row start from the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.sampling import sample_images
from image_tools.personalization.style_aligned import draw_style_set, styled
from image_tools.personalization.style_references import inverted_reference
from studio.images.configs import ReferenceImageConfig
from studio.images.picture import Draw, Picture, noise_of
from studio.images.reading import read_picture

__all__ = ["make_style_set"]


def make_style_set(prior: DiffusionPrior, config: ReferenceImageConfig) -> Draw:
    """What draws sets with the scene's tool.

    Raises:
        ConfigError: the picture cannot be read.
        StudioError: the sampler has too few steps for the tool's offset.
    """
    tool, reference, shown = config.tool, None, []
    prompts = [styled(prompt, tool.style) for prompt in (config.prompt, *tool.prompts)]
    count = len(prompts)
    if tool.image is not None:
        size, fit = prior.image_size, tool.photos.fit
        image = read_picture(tool.image, "tool.image", size=size, fit=fit)
        reference = inverted_reference(
            prior,
            image,
            styled(tool.image_prompt, tool.style),
            steps=config.sampler.steps,
            config=tool.inversion,
        )
        name = Path(tool.image).name
        shown.append(Picture("reference", f"style of {name}", image[0], is_compared=False))

    def draw(seed: int) -> list[Picture]:
        # One generator for all, so that the first picture is what its prompt alone gives.
        settings = {"config": config.sampler, "negative_prompt": config.negative_prompt}
        alone = sample_images(prior, prompts, generators=[noise_of(seed)] * count, **settings)
        aligned = draw_style_set(
            prior,
            prompts,
            generators=[noise_of(seed)] * count,
            sharing=tool.sharing,
            reference=reference,
            **settings,
        )
        return [
            *_pictures("alone", "alone", prompts, alone),
            *shown,
            *_pictures("aligned", "in one style", prompts, aligned),
        ]

    return draw


def _pictures(
    name: str, about: str, prompts: Sequence[str], images: Float[Tensor, "n h w 3"]
) -> list[Picture]:
    return [
        Picture(f"{name}{number}", f"{about}: {prompt}", image, prompt)
        for number, (prompt, image) in enumerate(zip(prompts, images, strict=True), start=1)
    ]

"""The words of prompts with images among them, free of torch: ``<i>`` stands for an image."""

from __future__ import annotations

import re

from renderers.errors import StudioError

__all__ = [
    "IMAGE_MARK",
    "InterleavedPromptError",
    "check_image_count",
    "shortened",
    "without_images",
]

IMAGE_MARK = "<i>"
SHOWN = 60


class InterleavedPromptError(StudioError):
    """A prompt and its images do not fit each other, or the language model."""

    exit_code = 2


def check_image_count(prompt: str, images: int) -> None:
    """Refuse a prompt that names another number of images than there are.

    Raises:
        InterleavedPromptError: with both numbers.
    """
    marks = prompt.count(IMAGE_MARK)
    if marks != images:
        raise InterleavedPromptError(
            f"The prompt '{shortened(prompt)}' has {IMAGE_MARK} {marks} times, and there are "
            f"{images} images - expected one image for each {IMAGE_MARK}, in their order. Write "
            f"{IMAGE_MARK} where an image is meant, or change the images."
        )


def without_images(prompt: str) -> str:
    """The words of a prompt alone, for models that read nothing else."""
    if IMAGE_MARK not in prompt:
        return prompt
    return re.sub(rf"\s*{re.escape(IMAGE_MARK)}", "", prompt).strip()


def shortened(prompt: str) -> str:
    """A prompt as errors show it."""
    return prompt if len(prompt) <= SHOWN else f"{prompt[:SHOWN]}..."

"""Words learned by Textual Inversion in 3D guidance: in every view, and exactly off when off."""

from __future__ import annotations

import pytest
import torch

from guidance.configs import DirectionalPromptsConfig, SDSConfig
from guidance.prompts import build_view_prompts
from guidance.sds import SDSGuidance
from image_tools.diffusion.loading import load_folder
from image_tools.personalization.tokens import TokenEmbedding, attach_tokens
from tests.guidance.test_prompts import _angles

WORD = TokenEmbedding("<w>", (torch.randn(2, 16, generator=torch.Generator().manual_seed(4)),))
CAMERAS = _angles((0.0, 10.0), (170.0, 10.0))


@pytest.fixture
def prior(tiny_pipelines):
    return load_folder(tiny_pipelines["pocket"], torch.device("cpu"))


def gradient(prior, prompt: str) -> torch.Tensor:
    """Score distillation's gradient on two renders."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 32, 32, 3, generator=generator).requires_grad_()
    prompts = build_view_prompts(DirectionalPromptsConfig(), prior, prompt)
    guidance = SDSGuidance(SDSConfig(), prior, prompts)
    guidance(images, CAMERAS, fraction=0.5, generator=generator).loss.backward()
    return images.grad


def test_guidance_follows_the_word_and_is_the_bases_without_it(prior):
    base = {prompt: gradient(prior, prompt) for prompt in ("a <w>", "red duck")}
    with attach_tokens(prior, [WORD]):
        assert not torch.equal(gradient(prior, "a <w>"), base["a <w>"])
        assert torch.equal(gradient(prior, "red duck"), base["red duck"])
    assert torch.equal(gradient(prior, "a <w>"), base["a <w>"])


def test_the_word_is_in_the_prompt_of_every_view(prior):
    def views() -> torch.Tensor:
        prompts = build_view_prompts(DirectionalPromptsConfig(), prior, "a <w>")
        return prompts.at(CAMERAS).positive.tokens

    plain = views()
    with attach_tokens(prior, [WORD]):
        taught = views()
    assert not torch.equal(taught[0], taught[1])
    assert all(not torch.equal(a, b) for a, b in zip(taught, plain, strict=True))

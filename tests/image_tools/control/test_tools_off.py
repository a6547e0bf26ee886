"""Attention tools at strength zero, alone and around each other: the plain prior bit for bit."""

from __future__ import annotations

import itertools

import pytest
import torch

from image_tools.control.regional import RegionalPrior
from image_tools.control.regional_configs import RegionalConfig, RegionConfig
from image_tools.control.self_guidance import Reference, SelfGuidedPrior
from image_tools.control.self_guidance_configs import MoveConfig, SelfGuidanceConfig
from image_tools.diffusion.loading import load_folder
from image_tools.editing.editing_configs import EditedPromptConfig, PromptToPromptConfig
from image_tools.editing.inversion import Inversion, InvertedPrior
from image_tools.editing.prompt_to_prompt import PromptToPromptPrior

SOURCE, TARGET = "a red duck", "a red mushroom"


def edits(prior):
    edit = EditedPromptConfig(TARGET, cross_steps=(0.0, 0.0), self_steps=(0.0, 0.0))
    return PromptToPromptPrior(prior, PromptToPromptConfig(SOURCE, (edit,), steps=4))


def regions(prior):
    both = (RegionConfig("a duck"), RegionConfig("a cat"))
    return RegionalPrior(prior, RegionalConfig("1,1", both, base_ratio=1.0))


def self_guidance(prior):
    config = SelfGuidanceConfig(SOURCE, (MoveConfig(("duck",), (0.2, 0.0)),), scale=0.0, steps=4)
    return SelfGuidedPrior(prior, config, Reference(SOURCE))


def inversion(prior):
    """What guidance leads away from is what it would have been."""
    times = [step * 250 + 1 for step in (3, 2, 1, 0)]
    none = prior.encode_negative([""])
    return InvertedPrior(prior, Inversion(torch.zeros(1, 4, 8, 8), (none,) * 4, tuple(times)))


TOOLS = {tool.__name__: tool for tool in (edits, regions, self_guidance, inversion)}
PAIRS = [*((name,) for name in TOOLS), *itertools.permutations(TOOLS, 2)]


@pytest.fixture(scope="module")
def plain(tiny_pipelines):
    return load_folder(tiny_pipelines["sd2_v"], torch.device("cpu"))


@torch.no_grad()
def predictions(prior):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([501, 501])
    cond, uncond = prior.encode_prompt([SOURCE, TARGET]), prior.encode_negative([""])
    guided = prior.guided_noise(latents, t, cond, uncond, 4.0, rescale=0.3)
    return guided, prior.predict_output(latents, t, cond)


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_tools_that_are_off_are_not_there(plain, names):
    prior = plain
    for name in names:
        prior = TOOLS[name](prior)
    for found, expected in zip(predictions(prior), predictions(plain), strict=True):
        assert torch.equal(found, expected)

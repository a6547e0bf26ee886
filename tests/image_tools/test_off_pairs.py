"""Every tool at strength zero, alone and with every other one: the plain prior bit for bit.

Three families on one tiny denoiser: edits of attention, additions to the denoiser (controls and an
edit model), and what personalization attaches to the prior itself. Attached things and priors that
want a bare prior stand innermost; all others are tried inside and outside of each other.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack

import pytest
import torch

from image_tools.control.control_configs import NoiseWindow
from image_tools.control.controlnet import Control, ControlledPrior
from image_tools.control.regional import RegionalPrior
from image_tools.control.regional_configs import RegionalConfig, RegionConfig
from image_tools.control.self_guidance import Reference, SelfGuidedPrior
from image_tools.control.self_guidance_configs import MoveConfig, SelfGuidanceConfig
from image_tools.control.uni_controlnet import UniControlledPrior
from image_tools.diffusion.lora_apply import attach_to_prior, detach_from_prior, prior_modules
from image_tools.diffusion.lora_files import write_lora
from image_tools.editing.editing_configs import EditedPromptConfig, PromptToPromptConfig
from image_tools.editing.instruct_pix2pix import InstructPix2PixPrior
from image_tools.editing.inversion import Inversion, InvertedPrior
from image_tools.editing.prompt_to_prompt import PromptToPromptPrior
from image_tools.personalization.consistency import ConsistencyPrior, Student
from image_tools.personalization.kosmos_g import KosmosGPrior
from image_tools.personalization.ms_diffusion import MSDiffusionPrior
from image_tools.personalization.personalized import attach_subjects
from image_tools.personalization.personalized_configs import LoraUseConfig, SubjectConfig
from image_tools.personalization.style_aligned import StyleAlignedPrior, StyleReferencePrior
from image_tools.personalization.style_aligned_configs import StyleSharingConfig
from image_tools.personalization.style_references import NoisedReference
from image_tools.personalization.tokens import attach_tokens, word_embedding
from renderers.errors import StudioError
from tests.image_tools.control.tiny_controls import (
    condition_images,
    tiny_controlnet,
    tiny_global_adapter,
    tiny_local_adapter,
)
from tests.image_tools.editing.tiny_editors import tiny_edit_unet
from tests.image_tools.personalization.subjects import load_tiny
from tests.image_tools.personalization.tiny_kosmos import tiny_kosmos
from tests.image_tools.personalization.tiny_subjects import (
    rows_of_subjects,
    tiny_adapter,
    two_subjects,
)
from tests.image_tools.random_loras import random_lora

SOURCE, TARGET = "a red duck", "a red mushroom"
NO_STYLE = StyleSharingConfig(attention="off", normalized=(), group_norm="own")


class Bench:
    """A plain prior, a LoRA that would change it, and what must be undone after each test."""

    def __init__(self, plain, folder):
        self.plain, self.undo = plain, ExitStack()
        self.lora = random_lora(prior_modules(plain))
        self.file = folder / "subject.safetensors"
        write_lora(self.file, self.lora, layout="kohya")
        self.controlnet = tiny_controlnet(plain)
        self.images = condition_images(plain)
        self.local, self.content = tiny_local_adapter(plain), tiny_global_adapter(plain)
        self.editor = tiny_edit_unet(plain)
        self.kosmos = tiny_kosmos(folder)
        self.clip, self.subjects = tiny_adapter(plain)

    def attach(self, name, *, weight):
        attach_to_prior(self.plain, self.lora, name=name, weight=weight)
        self.undo.callback(detach_from_prior, self.plain, name)


def edits(bench, prior):
    edit = EditedPromptConfig(TARGET, cross_steps=(0.0, 0.0), self_steps=(0.0, 0.0))
    return PromptToPromptPrior(prior, PromptToPromptConfig(SOURCE, (edit,), steps=4))


def regions(bench, prior):
    both = (RegionConfig("a duck"), RegionConfig("a cat"))
    return RegionalPrior(prior, RegionalConfig("1,1", both, base_ratio=1.0))


def self_guidance(bench, prior):
    config = SelfGuidanceConfig(SOURCE, (MoveConfig(("duck",), (0.2, 0.0)),), scale=0.0, steps=4)
    return SelfGuidedPrior(prior, config, Reference(SOURCE))


def inversion(bench, prior):
    """What guidance leads away from is what it would have been."""
    times = [step * 250 + 1 for step in (3, 2, 1, 0)]
    none = prior.encode_negative([""])
    return InvertedPrior(prior, Inversion(torch.zeros(1, 4, 8, 8), (none,) * 4, tuple(times)))


def control(bench, prior):
    return ControlledPrior(prior, [Control(bench.controlnet, bench.images, strength=0.0)])


def control_window(bench, prior):
    """A control that acts, but not at this noise."""
    window = NoiseWindow(low=0.9)
    return ControlledPrior(prior, [Control(bench.controlnet, bench.images, window=window)])


def uni(bench, prior):
    width = bench.content.settings.width
    return UniControlledPrior(
        prior,
        bench.local,
        bench.content,
        maps={"edge": bench.images},
        embedding=torch.ones(1, width),
        strength=0.0,
        content_strength=0.0,
    )


def instructions(bench, prior):
    return InstructPix2PixPrior(prior, bench.editor)


def lora(bench, prior):
    bench.attach("weightless", weight=0.0)
    return prior


def subject_off(bench, prior):
    attached = attach_subjects(prior, [SubjectConfig(loras=(LoraUseConfig(str(bench.file)),))])
    bench.undo.callback(attached.remove)
    bench.undo.enter_context(attached.off())
    return prior


def words(bench, prior):
    """A learned word that no prompt holds."""
    bench.undo.enter_context(attach_tokens(prior, [word_embedding(prior, "<pet>", "duck")]))
    return prior


def consistency(bench, prior):
    """A student without weight, whose scale is 0."""
    bench.attach("student", weight=0.0)
    return ConsistencyPrior(prior, [Student({"student": 0.0}, {"<pet>": "duck"}, scale=0.0)])


def style_set(bench, prior):
    return StyleAlignedPrior(prior, NO_STYLE)


def style_reference(bench, prior):
    latents = torch.ones(1, 4, 8, 8)
    reference = NoisedReference(latents, SOURCE, prior.alphas_cumprod)
    return StyleReferencePrior(prior, reference, NO_STYLE)


def subjects_in_boxes(bench, prior):
    off = two_subjects(scale=0.0)
    rows = rows_of_subjects(bench.plain, bench.clip, bench.subjects, off)
    return MSDiffusionPrior(prior, bench.subjects, rows)


def pictures_in_words(bench, prior):
    tool = KosmosGPrior(prior, bench.kosmos)
    bench.undo.enter_context(tool.off())
    return tool


STYLES = (style_set, style_reference)
ATTENTION = (edits, regions, self_guidance, inversion, *STYLES, subjects_in_boxes)
ADDITIONS = (control, control_window, uni)
ATTACHED = (lora, subject_off, words)
ON_BARE_PRIORS = (instructions, consistency)
OUTER = (*ATTENTION, *ADDITIONS)
PAIRS = [
    *((tool,) for tool in (*OUTER, *ATTACHED, *ON_BARE_PRIORS, pictures_in_words)),
    *itertools.permutations(OUTER, 2),
    *itertools.permutations(ATTACHED, 2),
    *itertools.product(ATTACHED, (*OUTER, *ON_BARE_PRIORS)),
    *itertools.product(ON_BARE_PRIORS, OUTER),
    *itertools.product((pictures_in_words,), ADDITIONS),
    *itertools.product((*ATTENTION, *ATTACHED), (pictures_in_words,)),
]


@pytest.fixture(scope="module")
def tools(tiny_pipelines, tmp_path_factory):
    return Bench(load_tiny(tiny_pipelines, "sd2_v"), tmp_path_factory.mktemp("off"))


@pytest.fixture
def bench(tools):
    with tools.undo:
        yield tools


@pytest.fixture(scope="module")
def expected(tools):
    return predictions(tools.plain)


@torch.no_grad()
def predictions(prior):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([501, 501])
    cond, uncond = prior.encode_prompt([SOURCE, TARGET]), prior.encode_negative([""])
    guided = prior.guided_noise(latents, t, cond, uncond, 4.0, rescale=0.3)
    return guided, prior.predict_output(latents, t, cond)


def around(bench, pair):
    """The tools of a pair, the first one innermost."""
    prior = bench.plain
    for tool in pair:
        prior = tool(bench, prior)
    return prior


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(t.__name__ for t in pair))
def test_tools_that_are_off_are_not_there(bench, expected, pair):
    for found, wanted in zip(predictions(around(bench, pair)), expected, strict=True):
        assert torch.equal(found, wanted)


def test_nothing_stays_behind(tools, expected):
    """After all pairs the prior is the one that they began with."""
    for found, wanted in zip(predictions(tools.plain), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("inner", [consistency, *OUTER], ids=lambda tool: tool.__name__)
def test_an_edit_model_stands_innermost(bench, inner):
    """The pairs that the matrix leaves out are refused: its denoiser replaces the prior's."""
    with pytest.raises(StudioError, match="expected a plain prior"):
        around(bench, (inner, instructions))

"""Every tool around one tiny prior, by its strength: 0 is off, 1 acts.

Three families: edits of attention, additions to the denoiser (controls and an edit model), and what
personalization attaches to the prior itself. Attached things and priors that want a bare prior
stand innermost; all others may stand inside and outside of each other.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import torch

from image_tools.control.control_configs import NoiseWindow
from image_tools.control.controlnet import Control, ControlledPrior
from image_tools.control.regional import RegionalPrior
from image_tools.control.regional_configs import RegionalConfig, RegionConfig
from image_tools.control.self_guidance import SelfGuidedPrior, reference_of_latents
from image_tools.control.self_guidance_configs import MoveConfig, SelfGuidanceConfig
from image_tools.control.uni_controlnet import UniControlledPrior
from image_tools.diffusion.lora_apply import attach_to_prior, detach_from_prior, prior_modules
from image_tools.diffusion.lora_files import write_lora
from image_tools.diffusion.protocol import NoisePrior
from image_tools.editing.editing_configs import EditedPromptConfig, PromptToPromptConfig
from image_tools.editing.instruct_pix2pix import InstructPix2PixPrior
from image_tools.editing.inversion import Inversion, InvertedPrior
from image_tools.editing.prompt_to_prompt import PromptToPromptPrior
from image_tools.personalization.consistency import ConsistencyPrior, Student
from image_tools.personalization.ip_adapter_prior import IPAdapterPrior
from image_tools.personalization.kosmos_g import KosmosGPrior
from image_tools.personalization.ms_diffusion import MSDiffusionPrior
from image_tools.personalization.personalized import attach_subjects
from image_tools.personalization.personalized_configs import LoraUseConfig, SubjectConfig
from image_tools.personalization.style_aligned import StyleAlignedPrior, StyleReferencePrior
from image_tools.personalization.style_aligned_configs import StyleSharingConfig
from image_tools.personalization.style_references import NoisedReference
from image_tools.personalization.tokens import attach_tokens, word_embedding
from tests.image_tools.control.tiny_controls import (
    condition_images,
    tiny_controlnet,
    tiny_global_adapter,
    tiny_local_adapter,
)
from tests.image_tools.editing.tiny_editors import tiny_edit_unet
from tests.image_tools.personalization.tiny_ip_adapters import random_features, tiny_ip_adapter
from tests.image_tools.personalization.tiny_kosmos import tiny_kosmos
from tests.image_tools.personalization.tiny_subjects import (
    rows_of_subjects,
    tiny_adapter,
    two_subjects,
)
from tests.image_tools.random_loras import random_lora

__all__ = [
    "ATTACHED",
    "ON_BARE_PRIORS",
    "OUTER",
    "OUTER_BY_ADDITION",
    "SOURCE",
    "TARGET",
    "Bench",
    "Tool",
    "consistency",
    "control_window",
    "instructions",
    "pictures_in_words",
    "words",
]

SOURCE, TARGET = "a red duck", "a red mushroom"
STEPS = 4
NO_STYLE = StyleSharingConfig(attention="off", normalized=(), group_norm="own")
MOVE = SelfGuidanceConfig(SOURCE, (MoveConfig(("duck",), (0.2, 0.0)),), steps=STEPS)


class Bench:
    """A plain prior, what its tools need, and what must be undone after each test."""

    def __init__(self, plain, folder):
        self.plain, self.undo = plain, ExitStack()
        self.lora = random_lora(prior_modules(plain), ending=("to_q", "conv1", "q_proj", "query"))
        self.file = folder / "subject.safetensors"
        write_lora(self.file, self.lora, layout="kohya")
        self.controlnet = tiny_controlnet(plain)
        self.images = condition_images(plain)
        self.local, self.content = tiny_local_adapter(plain), tiny_global_adapter(plain)
        self.editor = tiny_edit_unet(plain)
        self.kosmos = tiny_kosmos(folder, queries=plain.encode_prompt([SOURCE]).tokens.shape[1])
        self.clip, self.subjects = tiny_adapter(plain)
        self.ip_adapter = tiny_ip_adapter(plain.unet)
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
        self.reference = reference_of_latents(
            plain, MOVE, latents, generator=torch.Generator().manual_seed(3)
        )

    def attach(self, name, *, weight):
        attach_to_prior(self.plain, self.lora, name=name, weight=weight)
        self.undo.callback(detach_from_prior, self.plain, name)


Tool = Callable[[Bench, NoisePrior, float], NoisePrior]
"""A prior with a tool of some strength around it."""


def edits(bench, prior, strength):
    steps = (0.0, strength)
    edit = EditedPromptConfig(TARGET, cross_steps=steps, self_steps=steps)
    return PromptToPromptPrior(prior, PromptToPromptConfig(SOURCE, (edit,), steps=STEPS))


def _regions(prior, strength, mode):
    both = (RegionConfig("a duck"), RegionConfig("a cat"))
    plan = RegionalConfig("1,1", both, base_ratio=1.0 - 0.75 * strength, mode=mode)
    return RegionalPrior(prior, plan)


def regions(bench, prior, strength):
    return _regions(prior, strength, "attn_crop")


def regions_resized(bench, prior, strength):
    return _regions(prior, strength, "attn_resize")


def regions_latent(bench, prior, strength):
    return _regions(prior, strength, "latent")


def self_guidance(bench, prior, strength):
    return SelfGuidedPrior(prior, replace(MOVE, scale=500.0 * strength), bench.reference)


def inversion(bench, prior, strength):
    """Off, what guidance leads away from is what it would have been."""
    times = [step * 250 + 1 for step in (3, 2, 1, 0)]
    none = prior.encode_negative(["a cat" if strength else ""])
    found = Inversion(torch.zeros(1, 4, 8, 8), (none,) * STEPS, tuple(times))
    return InvertedPrior(prior, found)


def style_set(bench, prior, strength):
    return StyleAlignedPrior(prior, StyleSharingConfig() if strength else NO_STYLE)


def style_reference(bench, prior, strength):
    latents = torch.ones(1, 4, 8, 8)
    reference = NoisedReference(latents, SOURCE, prior.alphas_cumprod)
    return StyleReferencePrior(prior, reference, StyleSharingConfig() if strength else NO_STYLE)


def subjects_in_boxes(bench, prior, strength):
    settings = two_subjects(scale=0.6 * strength)
    rows = rows_of_subjects(bench.plain, bench.clip, bench.subjects, settings)
    return MSDiffusionPrior(prior, bench.subjects, rows)


def pictures_beside_words(bench, prior, strength):
    tool = IPAdapterPrior(prior, bench.ip_adapter, scale=strength)
    tool.show(random_features("base"), random_features("base", seed=2))
    return tool


def control(bench, prior, strength):
    return ControlledPrior(prior, [Control(bench.controlnet, bench.images, strength=strength)])


def control_window(bench, prior, strength):
    """A control that acts, but not at this noise."""
    window = NoiseWindow(low=0.9)
    return ControlledPrior(prior, [Control(bench.controlnet, bench.images, window=window)])


def uni(bench, prior, strength):
    width = bench.content.settings.width
    return UniControlledPrior(
        prior,
        bench.local,
        bench.content,
        maps={"edge": bench.images},
        embedding=torch.ones(1, width),
        strength=strength,
        content_strength=strength,
    )


def instructions(bench, prior, strength):
    return InstructPix2PixPrior(prior, bench.editor, images=bench.images if strength else None)


def lora(bench, prior, strength):
    bench.attach("added", weight=strength)
    return prior


def subject(bench, prior, strength):
    attached = attach_subjects(prior, [SubjectConfig(loras=(LoraUseConfig(str(bench.file)),))])
    bench.undo.callback(attached.remove)
    if not strength:
        bench.undo.enter_context(attached.off())
    return prior


def words(bench, prior, strength):
    """A learned word that no prompt holds."""
    bench.undo.enter_context(attach_tokens(prior, [word_embedding(prior, "<pet>", "duck")]))
    return prior


def consistency(bench, prior, strength):
    """Off, a student without weight, whose scale is 0."""
    bench.attach("student", weight=0.0)
    student = Student({"student": strength}, {"<pet>": "duck"}, scale=3.0 * strength)
    return ConsistencyPrior(prior, [student])


def pictures_in_words(bench, prior, strength):
    tool = KosmosGPrior(prior, bench.kosmos)
    if not strength:
        bench.undo.enter_context(tool.off())
    return tool


OUTER_BY_ADDITION: tuple[Tool, ...] = (control, control_window, uni)
OUTER: tuple[Tool, ...] = (
    edits,
    regions,
    regions_resized,
    regions_latent,
    self_guidance,
    inversion,
    style_set,
    style_reference,
    subjects_in_boxes,
    pictures_beside_words,
    *OUTER_BY_ADDITION,
)
ATTACHED: tuple[Tool, ...] = (lora, subject, words)
ON_BARE_PRIORS: tuple[Tool, ...] = (instructions, consistency)

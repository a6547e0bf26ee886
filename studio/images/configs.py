"""Scene files that make pictures, as frozen dataclasses without torch.

``task: text_to_image`` draws prompts, ``edit_image`` changes a picture, ``control_image`` draws
along a condition, ``regional_image`` draws what each part is told, ``reference_image`` by reference
pictures, and ``try_on`` dresses people. ``studio run`` takes them like any other scene.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as setting
from typing import Literal

from image_tools.configs import (
    DdimConfig,
    DiffusersPriorConfig,
    PersonalizedPriorConfig,
    PocketPriorConfig,
    ReferencedPriorConfig,
    SingleFilePriorConfig,
)
from image_tools.personalization.reference_configs import ReferenceToolConfig
from image_tools.tryon.bootcomp_configs import (
    COMPOSITION_WORDS,
    BootCompConfig,
    unknown_categories,
)
from image_tools.tryon.garment_configs import BODY_PARTS, GarmentCategory, GarmentConfig
from image_tools.tryon.masks_configs import MaskConfig
from studio.images.method_configs import (
    ControlMethodConfig,
    DdsMethodConfig,
    EditMethodConfig,
    ExplicitRegionsConfig,
    InstructPix2PixMethodConfig,
    NullTextMethodConfig,
    PromptToPromptMethodConfig,
    RegionsConfig,
    SelfGuidanceMethodConfig,
)
from studio.images.tryon_configs import BodyConfig, TryOnMethodConfig
from studio.prompt_rules import prompt_problems, seed_problems

__all__ = [
    "ControlImageConfig",
    "EditImageConfig",
    "ImagePriorConfig",
    "ImageTaskConfig",
    "ReferenceImageConfig",
    "RegionalImageConfig",
    "TextImageConfig",
    "TryOnConfig",
]

ImagePriorConfig = (
    PocketPriorConfig
    | DiffusersPriorConfig
    | SingleFilePriorConfig
    | PersonalizedPriorConfig
    | ReferencedPriorConfig
)
"""Priors that draw single pictures."""

# What try-on methods cannot do without, of the person's body.
NEEDED = {"ladi_vton": ("keypoints",), "stable_viton": ("densepose",)}
SAID = {
    "keypoints": "OpenPose's JSON of the person's picture, or body.finder=movenet",
    "densepose": "a picture of the person's body parts in DensePose's colours",
}


@dataclass(frozen=True, kw_only=True)
class _PicturesConfig:
    """What all tasks that make pictures have."""

    task: str
    """What the scene is for."""
    prompt: str = ""
    """What the picture shows, in words."""
    negative_prompt: str = ""
    """What it should not look like; the unconditional prompt when empty."""
    seed: int = 0
    """Seed of the first picture; the same seed on the same machine gives the same picture."""
    count: int = 4
    """How many are made, with the seeds seed, seed + 1, and so on."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    prior: ImagePriorConfig = setting(default_factory=PocketPriorConfig)
    """2D diffusion model that draws."""
    sampler: DdimConfig = setting(default_factory=DdimConfig)
    """How it draws."""
    word_maps: tuple[str, ...] = ()
    """Words whose attention is shown as heat maps; empty for none."""

    def __post_init__(self) -> None:
        """Refuse scenes that cannot run, naming every reason."""
        problems = self._problems()
        if problems:
            raise ValueError("\n  ".join(problems))

    @property
    def prompts(self) -> tuple[str, ...]:
        """Everything that some picture of the run shows, the scene's prompt first."""
        return (self.prompt,)

    @property
    def _has_one_scale(self) -> bool:
        """Whether the sampler's guidance scale alone says how much the prompt counts."""
        return True

    def _problems(self) -> list[str]:
        """Every reason why the scene cannot run."""
        problems = [*prompt_problems(self.prompt, self.negative_prompt), *seed_problems(self.seed)]
        if self.count < 1:
            problems.append(f"count: is {self.count} - expected at least 1 picture.")
        if self.sampler.steps < 1:
            problems.append(f"sampler.steps: is {self.sampler.steps} - expected at least 1.")
        if self._has_one_scale and self.sampler.guidance_scale < 1.0:
            problems.append(
                f"sampler.guidance_scale: is {self.sampler.guidance_scale:g}, which leaves the "
                "prompt out or leads away from it - expected at least 1, and 1 for Turbo models."
            )
        return problems


@dataclass(frozen=True, kw_only=True)
class TextImageConfig(_PicturesConfig):
    """Draw what the prompt says with a prior, as it is or as it was taught."""

    task: Literal["text_to_image"] = "text_to_image"
    """What the scene is for: here, to draw prompts."""
    more_prompts: tuple[str, ...] = ()
    """Other prompts, each drawn from the same noise as the first."""

    @property
    def means(self) -> str:
        """What does it, in a word."""
        return "prompt"

    @property
    def prompts(self) -> tuple[str, ...]:
        """The scene's prompt and the others."""
        return (self.prompt, *self.more_prompts)

    def _problems(self) -> list[str]:
        problems = super()._problems()
        for k, prompt in enumerate(self.more_prompts):
            own = prompt_problems(prompt, "")
            problems += [problem.replace("prompt", f"more_prompts.{k}", 1) for problem in own]
        return problems


@dataclass(frozen=True, kw_only=True)
class EditImageConfig(_PicturesConfig):
    """Change a picture, drawn or given, and keep the rest of it."""

    task: Literal["edit_image"] = "edit_image"
    """What the scene is for: here, to edit pictures."""
    method: EditMethodConfig
    """How: prompt_to_prompt, null_text, dds, instruct_pix2pix or self_guidance."""
    image: str | None = None
    """Picture to edit, of which the prompt says what it shows; empty for one that the prior draws
    for the prompt."""

    @property
    def means(self) -> str:
        """What does it, in a word."""
        return self.method.kind

    @property
    def prompts(self) -> tuple[str, ...]:
        """The scene's prompt and those of the edits; instructions say nothing of the picture."""
        method = self.method
        if isinstance(method, PromptToPromptMethodConfig | NullTextMethodConfig):
            return (self.prompt, *(edit.prompt for edit in method.edits))
        if isinstance(method, DdsMethodConfig):
            return (self.prompt, *method.prompts)
        if isinstance(method, SelfGuidanceMethodConfig) and method.prompt is not None:
            return (self.prompt, method.prompt)
        return (self.prompt,)

    @property
    def _has_one_scale(self) -> bool:
        return not isinstance(self.method, InstructPix2PixMethodConfig)

    def _problems(self) -> list[str]:
        method, problems = self.method, super()._problems()
        if isinstance(method, PromptToPromptMethodConfig) and self.image is not None:
            problems.append(
                "image: is given, and prompt_to_prompt edits what the prior draws - expected "
                "method.kind=null_text for a picture of your own, or no image."
            )
        if isinstance(method, NullTextMethodConfig):
            problems += self._inversion_problems()
        if isinstance(method, SelfGuidanceMethodConfig) and method.prompt is not None:
            own = prompt_problems(method.prompt, "")
            problems += [f"method.{problem}" for problem in own]
        return problems

    def _inversion_problems(self) -> list[str]:
        """Null-text inversion follows one path, without noise and by one formula of guidance."""
        problems = []
        if self.image is not None and self.count > 1:
            problems.append(
                f"count: is {self.count}, and null_text makes the same of a picture for every seed "
                "- expected count=1."
            )
        for name in ("eta", "guidance_rescale"):
            value = getattr(self.sampler, name)
            if value != 0.0:
                problems.append(f"sampler.{name}: is {value} - expected 0 for null_text.")
        return problems


@dataclass(frozen=True, kw_only=True)
class ControlImageConfig(_PicturesConfig):
    """Draw along edges, depth, normals or regions."""

    task: Literal["control_image"] = "control_image"
    """What the scene is for: here, to draw along conditions."""
    method: ControlMethodConfig
    """How: controlnet or uni_controlnet."""

    @property
    def means(self) -> str:
        """What does it, in a word."""
        return self.method.kind


@dataclass(frozen=True, kw_only=True)
class RegionalImageConfig(_PicturesConfig):
    """Draw what each part of the picture is told (RPG, arXiv 2401.11708)."""

    task: Literal["regional_image"] = "regional_image"
    """What the scene is for: here, to draw by regions."""
    regions: RegionsConfig
    """Who divides the picture: rule, file or endpoint, which read the prompt, or explicit."""

    @property
    def means(self) -> str:
        """What does it, in a word."""
        return f"{self.regions.kind} regions"

    @property
    def masks(self) -> tuple[str, ...]:
        """Masks of the regions, if there are any."""
        return self.regions.masks if isinstance(self.regions, ExplicitRegionsConfig) else ()


@dataclass(frozen=True, kw_only=True)
class ReferenceImageConfig(_PicturesConfig):
    """Draw with pictures beside the prompt: of a subject, a style or a face."""

    task: Literal["reference_image"] = "reference_image"
    """What the scene is for: here, to draw by reference pictures."""
    tool: ReferenceToolConfig
    """Which tool looks at the pictures, and at which."""

    @property
    def means(self) -> str:
        """What does it, in a word."""
        return self.tool.kind

    def _problems(self) -> list[str]:
        told = [f"tool.{problem}" for problem in self.tool.problems(self.prompt)]
        return super()._problems() + told


@dataclass(frozen=True, kw_only=True)
class TryOnConfig(_PicturesConfig):
    """Dress a person in garments, from pictures of them."""

    task: Literal["try_on"] = "try_on"
    """What the scene is for: here, to dress people."""
    method: TryOnMethodConfig
    """How: idm_vton, bootcomp, cat_vton, ladi_vton or stable_viton."""
    garments: tuple[GarmentConfig, ...]
    """What is worn."""
    person: str | None = None
    """Picture of the person, of the aspect of size; empty for bootcomp to make one up."""
    mask: str | None = None
    """Picture of the person's size, white where it is painted anew; empty for one made of body."""
    masking: MaskConfig = setting(default_factory=MaskConfig)
    """How a mask is made of body."""
    body: BodyConfig = setting(default_factory=BodyConfig)
    """Labels, keypoints and body parts of the person."""
    size: tuple[int, int] = (1024, 768)
    """Height and width of the pictures. Their authors use the models at 1024 x 768 (IDM-VTON, and
    CatVTON's mix), 768 x 576 (BootComp) and 512 x 384 (LaDI-VTON, StableVITON)."""

    @property
    def means(self) -> str:
        """What does it, in a word."""
        return self.method.kind

    @property
    def _has_one_scale(self) -> bool:
        return False

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if not self.garments:
            problems.append("garments: is empty - expected at least one, with image and category.")
        if isinstance(self.method, BootCompConfig):
            problems += self._unknown(COMPOSITION_WORDS, "BootComp")
        else:
            problems += self._single()
        if self.person is not None and self.mask is None:
            problems += self._maskless()
        return problems + [one for one in self._bodiless() if not _is_told(one, problems)]

    def _unknown(self, known: Mapping[GarmentCategory, str], model: str) -> list[str]:
        """Categories that a model does not know."""
        return unknown_categories(self.garments, known, model)

    def _single(self) -> list[str]:
        """What models need that dress a given person in one garment."""
        problems = self._unknown(BODY_PARTS, self.means)
        if self.person is None:
            problems.append(f"person: is empty - expected a picture for {self.means}.")
        if len(self.garments) > 1:
            problems.append(
                f"garments: has {len(self.garments)} entries - expected one for {self.means}. "
                "Dress the person in one after the other, or take method.kind=bootcomp."
            )
        return problems

    def _bodiless(self) -> list[str]:
        """What the method cannot do without of the body."""
        return [
            f"body.{name}: is empty - {self.means} needs {SAID[name]}."
            for name in NEEDED.get(self.means, ())
            if not self.body.has(name)
        ]

    def _maskless(self) -> list[str]:
        """Why no mask can be made."""
        if self.body.parse is None:
            return ["mask: is empty, and so is body.parse - expected one of them."]
        is_cat = self.masking.algorithm == "cat_vton"
        wanted = "densepose" if is_cat else "keypoints"
        problems = self._unknown(BODY_PARTS, "the mask")
        if not self.body.has(wanted):
            finder = "" if is_cat else " or body.finder=movenet,"
            problems.append(
                f"body.{wanted}: is empty - expected a file for masks of "
                f"{self.masking.algorithm}. Give it,{finder} or a mask."
            )
        return problems


def _is_told(problem: str, problems: list[str]) -> bool:
    """Whether others are about the same key."""
    key = problem.partition(": ")[0]
    return any(other.startswith(f"{key}: ") for other in problems)


ImageTaskConfig = (
    TextImageConfig
    | EditImageConfig
    | ControlImageConfig
    | RegionalImageConfig
    | ReferenceImageConfig
    | TryOnConfig
)

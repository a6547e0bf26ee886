"""How pictures are edited, controlled and divided: frozen dataclasses, importable without torch.

The tools' own settings are used as they are. What the sampler says (steps, guidance scale) and what
the scene says (prompt, seed) does not stand here again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from image_tools.control.control_configs import ControlConfig
from image_tools.control.planner_configs import (
    EndpointPlannerConfig,
    FilePlannerConfig,
    LocalPlannerConfig,
    RulePlannerConfig,
)
from image_tools.control.regional_configs import RegionalConfig, RegionError
from image_tools.control.self_guidance_configs import (
    SelfGuidanceEdit,
    SelfGuidanceStrengthConfig,
)
from image_tools.control.uni_configs import UniContentConfig
from image_tools.editing.editing_configs import (
    DeltaDenoisingConfig,
    EditedPromptConfig,
    LocalBlendConfig,
    NullTextLearningConfig,
    PromptToPromptConfig,
)

__all__ = [
    "CannyConditionConfig",
    "ConditionConfig",
    "ControlMethodConfig",
    "ControlNetConfig",
    "ControlNetMethodConfig",
    "DdsMethodConfig",
    "EditMethodConfig",
    "ExplicitRegionsConfig",
    "ImageConditionConfig",
    "InstructPix2PixMethodConfig",
    "NullTextMethodConfig",
    "PoseConditionConfig",
    "PoseFileConditionConfig",
    "PromptToPromptMethodConfig",
    "RegionsConfig",
    "SelfGuidanceMethodConfig",
    "SoftEdgeConditionConfig",
    "UniControlNetMethodConfig",
    "UniMapConfig",
]

LEARNING = NullTextLearningConfig()
DESCENT = DeltaDenoisingConfig()
STRENGTH = SelfGuidanceStrengthConfig()


@dataclass(frozen=True)
class _SharedAttentionConfig:
    """What edits by shared attention have in common."""

    edits: tuple[EditedPromptConfig, ...]
    """What is made of the picture, each with a prompt of its own."""
    blend: LocalBlendConfig | None = None
    """Words in whose places edits may act; empty for everywhere."""
    mask: str | None = None
    """A picture of the prior's image size that is white where edits may act, in the place of
    blend."""

    def __post_init__(self) -> None:
        """Refuse what the tool refuses, and two ways of saying where."""
        PromptToPromptConfig("", self.edits, self.blend)
        if self.blend is not None and self.mask is not None:
            raise ValueError("mask and blend both say where edits may act - expected one of them.")


@dataclass(frozen=True)
class PromptToPromptMethodConfig(_SharedAttentionConfig):
    """Prompt-to-Prompt (arXiv 2208.01626): edits of what the prior draws for the prompt. They share
    its noise and its attention, so that everything else stays in place."""

    kind: Literal["prompt_to_prompt"] = "prompt_to_prompt"


@dataclass(frozen=True)
class NullTextMethodConfig(_SharedAttentionConfig):
    """Null-text inversion (arXiv 2211.09794): the picture is turned into starting noise from which
    the sampler finds back to it; then Prompt-to-Prompt edits it."""

    kind: Literal["null_text"] = "null_text"
    inversion: Literal["null_text", "negative_prompt"] = "null_text"
    """null_text learns for each step what guidance leads away from; negative_prompt (arXiv
    2305.16807) puts the prompt there, at once and less exactly."""
    learning: NullTextLearningConfig = LEARNING
    """How null_text learns."""


@dataclass(frozen=True)
class DdsMethodConfig:
    """Delta denoising score (arXiv 2304.07090): the picture follows the difference between what the
    prior says of it and its old prompt, and of it and its new one."""

    prompts: tuple[str, ...]
    """What the picture shall show, one edit each."""
    kind: Literal["dds"] = "dds"
    descent: DeltaDenoisingConfig = DESCENT
    """Number and size of the updates."""

    def __post_init__(self) -> None:
        """Refuse no edit."""
        _check_some("prompts", self.prompts, "a blue duck")


@dataclass(frozen=True)
class InstructPix2PixMethodConfig:
    """InstructPix2Pix (arXiv 2211.09800): a denoiser of its own follows instructions about the
    picture. The sampler's guidance scale is that of the instruction."""

    instructions: tuple[str, ...]
    """What to do with the picture, one edit each."""
    kind: Literal["instruct_pix2pix"] = "instruct_pix2pix"
    model: str = "pocket-ip2p"
    """The edit model: a folder in diffusers layout (a pipeline or its denoiser), a .safetensors
    file, or the name of an adapter that ships with the package."""
    settings: str | None = None
    """For one file: a folder that holds the matching diffusers config.json; empty where it lies
    beside the file."""
    image_scale: float = 1.5
    """s_I: how much of the picture is kept; 1 to 2.2."""
    condition_latents: Literal["unscaled", "scaled"] = "unscaled"
    """How the edit model saw the picture's latents in training: as the VAE makes them, as
    published, or scaled as noisy ones are."""

    def __post_init__(self) -> None:
        """Refuse no edit."""
        _check_some("instructions", self.instructions, "make it blue")


@dataclass(frozen=True)
class SelfGuidanceMethodConfig:
    """Self-guidance (arXiv 2306.00986): things are moved, resized or restyled by where the denoiser
    sees them."""

    edits: tuple[SelfGuidanceEdit, ...]
    """What is changed; all act together."""
    kind: Literal["self_guidance"] = "self_guidance"
    prompt: str | None = None
    """What the edited picture shows; empty for the same as before."""
    guidance: SelfGuidanceStrengthConfig = STRENGTH
    """How strongly, and in which steps."""

    def __post_init__(self) -> None:
        """Refuse no edit."""
        _check_some("edits", self.edits, "{kind: move, words: [duck], shift: [0.2, 0.0]}")


EditMethodConfig = (
    PromptToPromptMethodConfig
    | NullTextMethodConfig
    | DdsMethodConfig
    | InstructPix2PixMethodConfig
    | SelfGuidanceMethodConfig
)


@dataclass(frozen=True)
class ImageConditionConfig:
    """A condition that you made: edges, depth, normals or regions as the ControlNet knows them."""

    path: str
    """The picture."""
    kind: Literal["image"] = "image"
    fit: Literal["exact", "crop", "pad"] = "exact"
    """exact wants the prior's image size; crop and pad resize, to the middle square or all of it
    on white."""


@dataclass(frozen=True)
class CannyConditionConfig:
    """Edges that are found in a photograph (Canny 1986, thresholds as in OpenCV)."""

    path: str
    """The photograph."""
    kind: Literal["canny"] = "canny"
    low: float = 100.0
    """Weak edges stay above this where they touch strong ones, for bytes."""
    high: float = 200.0
    """Strong edges are above this, for bytes."""
    fit: Literal["crop", "pad"] = "crop"
    """crop takes the middle square, pad all of it on white."""

    def __post_init__(self) -> None:
        """Refuse thresholds in the wrong order."""
        if not 0.0 <= self.low <= self.high:
            raise ValueError(f"low is {self.low}, high {self.high} - expected 0 <= low <= high.")


@dataclass(frozen=True)
class SoftEdgeConditionConfig:
    """Soft edges of a photograph (HED, arXiv 1504.06375)."""

    path: str
    """The photograph."""
    weights: str
    """The network, a .safetensors file; none ships. Make one of public weights with: python -m
    image_tools.vision.convert_hed"""
    kind: Literal["soft_edge"] = "soft_edge"
    fit: Literal["crop", "pad"] = "crop"
    """crop takes the middle square, pad all of it on white."""


@dataclass(frozen=True)
class PoseConditionConfig:
    """The pose of the person nearest to the middle of a photograph, found by MoveNet and drawn as
    OpenPose does."""

    path: str
    """The photograph."""
    kind: Literal["pose"] = "pose"
    min_score: float = 0.3
    """Points that are less sure than this, 0 to 1, are not drawn."""
    fit: Literal["crop", "pad"] = "crop"
    """crop takes the middle square, pad all of it on white."""

    def __post_init__(self) -> None:
        """Refuse what is no score."""
        if not 0.0 <= self.min_score <= 1.0:
            raise ValueError(f"min_score is {self.min_score} - expected 0 to 1.")


@dataclass(frozen=True)
class PoseFileConditionConfig:
    """Poses that you have, of any number of people, drawn as OpenPose does."""

    path: str
    """OpenPose's JSON: people, each with pose_keypoints_2d of 18 (COCO) or 25 (BODY_25) points in
    pixels."""
    width: int
    """Columns of the picture that the file is about."""
    height: int
    """Its rows."""
    kind: Literal["pose_file"] = "pose_file"
    fit: Literal["crop", "pad"] = "crop"
    """crop takes the middle square, pad all of it."""

    def __post_init__(self) -> None:
        """Refuse a picture without pixels."""
        if self.width < 1 or self.height < 1:
            raise ValueError(f"width {self.width}, height {self.height} - expected 1 or more.")


ConditionConfig = (
    ImageConditionConfig
    | CannyConditionConfig
    | SoftEdgeConditionConfig
    | PoseConditionConfig
    | PoseFileConditionConfig
)


@dataclass(frozen=True, kw_only=True)
class ControlNetConfig(ControlConfig):
    """One ControlNet, what it sees, and how strongly it acts."""

    weights: str
    """A folder in diffusers layout, one .safetensors file of either layout, or the name of an
    adapter that ships with the package, such as pocket-control-edge."""
    condition: ConditionConfig
    """What it sees."""


@dataclass(frozen=True)
class ControlNetMethodConfig:
    """ControlNet (arXiv 2302.05543): one network for each kind of condition; several add up."""

    nets: tuple[ControlNetConfig, ...]
    """Networks and their conditions."""
    kind: Literal["controlnet"] = "controlnet"

    def __post_init__(self) -> None:
        """Refuse no network."""
        _check_some("nets", self.nets, "{weights: FOLDER, condition: {kind: canny, path: FILE}}")


@dataclass(frozen=True)
class UniMapConfig:
    """One of a Uni-ControlNet's conditions."""

    name: str
    """Which of the adapter's conditions it is: canny, mlsd, hed, sketch, openpose, midas or seg
    for the authors' own."""
    condition: ConditionConfig
    """The picture."""


@dataclass(frozen=True)
class UniControlNetMethodConfig:
    """Uni-ControlNet (arXiv 2305.16322): one adapter for all kinds of conditions, any of which may
    be given, and one for the look of a picture."""

    maps: tuple[UniMapConfig, ...] = ()
    """The conditions that are given."""
    kind: Literal["uni_controlnet"] = "uni_controlnet"
    content: UniContentConfig | None = None
    """A picture whose look is copied."""
    model: str = "pocket-uni"
    """A .safetensors file with the adapters, or the name of one that ships with the package."""
    strength: float = 1.0
    """Factor of the conditions' residuals; 0 switches them off."""

    def __post_init__(self) -> None:
        """Refuse no condition, and one that is given twice."""
        if self.content is None:
            _check_some("maps", self.maps, "{name: edge, condition: {kind: canny, path: FILE}}")
        names = [one.name for one in self.maps]
        if len(set(names)) < len(names):
            raise ValueError(f"maps are named {', '.join(names)} - expected each name once.")
        if self.strength < 0.0:
            raise ValueError(f"strength is {self.strength} - expected 0 or more.")


ControlMethodConfig = ControlNetMethodConfig | UniControlNetMethodConfig


@dataclass(frozen=True)
class ExplicitRegionsConfig(RegionalConfig):
    """Regions that you chose, as rectangles or as masks."""

    kind: Literal["explicit"] = "explicit"
    masks: tuple[str, ...] = ()
    """Pictures of the prior's image size, white where each region is, in the place of ratio's
    rectangles."""

    def __post_init__(self) -> None:
        """Refuse a layout that does not fit its regions, and masks that do not."""
        try:
            super().__post_init__()
        except RegionError as error:
            raise ValueError(str(error)) from error
        if self.masks and len(self.masks) != len(self.regions):
            raise ValueError(
                f"masks has {len(self.masks)} entries for {len(self.regions)} regions - expected "
                "one for each, or none."
            )


RegionsConfig = (
    RulePlannerConfig
    | FilePlannerConfig
    | EndpointPlannerConfig
    | LocalPlannerConfig
    | ExplicitRegionsConfig
)


def _check_some(name: str, entries: tuple, example: str) -> None:
    if not entries or any(isinstance(entry, str) and not entry.strip() for entry in entries):
        raise ValueError(f"{name} is empty - expected at least one, such as: {example}")

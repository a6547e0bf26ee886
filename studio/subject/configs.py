"""DreamBooth-to-3D (DreamBooth3D, arXiv 2303.13508) as frozen dataclasses, without torch.

A scene of ``task: dreambooth3d`` has a ``subject``: photos, how to learn them, and how to make
views of it that nobody photographed. Each stage says with its own ``subject`` which of the weights
that come out guide it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from guidance.control_sds_configs import SceneControlConfig
from guidance.schedules import ScheduleValue, check_schedule
from image_tools.configs import DdimConfig
from image_tools.personalization.dreambooth_configs import (
    DcoConfig,
    DreamBoothConfig,
    DreamBoothLoraConfig,
)
from image_tools.personalization.loop_configs import TuningConfig
from image_tools.personalization.photos_configs import PhotosConfig
from image_tools.vision.cutout_configs import CutoutConfig

__all__ = [
    "ConsistencySubjectConfig",
    "DreamBooth3DConfig",
    "PlaceholderTokenConfig",
    "PlainSubjectConfig",
    "PseudoViewsConfig",
    "RareTokenConfig",
    "ReconstructionConfig",
    "SecondTrainingConfig",
    "StageSubjectConfig",
    "SubjectWeights",
    "TokenConfig",
    "TrainingConfig",
]

SubjectWeights = Literal["partial", "full", "multiview"]
TrainingConfig = DreamBoothConfig | DreamBoothLoraConfig | DcoConfig
WORD_LOOP = TuningConfig(steps=300, learning_rate=5e-3, weight_decay=0.0)
FULL_LOOP = TuningConfig(steps=800, learning_rate=5e-6)
SECOND_LOOP = TuningConfig(steps=150, learning_rate=5e-6)
SAMPLER = DdimConfig()
SAMPLES = DdimConfig(steps=25)
PHOTOS = PhotosConfig()
FULL_TRAINING = DreamBoothConfig(loop=FULL_LOOP)
MAX_WORD = 40  # characters; a class word is a word or two


@dataclass(frozen=True)
class RareTokenConfig:
    """A word that the text encoder can spell but hardly met (arXiv 2208.12242, section 3.1)."""

    kind: Literal["rare"] = "rare"
    word: str = "sks"
    """The word; prompts name the subject by it and the class word, such as sks dog."""


@dataclass(frozen=True)
class PlaceholderTokenConfig:
    """A new word with a vector of its own, learned first (Textual Inversion, arXiv 2208.01618)."""

    kind: Literal["placeholder"] = "placeholder"
    word: str = "<my-thing>"
    """The new word; prompts name the subject by it alone."""
    vectors: int = 1
    """Vectors behind the word; they start from the class word's."""
    loop: TuningConfig = WORD_LOOP
    """How the vectors are learned, before anything else is."""

    def __post_init__(self) -> None:
        """Refuse a word without vectors."""
        if self.vectors < 1:
            raise ValueError(f"vectors is {self.vectors} - expected at least 1.")


TokenConfig = RareTokenConfig | PlaceholderTokenConfig


@dataclass(frozen=True)
class PlainSubjectConfig:
    """The subject's weights guide in the place of the prior's."""

    kind: Literal["plain"] = "plain"
    weights: SubjectWeights = "partial"
    """partial: after the first steps of the training, which still knows all sides of its class;
    full: at its end; multiview: trained again, on views of all sides too."""


@dataclass(frozen=True)
class ConsistencySubjectConfig:
    """DCO's consistency guidance: the prior draws the class from the view that the prompt names,
    and the subject's LoRA adds what makes it this one. It keeps the prior's knowledge of views
    without stopping the training early."""

    kind: Literal["consistency"] = "consistency"
    weights: SubjectWeights = "full"
    """Which LoRA is the student."""
    scale: ScheduleValue = 3.0
    """Weight of the student's term: 3 for images beside a guidance scale of 7.5, 10 to 30 in 3D
    beside 30 to 100. A schedule may let it grow once the shape stands."""
    parallel: float = 1.0
    """Factor of its part along the guidance direction; below 1 against over-saturation."""

    def __post_init__(self) -> None:
        """Refuse a negative weight."""
        check_schedule("scale", self.scale, low=0.0)


StageSubjectConfig = PlainSubjectConfig | ConsistencySubjectConfig
PLAIN_FULL = PlainSubjectConfig(weights="full")


@dataclass(frozen=True)
class PseudoViewsConfig:
    """Views that nobody photographed: renders of the stage before, redrawn by the trained model."""

    count: int = 16
    """Number of views, evenly around the object."""
    elevations_deg: tuple[float, ...] = (15.0,)
    """Elevations that the views take in turns, degrees."""
    strength: float = 0.7
    """t_pseudo: how far into the noise a render is taken before it is denoised, as a share of all
    timesteps. 0 keeps the render exactly, 1 keeps nothing of it; 0.6 to 0.8 changes the surface and
    keeps the view."""
    sampler: DdimConfig = SAMPLER
    """How the noise is taken away; of its steps, strength x steps are run."""
    subject: StageSubjectConfig = PLAIN_FULL
    """Which of the subject's weights redraw."""
    controls: tuple[SceneControlConfig, ...] = ()
    """ControlNets that see the renders' geometry and hold each view's pose: weights that learned a
    few photos forget what the words for sides mean, and turn all views to the photos' side."""
    cutout: CutoutConfig | None = None
    """Puts what the redrawn views have in common on white, or each on a plain colour, on which its
    render is drawn too, before and after: a white head on white is lost. Empty leaves the grounds
    that the prior drew, which the scene would then imitate by fog."""

    def __post_init__(self) -> None:
        """Refuse no views, and strengths that are no share."""
        if self.count < 1:
            raise ValueError(f"count is {self.count} - expected at least 1 view.")
        if not self.elevations_deg or any(not -90.0 < e < 90.0 for e in self.elevations_deg):
            raise ValueError(
                f"elevations_deg is {list(self.elevations_deg)} - expected some between -90 and 90."
            )
        if not 0.0 <= self.strength <= 1.0:
            raise ValueError(f"strength is {self.strength} - expected 0 to 1.")


@dataclass(frozen=True)
class SecondTrainingConfig:
    """The multi-view training: from the partial weights, on photos and pseudo views together. It is
    of the same kind as the first; batches and class images are those of the first."""

    start: Literal["partial", "full"] = "partial"
    """Weights to go on from. The partial ones, so that views and not the photos' side are learned;
    the full ones make sense for DCO, which forgets less."""
    loop: TuningConfig = SECOND_LOOP
    """Length, learning rate and bookkeeping."""


@dataclass(frozen=True)
class ReconstructionConfig:
    """How renders are compared with pseudo views, in stages with ``losses.reconstruction``.

    L1 and not L2, because pseudo views do not agree with each other to the pixel: L1 settles on a
    median, L2 on a blur. The term on finite differences at several scales asks for edges where the
    views have them, as a perceptual loss would, without another network.
    """

    views_per_step: int = 2
    """Pseudo views that a step renders; all come once before one comes again."""
    size: int = 64
    """Rows and columns of these renders; pseudo views are shrunk to it."""
    scales: int = 3
    """Number of resolutions, each half the one before."""
    gradient_weight: float = 1.0
    """Weight of the differences between neighbouring pixels beside the colours."""
    mask_margin: float | None = 0.1
    """Pixels further than this share of the image from the object as it was rendered do not count:
    redrawn views may have the photos' background there. Too small a share cuts off what the shape
    lacks and the views have; empty counts all pixels."""

    def __post_init__(self) -> None:
        """Refuse sizes and counts that leave nothing to compare."""
        if self.views_per_step < 1:
            raise ValueError(f"views_per_step is {self.views_per_step} - expected at least 1.")
        if not 8 <= self.size <= 2048:
            raise ValueError(f"size is {self.size} - expected 8 to 2048 pixels.")
        if self.scales < 1 or self.size // 2 ** (self.scales - 1) < 4:
            raise ValueError(
                f"scales is {self.scales} - expected at least 1, and 4 pixels at the last."
            )
        if self.gradient_weight < 0.0:
            raise ValueError(f"gradient_weight is {self.gradient_weight} - expected at least 0.")
        if self.mask_margin is not None and not 0.0 <= self.mask_margin <= 1.0:
            raise ValueError(f"mask_margin is {self.mask_margin} - expected 0 to 1, or nothing.")


@dataclass(frozen=True)
class DreamBooth3DConfig:
    """A subject from photos: how it is learned, and how unseen views of it are made."""

    images: str = ""
    """Folder with three to six photos of the subject: any size, PNG, JPEG, WebP and others."""
    word: str = ""
    """What the subject is, in a word or two that the prior knows: dog, teddy bear."""
    token: TokenConfig = RareTokenConfig()
    """The word that comes to mean this subject and no other."""
    template: str = "a photo of a {}"
    """Caption of the photos, with {} for the subject's name; with the class word it is the prompt
    of the class images."""
    captions: str | None = None
    """JSON file with a full description of each photo in place of the template's, as for studio
    personalize; its inserting token is the subject. DCO compares with the prior by base_prompts."""
    photos: PhotosConfig = PHOTOS
    """How photos become squares of the prior's size."""
    training: TrainingConfig = FULL_TRAINING
    """How the subject is learned."""
    partial_steps: int = 150
    """Steps of the training after which the partial weights are kept."""
    views: PseudoViewsConfig = PseudoViewsConfig()
    """Views for the second training and for the reconstruction."""
    second_training: SecondTrainingConfig = SecondTrainingConfig()
    """The training that gives the multiview weights."""
    reconstruction: ReconstructionConfig = ReconstructionConfig()
    """How renders are compared with the views."""
    samples: DdimConfig = SAMPLES
    """How the pictures are drawn that show in the report what each training learned."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant; photos and words are looked at when the run begins."""
        if self.template.count("{}") != 1:
            raise ValueError(
                f"template is {self.template!r} - expected {{}} once, where the subject goes."
            )
        if not 1 <= self.partial_steps <= self.training.loop.steps:
            raise ValueError(
                f"partial_steps is {self.partial_steps} - expected 1 to the "
                f"{self.training.loop.steps} steps of training.loop."
            )
        if len(self.word) > MAX_WORD:
            raise ValueError(
                f"word is {self.word[:MAX_WORD]!r}… - expected a word or two, such as dog."
            )

    @property
    def name(self) -> str:
        """How prompts name the subject: ``sks dog``, or the placeholder."""
        is_rare = isinstance(self.token, RareTokenConfig)
        return f"{self.token.word} {self.word}".strip() if is_rare else self.token.word

    def caption(self, *, of_class: bool = False) -> str:
        """The photos' caption, or the class images'."""
        return self.template.replace("{}", self.word if of_class else self.name)

    def class_prompt(self, prompt: str) -> str:
        """A prompt as a prior without the subject reads it."""
        return prompt.replace(self.name, self.word)

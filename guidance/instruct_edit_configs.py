"""Configuration of edits by instruction: frozen dataclasses, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from guidance.configs import TimestepsConfig, UniformTimestepsConfig, Weighting
from guidance.schedules import ScheduleValue, check_order, check_schedule
from image_tools.configs import DdimConfig

__all__ = ["DatasetUpdateConfig", "EditModelConfig", "InstructSDSConfig"]

TIMESTEPS = UniformTimestepsConfig()
SAMPLER = DdimConfig(steps=20)


@dataclass(frozen=True)
class EditModelConfig:
    """An InstructPix2Pix denoiser (arXiv 2211.09800), beside the stage's prior."""

    weights: str
    """A pipeline's folder or its unet folder in diffusers layout, one .safetensors file, or the
    name of a model that ships with the package, such as pocket-ip2p."""
    settings: str | None = None
    """For one file: a folder that holds the matching diffusers config.json; empty where it lies
    beside the file."""
    image_scale: float = 1.5
    """s_I: guidance towards the original view; higher keeps more of it."""
    condition_latents: Literal["unscaled", "scaled"] = "unscaled"
    """How the model saw the original's latents in training: as the VAE makes them, as published,
    or scaled as noisy ones are."""


@dataclass(frozen=True)
class InstructSDSConfig:
    """Score distillation with an edit model that sees the original from the same camera."""

    model: EditModelConfig
    """The edit model."""
    kind: Literal["instruct_sds"] = "instruct_sds"
    """Tag of this choice."""
    guidance_scale: float = 7.5
    """s_T: guidance towards the instruction."""
    guidance_rescale: float = 0.0
    """Share phi of the standard-deviation rescale (arXiv 2305.08891, Eq. 16); 0 = none."""
    weighting: Weighting = "sds"
    """w(t): sds = 1 - alpha_bar, uniform = 1, fantasia3d = sqrt(alpha_bar) (1 - alpha_bar)."""
    timesteps: TimestepsConfig = TIMESTEPS
    """How timesteps are chosen."""
    grad_clip: ScheduleValue | None = None
    """Largest absolute value of each entry of the latent gradient; empty does not clip."""

    def __post_init__(self) -> None:
        """Refuse a clip value below 0."""
        if self.grad_clip is not None:
            check_schedule("grad_clip", self.grad_clip, low=0.0)


@dataclass(frozen=True)
class DatasetUpdateConfig:
    """Views of the original that are edited one after the other, while the scene follows them
    (Instruct-NeRF2NeRF, arXiv 2303.12789, section 4.2)."""

    model: EditModelConfig
    """The edit model."""
    kind: Literal["dataset_update"] = "dataset_update"
    """Tag of this choice."""
    count: int = 32
    """Views of the dataset, evenly around the object; they replace the stage's random cameras."""
    elevations_deg: tuple[float, ...] = (15.0, 0.0, 30.0)
    """Elevations that the views take in turns, degrees."""
    views_per_step: int = 1
    """Views that a step renders and compares; all come once before one comes again."""
    every: int = 10
    """Steps between two updates; an update edits the views of its step."""
    sampler: DdimConfig = SAMPLER
    """How a view is edited. guidance_scale is s_T. Of the steps, the last share of them that the
    drawn noise level leaves is run."""
    min_t: ScheduleValue = 0.02
    """Least noise that a render is edited from, as a share of all timesteps."""
    max_t: ScheduleValue = 0.98
    """Most noise. Strong edits want min_t of 0.7."""
    gradient_weight: float = 1.0
    """Weight of the difference between neighbouring pixels beside that of colours, in the place of
    the paper's LPIPS: it asks for edges where the views have them, without another network."""
    scales: int = 3
    """Resolutions at which both are compared, each half the one before."""

    def __post_init__(self) -> None:
        """Refuse counts and noise levels that make no sense."""
        for name in ("count", "views_per_step", "every", "scales"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} - expected at least 1.")
        if self.views_per_step > self.count:
            raise ValueError(
                f"views_per_step is {self.views_per_step} and count {self.count} - expected no "
                "more than there are views."
            )
        if not self.elevations_deg or any(not -90.0 < e < 90.0 for e in self.elevations_deg):
            raise ValueError(
                f"elevations_deg is {list(self.elevations_deg)} - expected some between -90 and 90."
            )
        check_schedule("min_t", self.min_t, low=0.0, high=1.0)
        check_schedule("max_t", self.max_t, low=0.0, high=1.0)
        check_order("min_t", self.min_t, "max_t", self.max_t)
        if self.gradient_weight < 0.0:
            raise ValueError(f"gradient_weight is {self.gradient_weight} - expected at least 0.")

"""MS-Diffusion (arXiv 2406.07209): several subjects of one's own in one picture, each in its box.

An adapter turns each subject's image, with its box and phrase, into tokens
(``ms_diffusion_resampler``), to which the denoiser attends inside of the box beside the text
(``ms_diffusion_attention``). Unconditional rows have no subjects and are text alone. Scales of 0
are the inner prior bit for bit. Works with any prior of the Stable Diffusion family.

    adapter = read_ms_adapter(Path("ms_adapter.bin"), prior.unet)
    subjects = see_subjects(prior, clip, config, images).at(adapter)
    prior = MSDiffusionPrior(prior, adapter, subjects)
    images = sample_images(prior, ["a dog and a cat"], generators=[generator])
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from image_tools.diffusion.additions import DenoiserCall
from image_tools.diffusion.conditions import Condition
from image_tools.diffusion.modified import ModifiedPrior, conditional_rows
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.sampling import ddim_steps
from image_tools.diffusion.step_clock import StepClock
from image_tools.errors import UnsupportedModel
from image_tools.personalization.ip_adapter import ImageKeys, layer_widths, start_from_text
from image_tools.personalization.ip_adapter_configs import ViewFadeConfig
from image_tools.personalization.ip_adapter_prior import view_scale
from image_tools.personalization.ms_diffusion_attention import (
    PhraseMaps,
    SubjectAttention,
    SubjectRows,
)
from image_tools.personalization.ms_diffusion_configs import (
    AutoLayoutConfig,
    MSShape,
)
from image_tools.personalization.ms_diffusion_resampler import GroundingResampler

__all__ = [
    "MSAdapter",
    "MSDiffusionPrior",
    "SubjectAddition",
    "stack_subjects",
]

FADE = ViewFadeConfig()


class MSAdapter(nn.Module):
    """Everything that MS-Diffusion adds to a denoiser, by the names of the published file."""

    def __init__(self, unet: nn.Module, shape: MSShape) -> None:
        """An adapter of a denoiser's layers, untrained.

        Raises:
            UnsupportedModel: the denoiser's text has another width.
        """
        super().__init__()
        widths = layer_widths(unet)
        found = {text for text, _ in widths.values()}
        if found != {shape.text_width}:
            raise UnsupportedModel(
                f"The denoiser reads text of {found.pop()} numbers, the adapter was made for "
                f"{shape.text_width}. Expected an adapter of this prior's family."
            )
        self.shape = shape
        self.image_proj = GroundingResampler(shape)
        self.ms_adapter = nn.ModuleDict({k: ImageKeys(*pair) for k, pair in widths.items()})
        self.dummy_image_tokens = nn.Parameter(torch.randn(1, shape.dummies, shape.text_width))

    @torch.no_grad()
    def start(self, unet: nn.Module, generator: torch.Generator) -> None:
        """Initial values: the denoiser's own projections of text, and draws for the rest."""
        self.image_proj.draw(generator)
        self.dummy_image_tokens.normal_(generator=generator)
        start_from_text(self.ms_adapter, unet)

    @property
    def keys(self) -> dict[int, nn.Module]:
        """Keys and values for images by the index of their layer."""
        return {int(index): own for index, own in self.ms_adapter.items()}


class MSDiffusionPrior(ModifiedPrior):
    """A prior whose pictures hold subjects."""

    def __init__(
        self,
        plain: NoisePrior,
        adapter: MSAdapter,
        subjects: SubjectRows,
        *,
        fade: ViewFadeConfig = FADE,
        layout: AutoLayoutConfig | None = None,
        steps: int | None = None,
    ) -> None:
        """Wrap a prior.

        Args:
            plain: the prior that the adapter was trained for.
            adapter: makes tokens and attends to them.
            subjects: one row, or one for each image of a batch.
            fade: how subjects count by the view, where rows know from where they are seen.
            layout: finds places while a sampler draws; None for boxes alone.
            steps: number of steps of that sampler, for ``layout``.

        Raises:
            ValueError: a layout without steps.
        """
        super().__init__(plain)
        self.adapter, self.subjects, self.fade = adapter, subjects, fade
        self.maps, self.clock = None, None
        if layout is None:
            return
        if steps is None:
            raise ValueError("a layout came without steps. Give the sampler's number of them.")
        self.maps = PhraseMaps(layout)
        self.clock = StepClock([step.t for step in ddim_steps(plain, steps)])

    def showing(self, subjects: SubjectRows) -> MSDiffusionPrior:
        """The same prior with other subjects, or the same ones at other places."""
        moved = copy.copy(self)
        moved.subjects = subjects
        return moved

    def modify(self, condition: Condition, rows: int, *, is_cond: bool) -> Condition:
        """The condition with its subjects; none of them in unconditional rows."""
        if not bool(self.subjects.scales.any()):
            return condition
        condition = condition.expand(rows)
        sees = conditional_rows(condition, rows, is_cond=is_cond)
        subjects = self.subjects.repeated(rows).kept(sees)
        facing = view_scale(condition.text.azimuth_deg, rows, least=self.fade.least)
        subjects = replace(subjects, scales=subjects.scales * facing[:, None].to(subjects.scales))
        addition = SubjectAddition(self.adapter, subjects, self.maps, self.clock)
        return replace(condition, additions=(*condition.additions, addition))


@dataclass(frozen=True)
class SubjectAddition:
    """Subjects for the rows of a denoiser call."""

    adapter: MSAdapter
    subjects: SubjectRows
    maps: PhraseMaps | None
    clock: StepClock | None

    def __len__(self) -> int:
        return len(self.subjects)

    def expand(self, rows: int) -> SubjectAddition:
        """Itself, or its rows repeated."""
        return replace(self, subjects=self.subjects.repeated(rows))

    def stack(self, others: Sequence[SubjectAddition]) -> SubjectAddition:
        """More rows of the same adapter."""
        return replace(self, subjects=self.subjects.below([o.subjects for o in others]))

    def apply(self, call: DenoiserCall) -> DenoiserCall:
        """The call with attention to the subjects."""
        operation = SubjectAttention(
            self.adapter.keys,
            self.adapter.dummy_image_tokens,
            self.subjects,
            maps=self.maps,
            step=0 if self.clock is None else self.clock.step(call.t),
        )
        return call.with_operations(operation)


def stack_subjects(rows: Sequence[SubjectRows]) -> SubjectRows:
    """Subjects of several images of a batch; where one has fewer, the rest are nowhere."""
    most = max(row.boxes.shape[1] for row in rows)
    return rows[0].padded(most).below([row.padded(most) for row in rows[1:]])

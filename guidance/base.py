"""What a guidance rule is: from renders and cameras to a gradient, and what it keeps between steps.

The runner calls a rule once per optimiser step, and ``after_step`` once behind it, with the renders
of that step cut off from the scene; a rule that trains a network of its own does it there. Whatever
the next step depends on beside the generators is in ``state``, so that a run resumes bit for bit.

    class MyRule(GuidanceRule):
        def __call__(self, images, cameras, *, fraction, generator): ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.views import CameraAngles
from image_tools.diffusion.protocol import NoisePrior
from renderers.cameras import Cameras
from renderers.outputs import RenderOutput

__all__ = ["GuidanceOutput", "GuidanceRule"]


@dataclass(frozen=True)
class GuidanceOutput:
    """What a guidance rule hands back."""

    loss: Float[Tensor, ""]
    """Back-propagates the rule's gradient; its value means nothing."""
    grad_norm: Float[Tensor, ""]
    """Mean norm of the latent gradients: what to log instead of the loss."""
    t: Int[Tensor, " b"]
    """Timestep of each view."""
    non_finite: Int[Tensor, ""]
    """Entries of the gradient that were NaN or infinite and count as 0."""
    x0: Callable[[], Float[Tensor, "b h w 3"]]
    """Decodes the clean images that the guided prediction implies, for previews."""
    read_back: Callable[[], Float[Tensor, ""]] | None = None
    """Pulls the renders to what the prior's autoencoder reads them as; rules without one: None."""


class GuidanceRule(ABC):
    """Turns the prior's predictions into a gradient on renders."""

    prior: NoisePrior
    wants_normals: bool = False
    """Whether ``look`` needs renders with normals."""

    def choose_views(self, drawn: Cameras) -> Cameras:
        """The views of a step, before it is rendered; most rules take those that were drawn."""
        return drawn

    def look(self, output: RenderOutput, cameras: Cameras) -> None:  # noqa: B027 - colours do
        """See the whole render that the next call is about; most rules need its colours alone."""

    @abstractmethod
    def __call__(
        self,
        images: Float[Tensor, "b h w 3"],
        cameras: CameraAngles,
        *,
        fraction: float,
        generator: torch.Generator,
    ) -> GuidanceOutput:
        """Guidance for a batch of renders; it must not change the rule's state.

        Args:
            images: renders in 0..1, with gradient.
            cameras: one per render.
            fraction: where in the stage we are, 0..1.
            generator: source of timesteps and noise.
        """

    def after_step(
        self,
        images: Float[Tensor, "b h w 3"],
        cameras: CameraAngles,
        *,
        fraction: float,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Learn from the renders of the step just made; most rules have nothing to learn.

        Args:
            images: the same renders, without gradient.
            cameras: one per render.
            fraction: where in the stage the step was, 0..1.
            generator: source of the draws; no other part of the run draws from it.

        Returns:
            A number for each of ``metric_names``.
        """
        return {}

    def metric_names(self) -> tuple[str, ...]:
        """Columns that ``after_step`` adds to the metrics."""
        return ()

    def state(self) -> dict[str, Tensor]:
        """What a bit-exact resume needs beside the generators, by flat name."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027 - nothing to load
        """Go on from what ``state`` returned."""

    def close(self) -> None:  # noqa: B027 - nothing to take off
        """Leave the prior as it was found; called once, when the stage ends."""

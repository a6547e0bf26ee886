"""Guards that end a hopeless run early with one clear line: NaN, empty or full scene, blow-up."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from studio.errors import Diverged

__all__ = [
    "GuidanceWatchdog",
    "OpacityWatchdog",
    "check_gradients",
    "check_losses",
    "check_parameters",
]

MAX_PARAMETER = 1e6  # far beyond any trained field; reached only when the optimiser runs away
EMPTY_OPACITY = 0.004  # mean over a batch: about 16 of 64 x 64 pixels
FULL_OPACITY = 0.998
_ADVICE = (
    "Lower the guidance scale or the learning rates, clip the gradient with guidance.grad_clip, "
    "or try another seed."
)
NON_FINITE_PATIENCE = 10
PATIENCE = 60  # steps in a row; a single batch may look past a small object


def check_losses(losses: Mapping[str, Tensor], *, step: int) -> None:
    """Refuse a loss that is not a number.

    Raises:
        Diverged: naming the loss and the step.
    """
    for name, value in losses.items():
        if not math.isfinite(float(value.detach())):
            raise Diverged(f"Step {step}: the loss '{name}' is {float(value.detach())}. {_ADVICE}")


def check_gradients(parameters: Mapping[str, Tensor], *, step: int) -> float:
    """Total gradient norm; one pass over the gradients, names only when something is wrong.

    Raises:
        Diverged: naming the first tensor whose gradient is not finite.
    """
    grads = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    if not grads:
        raise Diverged(f"Step {step}: no parameter received a gradient. Is the whole view empty?")
    total = float(torch.stack(torch._foreach_norm(list(grads.values()))).norm())
    if not math.isfinite(total):
        for name, grad in grads.items():
            bad = int((~grad.isfinite()).sum())
            if bad:
                raise Diverged(
                    f"Step {step}: the gradient of '{name}' has {bad} of {grad.numel()} values "
                    f"that are NaN or infinite. {_ADVICE}"
                )
    return total


def check_parameters(parameters: Mapping[str, Tensor], *, step: int) -> None:
    """Refuse parameters that are not finite or that ran away.

    Raises:
        Diverged: naming the tensor and its largest value.
    """
    for name, parameter in parameters.items():
        largest = float(parameter.detach().abs().max()) if parameter.numel() else 0.0
        if math.isnan(largest):
            bad = int(parameter.isnan().sum())
            raise Diverged(
                f"Step {step}: {bad} of {parameter.numel()} values of the tensor '{name}' are NaN. "
                f"{_ADVICE}"
            )
        if largest >= MAX_PARAMETER:
            raise Diverged(
                f"Step {step}: the tensor '{name}' reached {largest:g} - expected below "
                f"{MAX_PARAMETER:g}. {_ADVICE}"
            )


class OpacityWatchdog:
    """Notices a scene that vanished or filled the whole view, after ``PATIENCE`` steps in a row."""

    def __init__(self) -> None:
        """Start counting."""
        self.empty_steps = 0
        self.full_steps = 0

    def check(self, mean_opacity: float, *, step: int) -> None:
        """Count a step with this mean opacity over its batch.

        Raises:
            Diverged: empty or full for too long.
        """
        self.empty_steps = self.empty_steps + 1 if mean_opacity < EMPTY_OPACITY else 0
        self.full_steps = self.full_steps + 1 if mean_opacity > FULL_OPACITY else 0
        if self.empty_steps >= PATIENCE:
            raise Diverged(
                f"Step {step}: the scene is empty (mean opacity {mean_opacity:.4f} for {PATIENCE} "
                "steps). Lower losses.sparsity and losses.opaque, or try another seed."
            )
        if self.full_steps >= PATIENCE:
            raise Diverged(
                f"Step {step}: fog fills the whole view (mean opacity {mean_opacity:.4f} for "
                f"{PATIENCE} steps). Raise losses.sparsity, move the cameras back, or try another "
                "seed."
            )


class GuidanceWatchdog:
    """Tolerates a rare overflow in the prior (those entries count as 0), but not a lasting one."""

    def __init__(self) -> None:
        """Start counting."""
        self.bad_steps = 0

    def check(self, non_finite: int, *, step: int) -> None:
        """Count a step whose guidance gradient had this many NaN or infinite entries.

        Raises:
            Diverged: it happened ``NON_FINITE_PATIENCE`` steps in a row.
        """
        self.bad_steps = self.bad_steps + 1 if non_finite else 0
        if self.bad_steps >= NON_FINITE_PATIENCE:
            raise Diverged(
                f"Step {step}: the gradient of 'guidance' has {non_finite} values that are NaN or "
                f"infinite, for {NON_FINITE_PATIENCE} steps in a row. The prior overflows: set "
                "prior.memory.dtype=float32, or prior.memory.vae_dtype=float32."
            )

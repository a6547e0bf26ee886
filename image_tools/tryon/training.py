"""What all trainers of try-on networks share: whole modules in a resumable loop.

result = train_modules({"comp": encoder}, loss, config, folder, prior=prior, identity="...")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.stock_modules import gradient_checkpointing, write_module
from image_tools.personalization.dreambooth import TrainingResult, identity_of
from image_tools.personalization.loop import LoopHooks, ParameterGroup, TuningLoop
from image_tools.personalization.loop_configs import TuningConfig

__all__ = ["TrainingConfig", "draw_latents", "draw_rows", "train_modules", "write_modules"]


class TrainingConfig(Protocol):
    """What the settings of every trainer have; they are dataclasses."""

    loop: TuningConfig
    checkpointing: bool


def draw_latents(
    prior: DiffusionPrior, images: Float[Tensor, "b h w 3"], generator: torch.Generator
) -> Float[Tensor, "b c s t"]:
    """Latents of pictures as the VAE's posterior has them."""
    mean, std = prior.encode_posterior(images.to(prior.device))
    return mean + std * torch.randn(mean.shape, generator=generator).to(mean)


def draw_rows(rows: int, share: float, generator: torch.Generator) -> Bool[Tensor, " rows"]:
    """Which rows are left out, each with probability ``share``."""
    return torch.rand(rows, generator=generator) < share


def write_modules(modules: Mapping[str, nn.Module], place: Path) -> list[Path]:
    """Write diffusers modules into a folder each, by its name."""
    place.mkdir(parents=True, exist_ok=True)
    for name, module in modules.items():
        write_module(module, place / name)
    return [place / name for name in modules]


def train_modules(
    trained: Sequence[nn.Module],
    loss: Callable[[int, torch.Generator], Tensor],
    config: TrainingConfig,
    folder: Path,
    *,
    write: Callable[[Path], list[Path]],
    prior: DiffusionPrior,
    identity: str,
    recomputed: Sequence[nn.Module] = (),
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Train whole modules; calling again with the same folder goes on.

    Args:
        trained: what learns; float32. It is trained in place, and frozen at the end.
        loss: mean loss of batch number k, which draws from the generator only.
        config: settings.
        folder: the training's own.
        write: writes what is learned so far into a folder and says where.
        prior: what they are trained beside; left as it is found.
        identity: what the batches are; a resumed training must say the same.
        recomputed: modules whose activations are recomputed if the settings say so.
        hooks: progress, samples, a stop request.

    Raises:
        StudioError: the folder holds another training, or a module is not float32.
    """
    hooks = hooks or LoopHooks()
    loop = TuningLoop(
        [ParameterGroup(_named(trained))],
        config.loop,
        folder,
        device=prior.device,
        frozen_dtype=prior.dtype,
        identity=identity_of(config, prior.fingerprint, [], {"batches": identity}),
    )

    def checkpoint(step: int) -> None:
        write(_place(folder, step))
        hooks.checkpoint(step)

    with gradient_checkpointing(recomputed, config.checkpointing):
        finished = loop.run(loss, replace(hooks, checkpoint=checkpoint))
    for module in trained:
        module.requires_grad_(False)
    # Checkpoints of earlier calls are results as well.
    steps = sorted(step for step in set(config.loop.checkpoint_steps) if step <= loop.step)
    kept = [path for step in steps for path in sorted(_place(folder, step).glob("*"))]
    return TrainingResult(finished, loop.step, (*kept, *(write(folder) if finished else ())))


def _place(folder: Path, step: int) -> Path:
    """Where modules are written after ``step`` steps."""
    return folder / f"step-{step:06d}"


def _named(modules: Sequence[nn.Module]) -> dict[str, nn.Parameter]:
    """All parameters by a name of their own."""
    return {
        f"{number}.{name}": parameter
        for number, module in enumerate(modules)
        for name, parameter in module.named_parameters()
    }

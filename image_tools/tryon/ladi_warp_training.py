"""Training of the two networks that bend garments (LaDI-VTON, arXiv 2305.13501, section 3.2).

    spline        L1(bent, worn) + 0.01 regularisers, at the network's own size
    refinement    L1(painted, worn) + 0.25 perceptual distance; the spline is frozen

``worn`` is the garment as the person's picture shows it, on white. Batch k depends on its number
and the generator alone, and the statistics of batch normalisation are saved with the weights, so
that a killed training goes on bit for bit.

    tps = train_spline(WarpNet(WarpSettings()), batches, WarpTrainingConfig(), folder, identity="")
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.stock_modules import write_module
from image_tools.personalization.dreambooth import TrainingResult
from image_tools.personalization.loop import LoopHooks, ParameterGroup, TuningLoop
from image_tools.tryon.ladi_configs import WarpTrainingConfig
from image_tools.tryon.ladi_warp import MODEL, GarmentWarp, WarpInputs
from image_tools.tryon.own_modules import KeptBuffers, OwnModule
from image_tools.tryon.perceptual import PictureDistance
from image_tools.tryon.samples import TryOnBatches, TryOnSample
from image_tools.tryon.warp_refine import RefinementNet
from image_tools.tryon.warp_tps import WarpNet, spline_regulariser, warp

__all__ = ["train_refinement", "train_spline", "worn_on_white"]


def worn_on_white(sample: TryOnSample, device: torch.device) -> Float[Tensor, "b 3 h w"]:
    """The garment cut out of the person's picture, -1..1."""
    mask = sample.need("worn_mask", model=f"{MODEL}'s training").to(device)
    shown = torch.lerp(
        torch.ones_like(sample.person, device=device), sample.person.to(device), mask
    )
    return shown.movedim(-1, 1) * 2.0 - 1.0


def train_spline(
    tps: WarpNet,
    batches: TryOnBatches,
    config: WarpTrainingConfig,
    folder: Path,
    *,
    identity: str,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Train the network of control points; calling again with the same folder goes on.

    Args:
        tps: float32, trained in place, frozen at the end. It is written to the folder ``tps``.
        batches: people who wear their garments, with keypoints and ``worn_mask``.
        config: settings.
        folder: the training's own.
        identity: what the batches are; a resumed training must say the same.
        hooks: progress, samples, a stop request.
    """
    device, size = next(tps.parameters()).device, tps.settings.size

    def loss(number: int, generator: torch.Generator) -> Float[Tensor, ""]:
        sample = batches(number, generator)
        garment, person = WarpInputs(sample, device).small(size)
        worn = F.interpolate(worn_on_white(sample, device), size, mode="bilinear", antialias=True)
        points = tps(garment, person)
        bent = warp(garment, tps.grid(points))
        return F.l1_loss(bent, worn) + config.regularisation * spline_regulariser(points)

    return _train("tps", tps, loss, config, folder, identity, hooks)


def train_refinement(
    bend: GarmentWarp,
    batches: TryOnBatches,
    config: WarpTrainingConfig,
    folder: Path,
    *,
    identity: str,
    perceptual: PictureDistance | None = None,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Train ``bend.refinement`` behind a frozen spline; other arguments as of ``train_spline``.

    Args:
        bend: both networks; the result is written to the folder ``refinement``.
        batches: as for the spline.
        config: settings.
        folder: the training's own.
        identity: what the batches are.
        perceptual: distance of pictures; left out of the loss where there is none.
        hooks: progress, samples, a stop request.
    """
    net: RefinementNet = bend.refinement

    def loss(number: int, generator: torch.Generator) -> Float[Tensor, ""]:
        sample = batches(number, generator)
        inputs = WarpInputs(sample, bend.device)
        with torch.no_grad():
            bent = bend.bent(inputs)
        painted = net(torch.cat([inputs.person, bent], dim=1))
        worn = worn_on_white(sample, bend.device)
        total = F.l1_loss(painted, worn)
        if perceptual is not None and config.perceptual:
            total = total + config.perceptual * perceptual(painted, worn)
        return total

    return _train("refinement", net, loss, config, folder, identity, hooks)


def _train(
    name: str,
    net: OwnModule,
    loss: Callable[[int, torch.Generator], Tensor],
    config: WarpTrainingConfig,
    folder: Path,
    identity: str,
    hooks: LoopHooks | None,
) -> TrainingResult:
    """A loop over one network and its running statistics."""
    hooks, buffers = hooks or LoopHooks(), KeptBuffers(net)
    kept = {f"kept.{key}": parameter for key, parameter in buffers.parameters.items()}
    loop = TuningLoop(
        [ParameterGroup(dict(net.named_parameters())), ParameterGroup(kept)],
        config.loop,
        folder,
        device=next(net.parameters()).device,
        identity=_identity(name, config, identity),
    )
    buffers.restore()
    net.train()

    def after_step(step: int) -> None:
        buffers.keep()
        hooks.after_step(step)

    finished = loop.run(loss, replace(hooks, after_step=after_step))
    net.eval().requires_grad_(False)
    if not finished:
        return TrainingResult(False, loop.step, ())
    write_module(net, folder / name)
    return TrainingResult(True, loop.step, (folder / name,))


def _identity(name: str, config: WarpTrainingConfig, identity: str) -> str:
    """What two trainings that are one must share; bookkeeping and length may differ."""
    free = {"steps", "save_every", "sample_every", "log_every", "checkpoint_steps"}
    settings = dataclasses.asdict(config)
    settings["loop"] = {k: v for k, v in settings["loop"].items() if k not in free}
    said = json.dumps([name, settings, identity], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:32]

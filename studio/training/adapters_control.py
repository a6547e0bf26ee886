"""The recipe of pocket's ControlNets: exact depth, normals, edges, regions by kind or keypoints.

As ControlNet (arXiv 2302.05543, section 3.3): a copy of the frozen denoiser's encoder is trained
beside it, and half of the prompts are empty. Deviations: a learning rate for a network of 3 M
parameters, averaged weights, one timestep from each part of the schedule in every batch, noisy ones
a little more often, because they decide the silhouette.

What is written is a stock ``ControlNetModel`` folder in half precision with ``training.json`` and
``evaluation.json``. Stages, each resumable and skipped once finished: render, encode, train, write;
then it is measured.

    train_control("depth", PRESETS["cpu"], work, start=start, out=out, device=device, log=print)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.control.control_configs import ControlConfig
from image_tools.control.control_weights import read_controlnet
from image_tools.control.controlnet import Control, ControlledPrior
from image_tools.control.controlnet_training import new_controlnet
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.denoising import denoising_errors
from scenes.toybox.samples import SampleConfig
from studio.evaluation.controls import (
    ControlCases,
    ControlEvalConfig,
    ControlReport,
    evaluate_controls,
)
from studio.evaluation.judge import load_judge
from studio.training.adapter_parts import (
    EncodedViews,
    draw_velocity,
    encode_views,
    step_generator,
    write_card,
    write_figures,
)
from studio.training.buffer_views import (
    EDGE,
    BufferViewCache,
    BufferViewConfig,
    condition_images,
    render_buffer_views,
    silhouettes,
)
from studio.training.loop import LoopConfig, TrainingLoop
from studio.training.start import note_start, unet_digest

__all__ = [
    "PRESETS",
    "ControlRecipe",
    "control_cases",
    "control_loss",
    "evaluation_views",
    "measure_control",
    "train_control",
]

Log = Callable[[str], None]


@dataclass(frozen=True)
class ControlRecipe:
    """All choices of the recipe."""

    views: BufferViewConfig = field(default_factory=BufferViewConfig)
    """The rendered views."""
    batch_size: int = 16
    """Views a step."""
    empty_prompts: float = 0.5
    """Share of empty prompts, so that the condition alone says enough."""
    noise_tilt: float = 1.25
    """Timesteps have density p (t/T)^(p-1); more draws noisy ones more often."""
    seed: int = 31
    """Seed of batches and noise."""
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=3000, learning_rate=5e-4, warmup=100, ema_decay=0.998, save_every_s=120.0
        )
    )
    """Length and learning rate."""
    evaluation: ControlEvalConfig = field(default_factory=ControlEvalConfig)
    """How the result is measured."""


PRESETS: dict[str, ControlRecipe] = {
    "cpu": ControlRecipe(),
    "gpu": ControlRecipe(
        views=BufferViewConfig(views=16_000),
        batch_size=128,
        loop=replace(ControlRecipe().loop, steps=2000, learning_rate=8e-4),
    ),
}


def train_control(
    name: str,
    config: ControlRecipe,
    work: Path,
    *,
    start: Path,
    out: Path,
    device: torch.device,
    log: Log,
    views: Path | None = None,
) -> dict[str, float]:
    """Run the recipe in the folder ``work`` and write the ControlNet to ``out``.

    Args:
        name: the condition, one of ``buffer_views.CONDITIONS``.
        config: a preset or a variation of one.
        work: training folder; calling again continues there.
        start: the prior to be controlled, in stock diffusers layout.
        out: a new or existing folder, replaced file by file.
        device: where networks run; rendering is always on the CPU.
        log: receives progress lines.
        views: training folder whose rendered views are used too; ``work``.

    Returns:
        The measured figures.

    Raises:
        ConfigError: ``work`` began from another prior, or its cache has another size.
    """
    note_start(start, work)
    prior = load_folder(start, device)
    data = encode_views(views or work, config.views, start, device=device, log=log)
    torch.manual_seed(config.seed)  # the convolutions of the condition image
    controlnet = new_controlnet(prior)
    loss = control_loss(name, config, prior, controlnet, data)
    controlnet.requires_grad_(True)
    loop = TrainingLoop(controlnet, config.loop, work / "controlnet")
    loop.run(loss, log=log)
    loop.load_average()
    controlnet.requires_grad_(False).cpu().half()
    out.mkdir(parents=True, exist_ok=True)
    controlnet.save_pretrained(out)
    facts = {"start": unet_digest(start), "seconds": round(loop.seconds), "steps": loop.step}
    write_card(out, {"condition": name, "config": asdict(config), "facts": facts})
    report = measure_control(name, config.evaluation, prior, out, work, log=log)
    return write_figures(out, report)


def control_loss(
    name: str,
    config: ControlRecipe,
    prior: DiffusionPrior,
    controlnet: nn.Module,
    data: EncodedViews,
) -> Callable[[int], Float[Tensor, ""]]:
    """The loss of a step: mean squared error of v with this condition."""
    blank = torch.zeros(1, prior.image_size, prior.image_size, 3)
    controlled = ControlledPrior(prior, [Control(controlnet, blank, name=name)])

    def loss_at(step: int) -> Float[Tensor, ""]:
        rng = np.random.default_rng([config.seed, step])
        rows = np.sort(rng.integers(0, len(data.views), config.batch_size))
        latents, text = data.batch(rows, rng.random(len(rows)) < config.empty_prompts)
        generator = step_generator(config.seed, step)
        noisy = draw_velocity(prior, latents, generator, tilt=config.noise_tilt)
        images = condition_images(data.views.buffers[rows], name)
        controlled.show([images.to(prior.device)])
        return denoising_errors(controlled, noisy, text.to(prior.device)).mean()

    return loss_at


def measure_control(
    name: str,
    config: ControlEvalConfig,
    prior: DiffusionPrior,
    folder: Path,
    work: Path,
    *,
    log: Log,
) -> ControlReport:
    """Sample a written ControlNet on individuals that training never saw, and measure.

    Args:
        name: its condition.
        config: how many samples.
        prior: what it controls.
        folder: the ControlNet's.
        work: where the evaluation's views are kept.
        log: receives progress lines.
    """
    views = evaluation_views(work, config, prior.image_size, log=log)
    controlnet = read_controlnet(ControlConfig(weights=str(folder))).to(prior.device)

    def controlled(rows: slice) -> ControlledPrior:
        images = condition_images(views.buffers[rows], name).to(prior.device)
        return ControlledPrior(prior, [Control(controlnet, images, name=name)])

    judge, cases = load_judge(), control_cases(views)
    return evaluate_controls(prior, {name: controlled}, judge, cases, config, log=log)


def evaluation_views(
    work: Path, config: ControlEvalConfig, image_size: int, *, log: Log
) -> BufferViewCache:
    """Views of single objects that no training saw, on white; captions without view words."""
    samples = SampleConfig(
        image_size=image_size,
        evaluation=True,
        pairs=0.0,
        white_background=1.0,
        caption_view=0.0,
    )
    views = BufferViewConfig(views=config.samples, seed=config.seed, samples=samples)
    return render_buffer_views(work / "evaluation_views", views, log=log)


def control_cases(views: BufferViewCache) -> ControlCases:
    """What views ask for, and what is true of them."""
    buffers = np.array(views.buffers)
    return ControlCases(
        prompts=tuple(views.captions),
        masks=silhouettes(buffers),
        edges=buffers[..., EDGE] > 0,
        labels=views.labels,
        renders=torch.from_numpy(np.array(views.images)).float() / 255.0,
    )

"""The recipe of pocket-uni: one local adapter for all maps, and a global one for colours.

As Uni-ControlNet (arXiv 2305.16322): first the local adapter alone, which sees any subset of depth,
normals, edges, regions and keypoints, then the global one alone. Deviations: widths and learning
rates for small networks, averaged weights, and an embedding without weights in the place of CLIP's
(``image_tools.control.color_embedding``), so that the judge stays independent of what it judges.

What is written is ``uni.safetensors`` by the authors' names, in half precision, ``training.json``
and ``evaluation.json``. Stages, each resumable and skipped once finished: render, encode, train the
local adapter, train the global one, write; then both are measured.

    train_uni(PRESETS["cpu"], work, start=start, out=out, device=device, log=print)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.control.color_embedding import color_embedding
from image_tools.control.uni_adapters import GlobalAdapter, LocalAdapter
from image_tools.control.uni_configs import (
    GlobalAdapterSettings,
    LocalAdapterSettings,
    UniDropoutConfig,
)
from image_tools.control.uni_controlnet import UniControlledPrior, draw_kept
from image_tools.control.uni_training import GlobalDenoiser, LocalDenoiser
from image_tools.control.uni_weights import read_uni, write_uni
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.prior import DiffusionPrior
from scenes.toybox.captions import with_article
from scenes.toybox.catalog import KIND_NAMES, KINDS
from studio.evaluation.controls import (
    ControlCases,
    ControlEvalConfig,
    ControlReport,
    color_transfer,
    evaluate_controls,
)
from studio.evaluation.intervals import Estimate
from studio.evaluation.judge import load_judge
from studio.training.adapter_parts import (
    EncodedViews,
    draw_velocity,
    encode_views,
    step_generator,
    write_card,
    write_figures,
)
from studio.training.adapters_control import control_cases, evaluation_views
from studio.training.buffer_views import CONDITIONS, BufferViewConfig, condition_images
from studio.training.loop import LoopConfig, TrainingLoop
from studio.training.start import note_start, unet_digest

__all__ = [
    "PRESETS",
    "UniRecipe",
    "global_loss",
    "local_loss",
    "measure_look",
    "measure_uni",
    "train_uni",
]

FILE_NAME = "uni.safetensors"
Log = Callable[[str], None]
LossAt = Callable[[int], Float[Tensor, ""]]


@dataclass(frozen=True)
class UniRecipe:
    """All choices of the recipe."""

    views: BufferViewConfig = field(default_factory=BufferViewConfig)
    """The rendered views."""
    local: LocalAdapterSettings = field(
        default_factory=lambda: LocalAdapterSettings(
            conditions=CONDITIONS,
            stem_widths=(16, 32, 32, 64, 64),
            level_widths=(64, 96, 128),
            image_factor=4,
        )
    )
    """Shape of the local adapter."""
    content: GlobalAdapterSettings = field(
        default_factory=lambda: GlobalAdapterSettings(width=384, tokens=2, expansion=0.25)
    )
    """Shape of the global adapter; its width is that of the text and of the embedding. With the
    authors' expansion of 4 it would weigh as much as three of these denoisers."""
    dropout: UniDropoutConfig = field(default_factory=UniDropoutConfig)
    """What is hidden from the adapters, and of the prompt."""
    batch_size: int = 16
    """Views a step."""
    noise_tilt: float = 1.25
    """Timesteps have density p (t/T)^(p-1); more draws noisy ones more often."""
    seed: int = 51
    """Seed of initial weights, batches and noise."""
    local_loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=5000, learning_rate=5e-4, ema_decay=0.998)
    )
    """Length and learning rate of the local adapter."""
    content_loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=2000, learning_rate=3e-4, ema_decay=0.998)
    )
    """Length and learning rate of the global adapter."""
    evaluation: ControlEvalConfig = field(default_factory=ControlEvalConfig)
    """How the result is measured."""


PRESETS: dict[str, UniRecipe] = {
    "cpu": UniRecipe(),
    "gpu": UniRecipe(
        views=BufferViewConfig(views=16_000),
        batch_size=128,
        local_loop=replace(UniRecipe().local_loop, steps=2200, learning_rate=8e-4),
        content_loop=replace(UniRecipe().content_loop, steps=1000, learning_rate=5e-4),
    ),
}


def train_uni(
    config: UniRecipe,
    work: Path,
    *,
    start: Path,
    out: Path,
    device: torch.device,
    log: Log,
    views: Path | None = None,
) -> dict[str, float]:
    """Run the recipe in the folder ``work`` and write both adapters to ``out``.

    Args:
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
        ConfigError: ``work`` began from another prior, or its views are of other settings.
    """
    note_start(start, work)
    prior = load_folder(start, device)
    data = encode_views(views or work, config.views, start, device=device, log=log)
    torch.manual_seed(config.seed)
    local = LocalAdapter.from_unet(prior.unet, config.local)
    content = GlobalAdapter(config.content).to(device)
    loss = local_loss(config, prior, local, data)
    facts = {"local": _train_part(local, loss, config.local_loop, work / "local", log)}
    loss = global_loss(config, prior, content, data)
    facts["content"] = _train_part(content, loss, config.content_loop, work / "content", log)
    out.mkdir(parents=True, exist_ok=True)
    write_uni(out / FILE_NAME, local.cpu().half(), content.cpu().half())
    facts = {"start": unet_digest(start), **facts}
    write_card(out, {"config": asdict(config), "facts": facts})
    report = measure_uni(config.evaluation, prior, out / FILE_NAME, work, log=log)
    return write_figures(out, report)


def _train_part(
    adapter: nn.Module, loss: LossAt, config: LoopConfig, folder: Path, log: Log
) -> dict[str, int]:
    """Train (or finish training) one adapter to its averaged weights; says what it took."""
    loop = TrainingLoop(adapter.requires_grad_(True), config, folder)
    loop.run(loss, log=lambda line: log(f"{folder.name} {line}"))
    loop.load_average()
    adapter.eval().requires_grad_(False)
    return {"seconds": round(loop.seconds), "steps": loop.step}


def local_loss(
    config: UniRecipe, prior: DiffusionPrior, adapter: LocalAdapter, data: EncodedViews
) -> LossAt:
    """The local adapter's loss of a step."""
    denoiser = LocalDenoiser(prior, adapter)

    def loss_at(step: int) -> Float[Tensor, ""]:
        generator = step_generator(config.seed, step)
        kept, says = draw_kept(
            config.batch_size, len(config.local.conditions), config.dropout, generator=generator
        )
        rows = _rows(config, data, step)
        latents, text = data.batch(rows, ~says.numpy())
        noisy = draw_velocity(prior, latents, generator, tilt=config.noise_tilt)
        buffers = data.views.buffers[rows]
        maps = {name: condition_images(buffers, name) for name in config.local.conditions}
        return denoiser.error(noisy, text.to(prior.device), maps, kept)

    return loss_at


def global_loss(
    config: UniRecipe, prior: DiffusionPrior, adapter: GlobalAdapter, data: EncodedViews
) -> LossAt:
    """The global adapter's loss of a step."""
    denoiser = GlobalDenoiser(prior, adapter)

    def loss_at(step: int) -> Float[Tensor, ""]:
        generator = step_generator(config.seed, step)
        kept, says = draw_kept(config.batch_size, 1, config.dropout, generator=generator)
        rows = _rows(config, data, step)
        latents, text = data.batch(rows, ~says.numpy())
        noisy = draw_velocity(prior, latents, generator, tilt=config.noise_tilt)
        images = torch.from_numpy(data.views.images[rows]).float() / 255.0
        looks, seed = color_embedding(images), config.seed * 1_000_003 + step
        return denoiser.error(noisy, text.to(prior.device), looks, kept[:, 0], seed=seed)

    return loss_at


def _rows(config: UniRecipe, data: EncodedViews, step: int) -> np.ndarray:
    rng = np.random.default_rng([config.seed, step])
    return np.sort(rng.integers(0, len(data.views), config.batch_size))


def measure_uni(
    config: ControlEvalConfig, prior: DiffusionPrior, path: Path, work: Path, *, log: Log
) -> ControlReport:
    """Sample written adapters on individuals that training never saw, and measure.

    The local adapter is measured with each map alone and with all of them, the global one by
    :func:`measure_look`.

    Args:
        config: how many samples.
        prior: what the adapters control.
        path: their file.
        work: where the evaluation's views are kept.
        log: receives progress lines.
    """
    views = evaluation_views(work, config, prior.image_size, log=log)
    local, content = (adapter.to(prior.device) for adapter in read_uni(path, prior.unet))
    cases, judge = control_cases(views), load_judge()

    def controlled_by(names: tuple[str, ...]) -> Callable[[slice], UniControlledPrior]:
        def controlled(rows: slice) -> UniControlledPrior:
            buffers = views.buffers[rows]
            maps = {name: condition_images(buffers, name).to(prior.device) for name in names}
            return UniControlledPrior(prior, local, maps=maps)

        return controlled

    names = local.settings.conditions
    controls = {name: controlled_by((name,)) for name in names} | {"all": controlled_by(names)}
    report = evaluate_controls(prior, controls, judge, cases, config, log=log)
    report.figures.update(measure_look(config, prior, content, cases, log=log))
    return report


def measure_look(
    config: ControlEvalConfig,
    prior: DiffusionPrior,
    content: GlobalAdapter,
    cases: ControlCases,
    *,
    log: Log,
) -> dict[str, Estimate]:
    """``look_color``: how often a sample has the colour of the image that it should look like.

    The image shows another object, and the prompt names no colour. ``plain_look_color`` is the
    share without the image.
    """
    judge = load_judge()
    looks = color_embedding(cases.renders.roll(1, 0)).to(prior.device)
    wanted = np.roll(cases.labels[:, 1], 1)
    nouns = [KINDS[KIND_NAMES[kind]].noun for kind in cases.labels[:, 0]]
    unsaid = replace(cases, prompts=tuple(with_article(noun) for noun in nouns))

    def looking(rows: slice) -> UniControlledPrior:
        return UniControlledPrior(prior, content=content, embedding=looks[rows])

    return {
        name: color_transfer(sampled, judge, unsaid, wanted, config, log=log)
        for name, sampled in (("look_color", looking), ("plain_look_color", lambda _: prior))
    }

"""The recipe of pocket-mv: the pocket prior taught to draw four views of one object together.

As MVDream (arXiv 2308.16512, sections 3.2 and 3.3): the UNet gets a camera embedding that starts at
zero, its self-attention looks across the views of a set, and it is trained on batches of sets
(70 %) and on batches of plain images without cameras and without attention across rows (30 %), so
that it keeps what it knew. The views of a set share their timestep and their caption, which has no
view word. v-prediction and all timesteps alike, as the pocket prior itself.

Stages, each resumable and skipped once finished: render the sets, encode captions, train, write.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from image_tools.diffusion.attention import AttentionHub, BatchLayout
from image_tools.diffusion.camera_embedding import add_camera_embedding, camera_embedding_off
from image_tools.diffusion.multiview import CrossViewAttention
from scenes.toybox.samples import SampleConfig
from studio.errors import ConfigError
from studio.training.conditioning import TextPreconditioner
from studio.training.denoiser import (
    LatentCache,
    build_scheduler,
    cache_latents,
    cache_text,
    stratified_timesteps,
)
from studio.training.image_cache import ImageCache, render_cache
from studio.training.loop import LoopConfig, TrainingLoop, on_device
from studio.training.start import begin_unet, frozen_parts, unet_digest
from studio.training.vae import image_batch
from studio.training.view_sets import (
    ViewSetCache,
    ViewSetConfig,
    cache_set_text,
    render_view_sets,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "PRESETS",
    "JointBatches",
    "MultiViewTrainingConfig",
    "TrainingBatch",
    "joint_loss",
    "train_multiview",
]


@dataclass(frozen=True)
class MultiViewTrainingConfig:
    """All choices of the recipe."""

    view_sets: ViewSetConfig = field(default_factory=ViewSetConfig)
    """The rendered sets of views."""
    sets_per_batch: int = 4
    """Sets in a batch; a batch of plain images has as many rows as one of sets."""
    plain_share: float = 0.3
    """Share of batches of plain images (the paper's 30 %)."""
    plain_images: int = 40_000
    """Plain images, where the pocket recipe has not rendered them already."""
    caption_dropout: float = 0.1
    """Share of empty captions."""
    seed: int = 3
    """Seed of the camera embedding and of the batches."""
    text_ridge: float = 1e-2
    """Ridge of the text preconditioner, as a share of the states' mean variance."""
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=3600, learning_rate=3e-4, warmup=100, ema_decay=0.998, save_every_s=180.0
        )
    )
    """Length and learning rate."""


PRESETS: dict[str, MultiViewTrainingConfig] = {
    "cpu": MultiViewTrainingConfig(),
    "gpu": MultiViewTrainingConfig(
        view_sets=ViewSetConfig(sets=16_000),
        sets_per_batch=48,
        loop=replace(MultiViewTrainingConfig().loop, steps=3600, learning_rate=4e-4),
    ),
}


@dataclass(frozen=True)
class TrainingBatch:
    """Rows of one training step."""

    latents: Tensor
    """``[rows, 4, s, s]``, clean."""
    text: Tensor
    """``[rows, 24, 384]``."""
    cameras: Tensor | None
    """``[rows, 16]`` for sets of views, None for plain images."""
    views: int
    """Views of each set; 1 for plain images."""


class JointBatches:
    """Batches of sets and of plain images; batch k depends only on (seed, k)."""

    def __init__(
        self, config: MultiViewTrainingConfig, sets: ViewSetCache, plain: LatentCache
    ) -> None:
        """Draw from these caches."""
        self.config, self.sets, self.plain = config, sets, plain
        self._text, self._text_index = sets.text_rows()

    def at(self, step: int) -> TrainingBatch:
        """The batch of a step."""
        config = self.config
        rng = np.random.default_rng([config.seed, step])
        views = config.view_sets.views
        if rng.random() < config.plain_share:
            rows = config.sets_per_batch * views
            latents, text = self.plain.batch(rng, rows, config.caption_dropout)
            return TrainingBatch(latents, text, None, 1)
        index = np.sort(rng.integers(0, len(self.sets), config.sets_per_batch))
        dropped = rng.random(len(index)) < config.caption_dropout
        said = np.where(dropped, 0, self._text_index[index])
        text = torch.from_numpy(np.stack([self._text[row] for row in said])).float()
        return TrainingBatch(
            latents=torch.from_numpy(self.sets.latents[index]).float().flatten(0, 1),
            text=text.repeat_interleave(views, 0),
            cameras=torch.from_numpy(self.sets.cameras[index]).flatten(0, 1),
            views=views,
        )


def joint_loss(
    hub: AttentionHub,
    batch: TrainingBatch,
    alphas_cumprod: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of v for one batch, its timesteps drawn once for each set."""
    unet, rows, device = hub.unet, len(batch.latents), alphas_cumprod.device
    noise = on_device(torch.randn(batch.latents.shape, generator=generator), device)
    t = stratified_timesteps(rows // batch.views, len(alphas_cumprod), generator)
    t = on_device(t.repeat_interleave(batch.views), device)
    latents, text = on_device(batch.latents, device), on_device(batch.text, device)
    alpha = alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)
    z_t = alpha * latents + sigma * noise
    with hub.batch(BatchLayout(views=batch.views)):
        if batch.cameras is None:
            with camera_embedding_off(unet):
                predicted = unet(z_t, t, encoder_hidden_states=text).sample
        else:
            cameras = on_device(batch.cameras, device)
            predicted = unet(z_t, t, encoder_hidden_states=text, class_labels=cameras).sample
    return (predicted - (alpha * noise - sigma * latents)).square().mean()


def train_multiview(
    config: MultiViewTrainingConfig,
    work: Path,
    *,
    start: Path,
    plain: Path,
    out: Path,
    device: torch.device,
    log: Callable[[str], None],
) -> None:
    """Run the recipe in the folder ``work`` and write UNet, scheduler and settings to ``out``.

    Args:
        config: a preset or a variation of one.
        work: training folder; calling again continues there.
        start: the pocket model to start from, in stock diffusers layout.
        plain: work folder of the pocket recipe, whose cached images are the plain ones; they are
            rendered into it where they are missing.
        out: a new or existing folder, replaced file by file.
        device: where networks run; rendering is always on the CPU.
        log: receives progress lines.

    Raises:
        ConfigError: ``work`` was begun from another model, or a cache is of another autoencoder.
    """
    vae, encoder, tokenizer = frozen_parts(start, device)
    sets = render_view_sets(work / "sets", config.view_sets, vae, log=log)
    cache_set_text(work / "sets", encoder, tokenizer, log=log)
    images = _plain_latents(config, plain, vae, encoder, tokenizer, log)
    unet = begin_unet(start, work)
    add_camera_embedding(unet, torch.Generator().manual_seed(config.seed))
    unet.to(device)
    preconditioner = TextPreconditioner.of_states(images.text, config.text_ridge)
    preconditioner.enter(unet)
    loop = TrainingLoop(unet, config.loop, work / "unet")
    images.reside(device)
    batches = JointBatches(config, sets, images)
    alphas_cumprod = build_scheduler().alphas_cumprod.to(device)
    unet.train()
    with AttentionHub(unet, [CrossViewAttention()]) as hub:

        def loss_at(step: int) -> Tensor:
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            batch = batches.at(step)
            batch = replace(batch, text=preconditioner(batch.text))
            return joint_loss(hub, batch, alphas_cumprod, generator)

        loop.run(loss_at, log=log)
    loop.load_average()
    preconditioner.leave(unet)
    facts = {"start": unet_digest(start), "seconds": round(loop.seconds), "steps": loop.step}
    _write(config, unet, out, facts)


def _plain_latents(
    config: MultiViewTrainingConfig,
    folder: Path,
    vae: AutoencoderKL,
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    log: Callable[[str], None],
) -> LatentCache:
    """The pocket recipe's own cache, only read where it exists."""
    if not (folder / "latents" / "latents_key.json").exists():
        images = render_cache(
            folder / "images",
            SampleConfig(),
            count=config.plain_images,
            seed=config.seed,
            log=lambda done, count: log(f"rendered {done}/{count}"),
        )
        cache_text(folder / "latents", images, encoder, tokenizer, log=log)
        cache_latents(folder / "latents", images, vae, key="pocket-mv", log=log)
    cache = LatentCache(folder / "latents")
    index = np.arange(min(8, len(cache.latents)))
    with torch.no_grad():
        images = image_batch(ImageCache(folder / "images"), index, vae.device)
        mean = vae.encode(images).latent_dist.mean.cpu() * vae.config.scaling_factor
    difference = (mean - torch.from_numpy(cache.latents[index]).float()).abs().mean()
    if difference > 0.05:  # half precision makes 0.002, another autoencoder about 1
        raise ConfigError(
            f"The latents in {folder} are of another autoencoder: they differ by "
            f"{difference:.2f} of their deviation. Name the folder of the model's own training."
        )
    return cache


def _write(
    config: MultiViewTrainingConfig, unet: UNet2DConditionModel, out: Path, facts: dict
) -> None:
    """UNet in half precision, scheduler and settings; everything else is the pocket model's."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / "unet", ignore_errors=True)
    unet.cpu().half().eval().save_pretrained(out / "unet", safe_serialization=True)
    build_scheduler().save_pretrained(out / "scheduler")
    settings_path = out / "unet" / "config.json"
    settings = json.loads(settings_path.read_text())
    settings.pop("_name_or_path", None)  # a path on the training machine
    settings_path.write_text(json.dumps(settings, indent=2) + "\n")
    (out / "training.json").write_text(
        json.dumps({"config": asdict(config), "facts": facts}, indent=2) + "\n"
    )

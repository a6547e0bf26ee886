"""Training of Uni-ControlNet's adapters (arXiv 2305.16322, section 3.4): one after the other.

The loss is the prior's own, over one adapter alone; the denoiser is frozen. Of the local adapter's
maps all stay in 10 % of the samples, none in 10 %, and otherwise each is dropped, as zeros, with
probability 1/2. The global adapter's embedding is hidden by the same rule. Half of the prompts are
empty. Adapters are trained apart: each is only ever asked to explain what the other cannot.

Where batches come from is the caller's: batch k depends on its number and the generator alone, so
that a training that was killed goes on bit for bit. What is written has the authors' names.

    local = LocalAdapter.from_unet(prior.unet, settings)
    result = train_local_adapter(prior, local, batches, config, folder, identity="toybox maps")
    content = GlobalAdapter(GlobalAdapterSettings(width=384))
    result = train_global_adapter(prior, content, looks, config, other, identity="toybox colours")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from image_tools.control.uni_adapters import GlobalAdapter, LocalAdapter
from image_tools.control.uni_controlnet import UniControlledPrior, draw_kept
from image_tools.control.uni_training_configs import UniTrainingConfig
from image_tools.control.uni_weights import write_uni
from image_tools.diffusion.conditions import TextEmbedding
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.captioned import encode_text
from image_tools.personalization.denoising import NoisyBatch, denoising_errors, draw_noisy
from image_tools.personalization.dreambooth import TrainingResult, identity_of
from image_tools.personalization.loop import LoopHooks, ParameterGroup, TuningLoop
from renderers.errors import ShapeError

__all__ = [
    "GlobalDenoiser",
    "LocalDenoiser",
    "LookBatch",
    "MapBatch",
    "train_global_adapter",
    "train_local_adapter",
]

FILE_NAME = "uni.safetensors"


@dataclass(frozen=True)
class MapBatch:
    """Images, what they show, and their maps."""

    images: Float[Tensor, "b h w 3"]
    captions: tuple[str, ...]
    maps: Mapping[str, Float[Tensor, "b h w 3"]]
    """In 0..1 at the prior's image size, one batch for each of the adapter's conditions."""

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        parts = {name: len(images) for name, images in self.maps.items()}
        _check_rows({"images": len(self.images), "captions": len(self.captions), **parts})


@dataclass(frozen=True)
class LookBatch:
    """Images, what they show, and their embeddings."""

    images: Float[Tensor, "b h w 3"]
    captions: tuple[str, ...]
    embeddings: Float[Tensor, "b d"]

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        counts = (len(self.images), len(self.captions), len(self.embeddings))
        _check_rows(dict(zip(("images", "captions", "embeddings"), counts, strict=True)))


class LocalDenoiser:
    """A prior with a local adapter in training beside it."""

    def __init__(self, prior: DiffusionPrior, adapter: LocalAdapter) -> None:
        """Put the adapter beside the prior."""
        self._controlled = UniControlledPrior(prior, adapter)
        self.conditions = adapter.settings.conditions

    def error(
        self,
        noisy: NoisyBatch,
        text: TextEmbedding,
        maps: Mapping[str, Float[Tensor, "b h w 3"]],
        kept: Bool[Tensor, "b conditions"],
    ) -> Float[Tensor, ""]:
        """Mean squared error of a batch that sees of its maps those which are ``kept``."""
        shares = kept.to(noisy.z_t)[:, :, None, None, None]
        shown = {
            name: maps[name].to(noisy.z_t) * shares[:, k] for k, name in enumerate(self.conditions)
        }
        self._controlled.show(shown)
        return denoising_errors(self._controlled, noisy, text).mean()


class GlobalDenoiser:
    """A prior with a global adapter in training beside it."""

    def __init__(self, prior: DiffusionPrior, adapter: GlobalAdapter) -> None:
        """Put the adapter beside the prior, with its dropout on."""
        self._controlled = UniControlledPrior(prior, content=adapter)
        self._devices = [prior.device] if prior.device.type == "cuda" else []
        adapter.train()

    def error(
        self,
        noisy: NoisyBatch,
        text: TextEmbedding,
        embeddings: Float[Tensor, "b d"],
        kept: Bool[Tensor, " b"],
        *,
        seed: int,
    ) -> Float[Tensor, ""]:
        """Mean squared error of a batch that sees those embeddings which are ``kept``.

        Dropout draws from torch's default generator, which is seeded for it and then restored.
        """
        self._controlled.show(embedding=embeddings.to(noisy.z_t) * kept.to(noisy.z_t)[:, None])
        with torch.random.fork_rng(devices=self._devices):
            torch.manual_seed(seed)
            return denoising_errors(self._controlled, noisy, text).mean()


def train_local_adapter(
    prior: DiffusionPrior,
    adapter: LocalAdapter,
    batches: Callable[[int, torch.Generator], MapBatch],
    config: UniTrainingConfig,
    folder: Path,
    *,
    identity: str,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Train a local adapter; calling again with the same folder goes on.

    Args:
        prior: left as it is found.
        adapter: as of ``LocalAdapter.from_unet``, or one to train further; float32. It is trained
            in place, and frozen at the end.
        batches: images with all maps of the adapter's conditions.
        config: settings.
        folder: the training's own. The result is its file ``uni.safetensors``.
        identity: what the batches are; a resumed training must say the same.
        hooks: progress, samples, a stop request.

    Raises:
        StudioError: the folder holds another training, or the adapter is not float32.
    """
    denoiser = LocalDenoiser(prior, adapter)

    def loss(number: int, generator: torch.Generator) -> Float[Tensor, ""]:
        batch = batches(number, generator)
        kept, says = draw_kept(
            len(batch.captions), len(denoiser.conditions), config.dropout, generator=generator
        )
        noisy, text = _encoded(prior, batch.images, batch.captions, says, generator)
        return denoiser.error(noisy, text, batch.maps, kept)

    return _train(prior, adapter, loss, config, folder, identity, hooks)


def train_global_adapter(
    prior: DiffusionPrior,
    adapter: GlobalAdapter,
    batches: Callable[[int, torch.Generator], LookBatch],
    config: UniTrainingConfig,
    folder: Path,
    *,
    identity: str,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Train a global adapter; the arguments are those of ``train_local_adapter``."""
    denoiser = GlobalDenoiser(prior, adapter)

    def loss(number: int, generator: torch.Generator) -> Float[Tensor, ""]:
        batch = batches(number, generator)
        kept, says = draw_kept(len(batch.captions), 1, config.dropout, generator=generator)
        noisy, text = _encoded(prior, batch.images, batch.captions, says, generator)
        seed = int(torch.randint(2**31, (1,), generator=generator))
        return denoiser.error(noisy, text, batch.embeddings, kept[:, 0], seed=seed)

    return _train(prior, adapter, loss, config, folder, identity, hooks)


def _encoded(
    prior: DiffusionPrior,
    images: Float[Tensor, "b h w 3"],
    captions: tuple[str, ...],
    says: Bool[Tensor, " b"],
    generator: torch.Generator,
) -> tuple[NoisyBatch, TextEmbedding]:
    """Noisy latents of images, and captions, empty ones where ``says`` is false."""
    prompts = [said if keeps else "" for said, keeps in zip(captions, says.tolist(), strict=True)]
    with torch.no_grad():
        mean, std = prior.encode_posterior(images.to(prior.device))
        latents = mean + std * torch.randn(mean.shape, generator=generator).to(mean)
        text = encode_text(prior, prompts)
    return draw_noisy(prior, latents, generator), text


def _train(
    prior: DiffusionPrior,
    adapter: LocalAdapter | GlobalAdapter,
    loss: Callable[[int, torch.Generator], Float[Tensor, ""]],
    config: UniTrainingConfig,
    folder: Path,
    identity: str,
    hooks: LoopHooks | None,
) -> TrainingResult:
    loop = TuningLoop(
        [ParameterGroup(dict(adapter.named_parameters()))],
        config.loop,
        folder,
        device=prior.device,
        frozen_dtype=prior.dtype,
        identity=identity_of(config, prior.fingerprint, [], {"batches": identity}),
    )
    finished = loop.run(loss, hooks or LoopHooks())
    adapter.eval().requires_grad_(False)
    if not finished:
        return TrainingResult(False, loop.step, ())
    is_local = isinstance(adapter, LocalAdapter)
    write_uni(folder / FILE_NAME, *((adapter, None) if is_local else (None, adapter)))
    return TrainingResult(True, loop.step, (folder / FILE_NAME,))


def _check_rows(counts: Mapping[str, int]) -> None:
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ShapeError(f"A batch has {said}. Give one of each for every sample.")

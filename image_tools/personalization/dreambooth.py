"""DreamBooth (arXiv 2208.12242): fine-tune a whole denoiser on a few photos of a subject.

    L = E w(t) || f(z_t; y) - target ||^2  +  lambda E w(t') || f(z'_t'; y_class) - target' ||^2

Subject and class images go through the denoiser in one batch; each row has its own timestep and its
own min-SNR weight. Latents are cached, and text too unless its encoders are trained. Epsilon and v
models alike. The result is in the prior itself, in ``weights.safetensors`` and ``checkpoints/``
(the trained tensors at the end and after the steps asked for, which are a *partial* DreamBooth),
and with ``write_pipeline`` in a stock diffusers folder.

    subject = CaptionedImages(photos.images, ("a photo of sks dog",) * len(photos))
    class_set = make_class_images(prior, "a photo of a dog", folder / "class", ...)
    result = train_dreambooth(prior, subject, class_set, DreamBoothConfig(), folder)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from image_tools.diffusion.conditions import TextEmbedding, cat_embeddings
from image_tools.diffusion.lora_apply import prior_modules
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.stock_modules import gradient_checkpointing
from image_tools.diffusion.weight_writing import write_safetensors
from image_tools.personalization.captioned import (
    CaptionedImages,
    cache_latents,
    encode_text,
    rows_of_batch,
)
from image_tools.personalization.denoising import (
    NoisyBatch,
    denoising_errors,
    draw_noisy,
    min_snr_weights,
)
from image_tools.personalization.dreambooth_configs import BatchConfig, DreamBoothConfig
from image_tools.personalization.in_place import in_place
from image_tools.personalization.loop import (
    LoopHooks,
    ParameterGroup,
    TuningLoop,
)
from image_tools.personalization.loop_configs import TuningConfig

__all__ = [
    "WEIGHTS_NAME",
    "SubjectLoss",
    "TextSource",
    "TrainingResult",
    "identity_of",
    "train_dreambooth",
    "trained_weights",
]

WEIGHTS_NAME = "weights.safetensors"
PART = "dreambooth"


@dataclass(frozen=True)
class TrainingResult:
    """What a training left behind."""

    finished: bool
    """False if it was asked to stop; the same call goes on."""
    step: int
    """Steps done."""
    files: tuple[Path, ...]
    """Results, the last one the newest."""


class TextSource:
    """Captions to embeddings: made once, or in each batch while their encoders are trained."""

    def __init__(self, prior: DiffusionPrior, captions: Sequence[str], *, is_trained: bool) -> None:
        self._prior, self._known = prior, {}
        if not is_trained:
            with torch.no_grad():
                self._known = {text: encode_text(prior, [text]) for text in dict.fromkeys(captions)}

    def __call__(self, captions: Sequence[str]) -> TextEmbedding:
        """One row per caption."""
        if self._known:
            return cat_embeddings([self._known[text] for text in captions])
        different = list(dict.fromkeys(captions))
        rows = torch.tensor([different.index(text) for text in captions])
        return encode_text(self._prior, different).select(rows)


class SubjectLoss:
    """Loss of batch number k: the subject's photos, and class images beside them."""

    def __init__(
        self,
        prior: DiffusionPrior,
        subject: CaptionedImages,
        class_set: CaptionedImages | None,
        config: BatchConfig,
        *,
        class_weight: float,
        is_text_trained: bool,
        seed: int,
    ) -> None:
        """Cache what does not change while training."""
        self.prior, self.config, self.seed = prior, config, seed
        self.class_weight = class_weight
        self.sets = [subject] if class_set is None else [subject, class_set]
        self.latents = [
            cache_latents(prior, item.images, mirrored=config.mirrored) for item in self.sets
        ]
        captions = [caption for item in self.sets for caption in item.captions]
        self.text = TextSource(prior, captions, is_trained=is_text_trained)

    def __call__(self, batch: int, generator: torch.Generator) -> Tensor:
        """``mean over the subject + lambda mean over the class``."""
        parts = self.parts(batch, generator)
        return parts[0] + self.class_weight * sum(parts[1:], torch.zeros_like(parts[0]))

    def parts(self, batch: int, generator: torch.Generator) -> list[Tensor]:
        """The mean weighted error of each set, from one denoiser call."""
        noisy, captions = self.draw(batch, generator)
        errors = denoising_errors(self.prior, noisy, self.text(captions))
        weights = min_snr_weights(self.prior, noisy.t, self.config.min_snr_gamma)
        return [part.mean() for part in (weights * errors).split(self.config.size)]

    def draw(self, batch: int, generator: torch.Generator) -> tuple[NoisyBatch, list[str]]:
        """Noisy latents and captions of a batch: the subject's rows, then the class's."""
        captions, latents = [], []
        for index, (item, cache) in enumerate(zip(self.sets, self.latents, strict=True)):
            # Each set has a seed of its own, or equally many images would come in equal order.
            rows = rows_of_batch(len(item), self.config.size, seed=self.seed + index, batch=batch)
            captions += [item.captions[row] for row in rows]
            latents.append(cache.draw(rows, generator))
        offset = self.config.offset_noise
        return draw_noisy(self.prior, torch.cat(latents), generator, offset_noise=offset), captions


def train_dreambooth(
    prior: DiffusionPrior,
    subject: CaptionedImages,
    class_set: CaptionedImages | None,
    config: DreamBoothConfig,
    folder: Path,
    *,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Train the prior itself; calling again with the same folder goes on.

    Args:
        prior: float32 weights. It keeps what it learned; load it again for the original.
        subject: the photos, with captions that name the subject; several subjects may be mixed.
        class_set: images of the class from the untrained prior, or None.
        config: settings.
        folder: the training's own.
        hooks: progress, samples, a stop request.

    Raises:
        StudioError: the folder holds another training, or the weights are not float32.
    """
    with in_place(prior.unet, folder, lambda: prior.fingerprint) as began:
        identity = identity_of(config, began, [subject, class_set])
        return _train(prior, subject, class_set, config, folder, identity, hooks)


def _train(
    prior: DiffusionPrior,
    subject: CaptionedImages,
    class_set: CaptionedImages | None,
    config: DreamBoothConfig,
    folder: Path,
    identity: str,
    hooks: LoopHooks | None,
) -> TrainingResult:
    """Train, and tell the prior what it has become, also where the training breaks off."""
    trains_text = config.parts == "unet_and_text"
    groups = [ParameterGroup(_named("unet", prior.unet))]
    if trains_text:
        encoders = _text_encoders(prior)
        groups.append(ParameterGroup(encoders, config.text_learning_rate))
        prior.pin_text_encoder()
        prior.fingerprint_parts[PART] = lambda: _digest(encoders)
    # What is cached must come from the untrained prior, so the loop loads its state afterwards.
    loss = SubjectLoss(
        prior,
        subject,
        class_set,
        config.batch,
        class_weight=config.class_images.weight,
        is_text_trained=trains_text,
        seed=config.loop.seed,
    )
    loop = TuningLoop(groups, config.loop, folder, device=prior.device, identity=identity)
    try:
        finished = _run(prior, loop, loss, hooks, config.batch.checkpointing)
    finally:
        digest = _digest(loop.parameters)
        prior.fingerprint_parts[PART] = lambda: digest
    return TrainingResult(finished, loop.step, _write_weights(loop, finished))


def _write_weights(loop: TuningLoop, finished: bool) -> tuple[Path, ...]:
    """The checkpoints that are there, and the weights of a finished training."""
    files = [loop.checkpoint_path(step) for step in loop.config.checkpoint_steps]
    files = [path for path in files if path.exists()]
    if finished:
        files.append(loop.folder / WEIGHTS_NAME)
        write_safetensors(files[-1], loop.parameters, {"step": str(loop.step)})
    return tuple(files)


def _run(
    prior: DiffusionPrior,
    loop: TuningLoop,
    loss: Callable[[int, torch.Generator], Tensor],
    hooks: LoopHooks | None,
    checkpointing: bool,
) -> bool:
    """Train, and leave nothing wanting gradients."""
    try:
        with gradient_checkpointing([prior.unet], checkpointing):
            return loop.run(loss, hooks)
    finally:
        for parameter in loop.parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None


def trained_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a DreamBooth checkpoint by ``unet.<name>``, ``text_encoder.<name>``, ..."""
    return load_file(path)


def identity_of(
    config: Any,
    fingerprint: str,
    sets: Sequence[CaptionedImages | None],
    extra: Mapping[str, str] | None = None,
) -> str:
    """A hash of everything that makes two trainings the same, whatever their bookkeeping.

    Args:
        config: settings, with those of a loop.
        fingerprint: of the prior at the beginning.
        sets: pictures and captions.
        extra: what else matters, by name.
    """
    free = {"save_every", "sample_every", "log_every", "checkpoint_steps"}
    settings = dataclasses.asdict(config)
    settings["loop"] = {k: v for k, v in settings["loop"].items() if k not in free}
    if isinstance(config.loop, TuningConfig) and config.loop.schedule == "constant":
        del settings["loop"]["steps"]  # a longer training begins as the shorter one
    if settings["loop"].get("epsilon") == TuningConfig.epsilon:
        del settings["loop"]["epsilon"]  # the usual one goes without saying
    digest = hashlib.sha256(json.dumps([settings, dict(extra or {})], sort_keys=True).encode())
    digest.update(fingerprint.encode())
    for item in sets:
        if item is not None:
            digest.update(json.dumps(item.captions).encode())
            digest.update(item.images.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _named(section: str, module: nn.Module) -> dict[str, nn.Parameter]:
    return {f"{section}.{name}": value for name, value in module.named_parameters()}


def _text_encoders(prior: DiffusionPrior) -> dict[str, nn.Parameter]:
    """Parameters of the text encoders that embeddings depend on, by section."""
    _ = prior.text.towers  # reads them
    found: dict[str, nn.Parameter] = {}
    for section, module in prior_modules(prior).items():
        if section != "unet":
            found |= _named(section, module)
    return found


def _digest(parameters: Mapping[str, nn.Parameter]) -> str:
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters.items()):
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]

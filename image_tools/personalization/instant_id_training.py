"""Training of InstantID (arXiv 2401.07519, section 3.5): tokens, keys and values, and ControlNet.

    L = E || f(z_t; t, y, tokens, landmarks) - target ||^2    (Eq. 5, the prior's parametrisation)

over the perceiver, the keys and values of the identity and IdentityNet together; the denoiser is
frozen. A hidden identity is an embedding of zeros, which guidance leads away from later. The paper
hides nothing; public training code hides identity, text and both in 5 % of the samples each.

``FaceBatches`` makes batches of photos: each is cut at random around its landmarks, which are cut
with it. Any other function from a batch's number and a generator serves as well.

    parts = new_instant_id(prior, identity_width=1024, generator=generator)
    batches = FaceBatches(photos.images, captions, MeshFaceAnalyzer(), size=prior.image_size)
    result = train_instant_id(prior, parts, batches, config, folder, identity="my photos")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.stock_modules import gradient_checkpointing
from image_tools.personalization.captioned import encode_text, rows_of_batch
from image_tools.personalization.denoising import denoising_errors, draw_noisy, min_snr_weights
from image_tools.personalization.dreambooth import TrainingResult, identity_of
from image_tools.personalization.face_keypoints import draw_keypoints
from image_tools.personalization.instant_id import InstantID, InstantIDPrior
from image_tools.personalization.instant_id_configs import InstantIDTrainingConfig
from image_tools.personalization.instant_id_files import write_instant_id
from image_tools.personalization.loop import LoopHooks, ParameterGroup, TuningLoop
from image_tools.vision.faces import FaceAnalyzer, main_face
from renderers.errors import ShapeError

__all__ = [
    "FaceBatches",
    "InstantIDBatch",
    "InstantIDLoss",
    "crop_face",
    "train_instant_id",
]

FOLDER_NAME = "instant-id"
# A cut holds the landmarks and at least so much of their extent around them.
MARGIN = 0.6


@dataclass(frozen=True)
class InstantIDBatch:
    """Photos of people, what they show, who they are, and where their landmarks are."""

    images: Float[Tensor, "b h w 3"]
    captions: tuple[str, ...]
    identities: Float[Tensor, "b d"]
    """Raw embeddings."""
    keypoints: Float[Tensor, "b h w 3"]
    """Drawings of landmarks, at the prior's image size."""

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        parts = (self.images, self.captions, self.identities, self.keypoints)
        sizes = [len(part) for part in parts]
        if len(set(sizes)) > 1:
            raise ShapeError(
                f"A batch has {sizes[0]} images, {sizes[1]} captions, {sizes[2]} identities and "
                f"{sizes[3]} drawings. Give one of each for every sample."
            )


InstantIDBatches = Callable[[int, torch.Generator], InstantIDBatch]
"""Batch number k; everything random in it comes from the generator."""


class FaceBatches:
    """Batches of photos, cut at random together with their landmarks."""

    def __init__(
        self,
        images: Sequence[Float[Tensor, "h w 3"]],
        captions: Sequence[str],
        analyzer: FaceAnalyzer,
        *,
        size: int,
        batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        """Find the largest face of each photo.

        Args:
            images: photos in 0..1, of any sizes.
            captions: one for each.
            analyzer: finds faces and reads identities.
            size: rows and columns of what is made of them.
            batch_size: samples in a batch.
            seed: of the order in which photos come.

        Raises:
            FaceNotFound: a photo shows no face.
        """
        self.images, self.captions = list(images), list(captions)
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.faces = [
            main_face(analyzer, image, name=f"photo {number}")
            for number, image in enumerate(self.images)
        ]

    def __call__(self, batch: int, generator: torch.Generator) -> InstantIDBatch:
        """Batch number ``batch``."""
        rows = rows_of_batch(len(self.images), self.batch_size, seed=self.seed, batch=batch)
        cuts = [
            crop_face(self.images[k], self.faces[k].kps, size=self.size, generator=generator)
            for k in rows
        ]
        kps = torch.stack([points for _, points in cuts])
        return InstantIDBatch(
            torch.stack([image for image, _ in cuts]),
            tuple(self.captions[k] for k in rows),
            torch.stack([self.faces[k].embedding for k in rows]),
            draw_keypoints(kps, (self.size, self.size)),
        )


def crop_face(
    image: Float[Tensor, "h w 3"],
    kps: Float[Tensor, "5 2"],
    *,
    size: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "s s 3"], Float[Tensor, "5 2"]]:
    """A random square of a photo that holds the landmarks, and the landmarks in it.

    Where the photo is too small for the margin around them, the square is as large as it can be.
    """
    height, width = image.shape[:2]
    low, high = kps.amin(dim=0), kps.amax(dim=0)
    extent = float((high - low).max())
    largest = min(height, width)
    smallest = min(largest, int(extent * (1.0 + 2.0 * MARGIN)) + 1)
    u = torch.rand(3, generator=generator).tolist()
    side = int(smallest + u[0] * (largest - smallest))
    places = []
    for axis, length in ((0, width), (1, height)):
        margin = min(MARGIN * extent, (side - float(high[axis] - low[axis])) / 2.0)
        first = min(max(0.0, float(high[axis]) + margin - side), float(length - side))
        last = max(first, min(float(length - side), float(low[axis]) - margin))
        places.append(int(first + u[1 + axis] * (last - first)))
    left, top = places
    part = image[top : top + side, left : left + side].movedim(-1, 0)[None]
    small = F.interpolate(part, (size, size), mode="bilinear", antialias=side > size)
    return small[0].movedim(0, -1), (kps - kps.new_tensor([left, top])) * (size / side)


class InstantIDLoss:
    """Loss of batch number k for InstantID beside a prior."""

    def __init__(
        self,
        prior: DiffusionPrior,
        parts: InstantID,
        batches: InstantIDBatches,
        config: InstantIDTrainingConfig,
    ) -> None:
        """Put both parts beside the prior."""
        self.prior, self.batches, self.config = prior, batches, config
        blank = torch.zeros(1, prior.image_size, prior.image_size, 3, device=prior.device)
        self.tool = InstantIDPrior(prior, parts, blank, scale=1.0, control_scale=1.0)

    def __call__(self, batch: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Mean error of the batch."""
        sample = self.batches(batch, generator)
        no_identity, no_text = self._hidden(len(sample.captions), generator)
        said = zip(sample.captions, no_text.tolist(), strict=True)
        prompts = ["" if hides else caption for caption, hides in said]
        device = self.prior.device
        self.tool.show_keypoints(sample.keypoints.to(device))
        kept = (~no_identity)[:, None].to(sample.identities)
        self.tool.show_identity((sample.identities * kept).to(device))
        with torch.no_grad():
            mean, std = self.prior.encode_posterior(sample.images.to(device))
            latents = mean + std * torch.randn(mean.shape, generator=generator).to(mean)
            text = encode_text(self.prior, prompts)
        noisy = draw_noisy(self.prior, latents, generator)
        weights = min_snr_weights(self.prior, noisy.t, self.config.min_snr_gamma)
        return (weights * denoising_errors(self.tool, noisy, text)).mean()

    def _hidden(
        self, rows: int, generator: torch.Generator
    ) -> tuple[Bool[Tensor, " rows"], Bool[Tensor, " rows"]]:
        """Rows without identity and rows without text; some are without both."""
        drops, u = self.config.drops, torch.rand(rows, generator=generator)
        both = u < drops.both
        only_image = (u >= drops.both) & (u < drops.both + drops.image)
        text = (u >= drops.both + drops.image) & (u < drops.both + drops.image + drops.text)
        return both | only_image, both | text


def train_instant_id(
    prior: DiffusionPrior,
    parts: InstantID,
    batches: InstantIDBatches,
    config: InstantIDTrainingConfig,
    folder: Path,
    *,
    identity: str,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Train InstantID; calling again with the same folder goes on.

    Args:
        prior: left as it is found.
        parts: as of ``new_instant_id``, or some to train further; float32. They are trained in
            place, and frozen at the end.
        batches: photos with identities and drawings.
        config: settings.
        folder: the training's own. The result is its folder ``instant-id``.
        identity: what the batches are; a resumed training must say the same.
        hooks: progress, samples, a stop request.

    Raises:
        StudioError: the folder holds another training, or the parts are not float32.
        UnsupportedModel: they are of another family than the prior.
    """
    hooks = hooks or LoopHooks()
    loss = InstantIDLoss(prior, parts, batches, config)
    named = {f"adapter.{name}": p for name, p in parts.adapter.named_parameters()}
    named |= {f"net.{name}": p for name, p in parts.net.named_parameters()}
    loop = TuningLoop(
        [ParameterGroup(named)],
        config.loop,
        folder,
        device=prior.device,
        identity=identity_of(config, prior.fingerprint, [], {"batches": identity}),
        frozen_dtype=prior.dtype,
    )

    def checkpoint(step: int) -> None:
        write_instant_id(_step_folder(folder, step), parts)
        hooks.checkpoint(step)

    with gradient_checkpointing([prior.unet, parts.net], config.checkpointing):
        finished = loop.run(loss, replace(hooks, checkpoint=checkpoint))
    for part in (parts.adapter, parts.net):
        part.requires_grad_(False)
    if finished:
        write_instant_id(folder / FOLDER_NAME, parts)
    steps = [_step_folder(folder, step) for step in config.loop.checkpoint_steps]
    files = [path for path in (*steps, folder / FOLDER_NAME) if path.exists()]
    return TrainingResult(finished, loop.step, tuple(files))


def _step_folder(folder: Path, step: int) -> Path:
    return folder / f"{FOLDER_NAME}s" / f"step-{step:06d}"

"""Edits of a finished scene by an instruction, as iterative dataset update (Instruct-NeRF2NeRF,
arXiv 2303.12789, section 4.2).

A dataset of views starts as the original's. Every ``every`` steps the views of the step are edited
anew: the scene as it is now, with noise of a random level, is denoised by InstructPix2Pix, which
sees the *original* view and the instruction; the result replaces the view in the dataset. The scene
is fitted to the dataset all the time, so that edits which disagree are averaged, and each round
starts from what the others agreed on.

Deviations: of ``sampler.steps`` DDIM steps those below the drawn noise level are run, as in
image-to-image pipelines, where the authors squeeze all steps below it; all views of a step are
edited together; edges at several scales stand in for LPIPS.

    guidance = DatasetUpdateGuidance(config, prior, prompts, original, views=views, seed=0)
    cameras = guidance.choose_views(cameras)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from guidance.base import GuidanceOutput, GuidanceRule
from guidance.gradient import gradient_norm
from guidance.image_distance import image_distance
from guidance.instruct_edit import count_evaluations, edit_prior
from guidance.instruct_edit_configs import DatasetUpdateConfig
from guidance.original import Original
from guidance.prompts import ViewPrompts
from guidance.schedules import value_at
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.redraw import redraw_images
from image_tools.editing.instruct_pix2pix import InstructPix2PixPrior
from image_tools.personalization.captioned import rows_of_batch
from renderers.cameras import Cameras
from renderers.poses import wrap_deg

__all__ = ["DatasetUpdateGuidance"]

SEEDS = 2**62
UNSEEN = -1


class DatasetUpdateGuidance(GuidanceRule):
    """Pulls the scene towards views of it that are edited as it goes."""

    prior: InstructPix2PixPrior

    def __init__(
        self,
        config: DatasetUpdateConfig,
        prior: DiffusionPrior,
        prompts: ViewPrompts,
        original: Original,
        *,
        views: Cameras,
        seed: int,
    ) -> None:
        """Read the edit model and begin with a dataset of original views.

        Args:
            config: edit model, dataset and updates.
            prior: what the edit model was trained from.
            prompts: the instruction; the negative prompt is usually empty.
            original: the scene that is edited.
            views: cameras of the dataset.
            seed: of the order of the views.

        Raises:
            WeightsMissing: the edit model is not there.
            UnsupportedModel: it takes no image, or belongs to another kind of prior.
        """
        self.config, self.prompts, self.original = config, prompts, original
        self.prior = edit_prior(prior, config.model)
        self.cameras, self.seed = views, seed
        shape = (len(views), views.height, views.width, 3)
        self.originals = views.c2w.new_zeros(shape)
        self.images = views.c2w.new_zeros(shape)
        self.rounds = torch.full((len(views),), UNSEEN)
        """How often each view was edited."""
        self.steps = 0
        self._due: tuple[Cameras, list[int]] | None = None
        self._last_t = 0

    def choose_views(self, drawn: Cameras) -> Cameras:
        """The dataset's views that are due at this step, in the place of random ones."""
        count = self.config.views_per_step
        rows = rows_of_batch(len(self.cameras), count, seed=self.seed, batch=self.steps)
        cameras = self.cameras[rows].to(drawn.c2w.device)
        self._due = cameras, rows
        return cameras

    def __call__(
        self,
        images: Float[Tensor, "b h w 3"],
        cameras: Cameras,
        *,
        fraction: float,
        generator: torch.Generator,
    ) -> GuidanceOutput:
        """The distance to the dataset's views, or for other cameras to the nearest of them."""
        rows = self._rows(cameras)
        if rows is None:
            targets = _fit(self.images[self._nearest(cameras)], images)
        else:
            self._note_originals(rows, cameras)
            targets = self.images[rows]
        targets = targets.to(images)
        loss = image_distance(
            images,
            targets,
            torch.ones_like(images[..., :1]),
            scales=self.config.scales,
            gradient_weight=self.config.gradient_weight,
        )
        norm = loss.detach()
        if images.requires_grad:
            (slope,) = torch.autograd.grad(loss, images, retain_graph=True)
            norm = gradient_norm(slope * len(images))
        t = torch.full((len(images),), self._last_t, device=images.device)
        bad = (~torch.isfinite(targets)).sum()
        return GuidanceOutput(loss, norm, t, bad, _shown(targets))

    def after_step(
        self,
        images: Float[Tensor, "b h w 3"],
        cameras: Cameras,
        *,
        fraction: float,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Edit the step's views anew, if an update is due; tells the share of edited views."""
        rows = self._rows(cameras)
        if rows is not None and self.steps % self.config.every == 0:
            self._edit(rows, images, cameras, fraction, generator)
        self.steps += 1
        return {"edited_views": float((self.rounds > 0).float().mean())}

    def metric_names(self) -> tuple[str, ...]:
        """The share of views that were edited."""
        return ("edited_views",)

    def state(self) -> dict[str, Tensor]:
        """The dataset and where its rounds stand."""
        return {
            "originals": self.originals,
            "images": self.images,
            "rounds": self.rounds,
            "steps": torch.tensor([self.steps, self._last_t]),
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with a saved dataset."""
        for name in ("originals", "images", "rounds"):
            getattr(self, name).copy_(tensors[name])
        self.steps, self._last_t = tensors["steps"].tolist()

    def _rows(self, cameras: Cameras) -> list[int] | None:
        """Which views of the dataset these are; None for cameras that are not due."""
        if self._due is None or self._due[0] is not cameras:
            return None
        return self._due[1]

    def _nearest(self, cameras: Cameras) -> Tensor:
        """For each camera the view of the dataset with the nearest azimuth, of those it has."""
        mine, theirs = self.cameras.azimuth_deg, cameras.azimuth_deg.to(self.cameras.c2w.device)
        turn = wrap_deg(theirs[:, None] - mine[None]).abs()
        return turn.masked_fill(self.rounds == UNSEEN, torch.inf).argmin(dim=1)

    def _note_originals(self, rows: list[int], cameras: Cameras) -> None:
        """Put the original's views into the dataset when they come for the first time."""
        if not bool((self.rounds[rows] == UNSEEN).any()):
            return
        seen = self.original.views(cameras).to(self.originals)
        for place, row in enumerate(rows):
            if self.rounds[row] == UNSEEN:
                self.originals[row] = self.images[row] = seen[place]
                self.rounds[row] = 0

    def _edit(
        self,
        rows: list[int],
        images: Tensor,
        cameras: Cameras,
        fraction: float,
        generator: torch.Generator,
    ) -> None:
        """Replace some views by edits of the scene as it is."""
        config = self.config
        low, high = value_at(config.min_t, fraction), value_at(config.max_t, fraction)
        drawn = torch.rand((), generator=generator, device=generator.device)
        strength = low + float(drawn) * max(high - low, 0.0)
        self.prior.show(self.originals[rows].to(images))
        condition = self.prompts.at(cameras)
        sampler = config.sampler

        def guided(z_t: Tensor, t: Tensor) -> Tensor:
            return condition.guided_noise(
                self.prior, z_t, t, sampler.guidance_scale, rescale=sampler.guidance_rescale
            )

        seeds = torch.randint(SEEDS, (len(rows),), generator=generator, device=generator.device)
        edited = redraw_images(
            self.prior,
            images,
            guided,
            strength=strength,
            generators=[torch.Generator().manual_seed(seed) for seed in seeds.tolist()],
            config=sampler,
        )
        count_evaluations(self.prior)
        self.images[rows] = _fit(edited, images).to(self.images)
        self.rounds[rows] += 1
        self._last_t = round(strength * self.prior.num_train_timesteps)


def _fit(images: Float[Tensor, "n a b 3"], like: Float[Tensor, "n h w 3"]) -> Tensor:
    """Images at the size of others."""
    size = tuple(like.shape[1:3])
    if tuple(images.shape[1:3]) == size:
        return images
    shrinks = images.shape[1] > size[0]
    resized = F.interpolate(images.movedim(-1, 1), size, mode="bilinear", antialias=shrinks)
    return resized.movedim(1, -1)


def _shown(images: Tensor) -> Callable[[], Tensor]:
    return lambda: images

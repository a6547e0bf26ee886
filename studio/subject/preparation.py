"""What happens to a subject before and between the stages, each thing once.

Before the first stage: photos are read, a placeholder is learned, class images are made, the
subject is trained. Before the first stage that needs pseudo views: the object so far is rendered,
the renders are redrawn, and the second training runs. What is finished is noted in ``run.json``
with its seconds and denoiser evaluations and is skipped by a run that goes on; what is not goes on
where it was, bit for bit on a CPU.

    preparation = SubjectPreparation(scene, run, device)
    preparation.before(0, None, should_stop=lambda: False)
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from image_tools.diffusion.loading import load_prior
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.captioned import CaptionedImages
from image_tools.personalization.captions import SubjectCaptions
from image_tools.personalization.class_images import make_class_images
from image_tools.personalization.dreambooth_configs import DcoConfig
from image_tools.personalization.loop import LoopHooks
from image_tools.personalization.textual_inversion_configs import WORD_BATCH
from renderers.cameras import Cameras
from studio.configs import SceneConfig
from studio.errors import Interrupted, StorageError
from studio.progress import format_seconds, say
from studio.run_folder import RunFolder, storage_errors
from studio.scene_parts import SceneRenderer
from studio.subject.captions import captions_for
from studio.subject.configs import PlaceholderTokenConfig, PlainSubjectConfig
from studio.subject.folder import SubjectFolder, read_images
from studio.subject.photos import check_words, keep_photos, kept_captions
from studio.subject.priors import with_subject, worded_prior
from studio.subject.rules import check_given, first_multiview_stage, has_multiview_weights
from studio.subject.samples import draw_samples, grid_rows, grids_of, sample_rows
from studio.subject.sheets import write_photo_sheet, write_sample_sheet, write_view_sheet
from studio.subject.training import (
    SubjectSet,
    drop_state,
    first_training,
    keep_lora,
    learn_word,
    second_training,
    training_rows,
)
from studio.subject.views import (
    PseudoViews,
    captions_of,
    read_views,
    redraw_views,
    redrawing_rows,
    render_views,
    view_cameras,
)
from studio.suggestions import command

__all__ = ["PREPARATIONS", "SubjectPreparation"]

PREPARATIONS = "preparations"
"""Key of ``run.json``."""
SUBJECT_LORA = "subject_lora"
"""Key of ``run.json``: how much of a whole denoiser's training its LoRA holds."""
TRAININGS = ("word_training", "training", "second_training")
TELL_EVERY_S = 10.0


class SubjectPreparation:
    """Makes of photos what the stages of a scene need, inside a run folder."""

    def __init__(self, scene: SceneConfig, run: RunFolder, device: torch.device) -> None:
        """Nothing is done yet."""
        self.scene, self.run, self.device = scene, run, device
        self.subject, self.folder = scene.subject, SubjectFolder(run.subject_dir)
        self.should_stop: Callable[[], bool] = lambda: False
        self.seconds = 0.0
        """Time spent here in this process."""
        self._told = 0.0

    def before(
        self, index: int, renderer: SceneRenderer | None, *, should_stop: Callable[[], bool]
    ) -> None:
        """Do what stage ``index`` needs and what is not done yet.

        Args:
            index: the stage that is about to begin.
            renderer: the object at the end of the stage before; None before the first.
            should_stop: asked wherever it can go on later.

        Raises:
            Interrupted: it was asked to stop; everything so far is kept.
            StudioError: photos, words or weights cannot be used.
        """
        started, self.should_stop = time.perf_counter(), should_stop
        try:
            if index == 0:
                self._learn()
            elif index == first_multiview_stage(self.scene.stages):
                self._make_views(renderer)
        finally:
            self.seconds += time.perf_counter() - started

    # --- before the first stage -------------------------------------------------------------------

    def _learn(self) -> None:
        self._once("photos", "photos", self._photos)
        token, training = self.subject.token, self.subject.training
        if isinstance(token, PlaceholderTokenConfig):
            self._once("word_training", f"learning {token.word}", self._word)
        if not isinstance(training, DcoConfig) and training.class_images.count:
            self._once("class_images", f"images of {self.subject.word}", self._class_images)
        self._once("training", f"{training.kind}, {training.loop.steps} steps", self._training)
        self._once("samples", "samples", lambda: self._samples("partial", "full"))

    def _photos(self) -> int:
        check_given(self.subject)
        prior = worded_prior(self.scene, self.device, self.folder, with_word=False)
        check_words(prior, self.subject)
        keep_photos(self.subject, self.folder.photos, size=prior.image_size)
        write_photo_sheet(self.folder)
        return 0

    def _word(self) -> int:
        token = self.subject.token
        prior = worded_prior(self.scene, self.device, self.folder, with_word=False)
        photos = read_images(self.folder.photos)
        seed, hooks = self.scene.seed, self._hooks(prior, "word_training")
        self._finish(
            learn_word(prior, photos, self.subject, token, self.folder, seed=seed, hooks=hooks)
        )
        rows = token.loop.steps * token.loop.accumulate * WORD_BATCH.size
        return rows + grid_rows(self.subject.samples, token.loop)

    def _class_images(self) -> int:
        self._class_set(self._prior())
        config = self.subject.training.class_images
        rows = 1 if config.sampler.guidance_scale == 1.0 else 2
        return config.count * config.sampler.steps * rows

    def _training(self) -> int:
        photos, config = read_images(self.folder.photos), self.subject.training
        prior = self._prior()
        data = SubjectSet(photos, self._captions(len(photos)), self._class_set(prior))
        self._finish(
            first_training(
                prior,
                data,
                self.subject,
                self.folder,
                seed=self.scene.seed,
                hooks=self._hooks(prior, "training"),
            )
        )
        del prior  # the next line loads another one, and both may not fit
        held = keep_lora(self.subject, self.folder, fresh=self._prior)
        if held is not None:
            self.run.update_info({SUBJECT_LORA: held})
        return training_rows(config, config.loop.steps) + grid_rows(
            self.subject.samples, config.loop
        )

    def _samples(self, *names: str) -> int:
        for name in names:
            use = PlainSubjectConfig(weights=name)
            prior = with_subject(self._plain(), self.subject, use, self.folder)
            draw_samples(self.scene, prior, self.folder, name)
        write_sample_sheet(self.folder, self.scene)
        return len(names) * sample_rows(self.subject.samples)

    # --- before the stage that needs views --------------------------------------------------------

    def _make_views(self, renderer: SceneRenderer) -> None:
        self._once("views", "pseudo views", lambda: self._views(renderer))
        if any(has_multiview_weights(stage) for stage in self.scene.stages):
            steps = self.subject.second_training.loop.steps
            title = f"second training, {steps} steps"
            self._once("second_training", title, self._second_training)
            self._once("second_samples", "samples", lambda: self._samples("multiview"))

    def _views(self, renderer: SceneRenderer) -> int:
        use = self.subject.views.subject
        plain = self._plain()
        rows = redrawing_rows(self.scene, plain)
        cameras = self._cameras(plain.image_size)
        if len(list(self.folder.views("renders").glob("*.png"))) < len(cameras):
            views = self.subject.views
            sees = [control.sees for control in views.controls]
            render_views(renderer, cameras, self.folder, sees=sees, cutout=views.cutout)
        prior = with_subject(plain, self.subject, use, self.folder)
        self._finish(
            redraw_views(self.scene, prior, cameras, self.folder, should_stop=self.should_stop)
        )
        write_view_sheet(self.folder, cameras)
        return rows

    def _second_training(self) -> int:
        prior, config = self._prior(), self.subject.training
        photos = read_images(self.folder.photos)
        views, own = self.views(), self._captions(len(photos))
        texts = []
        for of_photos, of_class in ((own.prompts, False), (own.base_prompts, True)):
            caption = self.subject.caption(of_class=of_class)
            of_views = captions_of(self.scene.view_prompts, caption, views.cameras)
            texts.append(of_photos + of_views)
        images = torch.cat([photos, views.images])
        data = SubjectSet(images, SubjectCaptions(*texts), self._class_set(prior))
        self._finish(
            second_training(
                prior,
                data,
                self.subject,
                self.folder,
                seed=self.scene.seed,
                hooks=self._hooks(prior, "second_training"),
            )
        )
        config = replace(config, loop=self.subject.second_training.loop)
        return training_rows(config, config.loop.steps) + grid_rows(
            self.subject.samples, config.loop
        )

    def total_seconds(self) -> float:
        """Time of all preparations, those of earlier processes included."""
        records = self.run.read_info().get(PREPARATIONS, {}).values()
        return round(sum(record["seconds"] for record in records), 3)

    def views(self) -> PseudoViews:
        """The pseudo views, once they are made."""
        size = read_images(self.folder.views("pseudo")).shape[1]
        return read_views(self.folder, self._cameras(size), self.subject.views.cutout)

    # --- around them ------------------------------------------------------------------------------

    def _cameras(self, size: int) -> Cameras:
        """Cameras of the views: at the distances of the stage that is rendered."""
        rendered = self.scene.stages[first_multiview_stage(self.scene.stages) - 1]
        return view_cameras(self.subject.views, rendered.cameras, size=size)

    def _once(self, name: str, title: str, action: Callable[[], int]) -> None:
        """Do something and note that it is done, or skip it."""
        record = self._record(name)
        if not record.get("finished"):
            self._finish(not self.should_stop())
            say(f"Subject: {title} …")
            started, before = time.perf_counter(), record.get("seconds", 0.0)
            try:
                with storage_errors(self.folder.path, "write"):
                    rows = action()
            except BaseException:
                seconds = before + time.perf_counter() - started
                with contextlib.suppress(StorageError):  # what ended it is the error to show
                    self._note(name, {"seconds": round(seconds, 3), "finished": False})
                raise
            seconds = round(before + time.perf_counter() - started, 3)
            done = {"seconds": seconds, "finished": True, "denoiser_evaluations": rows}
            self._note(name, done)
            say(f"Subject: {title}, done in {format_seconds(seconds)}.")
        if name in TRAININGS:
            drop_state(self.folder.training(name))

    def _record(self, name: str) -> dict[str, Any]:
        """What is noted about a preparation."""
        return self.run.read_info().get(PREPARATIONS, {}).get(name, {})

    def _note(self, name: str, values: dict[str, Any]) -> None:
        known = self.run.read_info().get(PREPARATIONS, {})
        self.run.update_info({PREPARATIONS: {**known, name: values}})

    def _finish(self, is_finished: bool) -> None:
        """Stop where the user asked for it; what was asked saved itself."""
        if not is_finished:
            raise Interrupted(
                "Stopped while the subject was prepared; all that is done is kept. "
                f"Continue with: {command('run', '--resume', self.run.path)}"
            )

    def _hooks(self, prior: DiffusionPrior, training: str) -> LoopHooks:
        """What a training does besides; ``loop.sample_every`` asks for pictures on the way."""
        return LoopHooks(
            log=self._tell,
            should_stop=self.should_stop,
            sample=grids_of(self.scene, prior, self.folder, training),
        )

    def _tell(self, text: str) -> None:
        """Pass on a line of a training's log, not more than one every few seconds."""
        now = time.monotonic()
        if now - self._told >= TELL_EVERY_S:
            self._told = now
            say(f"  {text}")

    def _captions(self, count: int) -> SubjectCaptions:
        """The captions of the photos."""
        return captions_for(self.subject, kept_captions(self.folder.photos), count=count)

    def _class_set(self, prior: DiffusionPrior) -> CaptionedImages | None:
        """Images of the class, made where they are missing; None without prior preservation."""
        training = self.subject.training
        if isinstance(training, DcoConfig) or not training.class_images.count:
            return None
        return make_class_images(
            prior,
            self.subject.caption(of_class=True),
            self.folder.class_images,
            config=training.class_images,
            seed=self.scene.seed,
            log=self._tell,
            check_stop=lambda: self._finish(not self.should_stop()),
        )

    def _prior(self) -> DiffusionPrior:
        """The prior that a training begins with."""
        return worded_prior(self.scene, self.device, self.folder)

    def _plain(self) -> DiffusionPrior:
        """The prior without anything of the subject."""
        return load_prior(self.scene.prior, self.device)

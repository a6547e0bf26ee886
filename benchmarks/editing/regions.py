"""Prompts by region: do two things get their own colours, each in its own half?

The scene is one thing left of another. The plain prompt says the same in words; the regional one
says it by halves, the whole prompt counting a part in both. The judge reads what stands in each
half. ``bound`` is the share of objects whose kind and colour are right, ``colors`` the colour
alone, and ``colors_of_halves`` the colour of what lies left and right of the middle, also where the
things have grown together. What the judge says of true renders is the most that can be reached.
``colors_by_region_alone`` are those of another image, whose whole prompt names no colours: only the
regions can bring them.

Three and four things stand in as many columns. The prior was trained on images of one and of two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.editing.bench import Bench, Found, Row, Target
from benchmarks.editing.cases import Case, pair_cases, render, row_cases
from benchmarks.editing.oracles import Seen, columns, halves, read_objects, silhouette
from image_tools.control.regional import RegionalPrior
from image_tools.control.regional_configs import RegionalConfig, RegionConfig, RegionMode
from image_tools.diffusion.sampling import sample_images
from scenes.toybox.captions import plain_caption, with_article
from scenes.toybox.objects import ObjectSpec
from scenes.toybox.scene import SceneSpec

__all__ = ["REGION_ROWS", "without_colors"]

BASE_RATIO = 0.6
"""Share of the whole prompt in each region. Found for pocket on cases of another seed: with less,
halves grow together, for each half's prompt asks for a thing that fills the image."""


@dataclass(frozen=True)
class _Regions:
    """One way of composing."""

    mode: RegionMode

    def measure(self, bench: Bench, count: int) -> Found:
        """Things and colours in their halves."""
        cases = pair_cases(count, seed=bench.seed)
        numbers = [case.number for case in cases]
        plain = bench.images([case.prompt for case in cases], numbers)
        untold = bench.images([without_colors(case) for case in cases], numbers)
        found = Found(("true render", "plain prompt", "by region", "no colours told", "by region"))
        for case, alone, dull in zip(cases, plain, untold, strict=True):
            ours = _regional(bench, case, case.prompt, self.mode)
            tinted = _regional(bench, case, without_colors(case), self.mode)
            true = render(case, size=bench.prior.image_size).rgb
            images = (ours, alone, true)
            reads = [read_objects(bench.judge, image, halves(image)) for image in images]
            found.add(
                {
                    "bound": tuple(_share(case, read, Seen.shows) for read in reads[:2]),
                    "colors": tuple(_share(case, read, Seen.has_color) for read in reads[:2]),
                    "colors_of_halves": tuple(
                        _share(case, read_objects(bench.judge, i, _middle(i)), Seen.has_color)
                        for i in images[:2]
                    ),
                    "colors_by_region_alone": tuple(
                        _share(case, read_objects(bench.judge, i, halves(i)), Seen.has_color)
                        for i in (tinted, dull)
                    ),
                    "bound_in_renders": _share(case, reads[2], Seen.shows),
                }
            )
            is_good = _share(case, reads[0], Seen.shows) == 1.0
            found.show(case.prompt, [true, alone, ours, dull, tinted], is_good)
        return found


@dataclass(frozen=True)
class _Columns:
    """So many things in a row, each told to its column."""

    things: int

    def measure(self, bench: Bench, count: int) -> Found:
        """Things and colours in their columns."""
        cases = row_cases(count, self.things, seed=bench.seed)
        plain = bench.images([case.prompt for case in cases], [case.number for case in cases])
        found = Found(("true render", "plain prompt", "by region"))
        for case, alone in zip(cases, plain, strict=True):
            ours = _regional(bench, case, case.prompt, "attn_crop")
            true = render(case, size=bench.prior.image_size)
            reads = [
                read_objects(bench.judge, image, columns(image, self.things))
                for image in (ours, alone)
            ]
            best = read_objects(bench.judge, true.rgb, true.instances.unbind())
            found.add(
                {
                    "bound": tuple(_share(case, read, Seen.shows) for read in reads),
                    "colors": tuple(_share(case, read, Seen.has_color) for read in reads),
                    "bound_in_renders": _share(case, best, Seen.shows),
                }
            )
            is_good = _share(case, reads[0], Seen.shows) == 1.0
            found.show(case.prompt, [true.rgb, alone, ours], is_good)
        return found


def without_colors(case: Case) -> str:
    """A case's prompt that leaves its colours to be told by region."""
    prompt = case.prompt
    for spec in case.scene.objects:
        before, after = prompt.split(f"{with_article(spec.color)} ", 1)
        prompt = before + with_article(after)
    return prompt


def _regional(bench: Bench, case: Case, whole: str, mode: RegionMode) -> Float[Tensor, "h w 3"]:
    """The things of a case from left to right, each told to its column, beside a whole prompt."""
    phrases = [plain_caption(SceneSpec((spec,))) for spec in case.scene.objects]
    plan = RegionalConfig(
        ",".join("1" for _ in phrases),
        tuple(map(RegionConfig, phrases)),
        base_ratio=BASE_RATIO,
        mode=mode,
    )
    (image,) = sample_images(
        RegionalPrior(bench.prior, plan),
        [whole],
        generators=bench.generators([case.number]),
        config=bench.sampler,
    )
    return image


def _middle(image: Float[Tensor, "h w 3"]) -> tuple[Bool[Tensor, "h w"], Bool[Tensor, "h w"]]:
    """What is left and right of the middle, whatever belongs together."""
    left, right = silhouette(image), silhouette(image)
    middle = image.shape[1] // 2
    left[:, middle:], right[:, :middle] = False, False
    return left, right


def _share(
    case: Case, reads: Sequence[Seen], is_right: Callable[[Seen, ObjectSpec], bool]
) -> float:
    """Share of the objects that are right."""
    right = [is_right(seen, spec) for seen, spec in zip(reads, case.scene.objects, strict=True)]
    return sum(right) / len(right)


_PLAIN = "the plain prompt from the same noise"

REGION_ROWS = (
    *(
        Row(
            f"regions-{mode.replace('_', '-')}",
            f"Two things side by side, each told to its half, mode {mode}.",
            _PLAIN,
            _Regions(mode).measure,
            {"bound": Target(0.8)},
        )
        for mode in ("attn_crop", "attn_resize", "latent")
    ),
    *(
        Row(
            f"regions-{name}",
            f"{name.capitalize()} things in a row, each told to its column, mode attn_crop.",
            _PLAIN,
            _Columns(things).measure,
        )
        for things, name in ((3, "three"), (4, "four"))
    ),
)

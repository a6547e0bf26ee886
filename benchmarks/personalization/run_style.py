"""Draw sets of pictures in the style of their first, and measure how alike they are.

    python -m benchmarks.personalization.run_style                      # minutes on one core
    python -m benchmarks.personalization.run_style --minutes 20         # begins no set after that

The first prompt of a set has a colour and a pattern ("a dotted purple mushroom"), the other three
name a kind alone ("a duck"), so that a style can only come from the first picture. Every variant
starts from the same noise. Figures, means over sets:

    palette        overlap of the colour histograms of two things of a set, over all pairs
    color, pattern share of the other pictures with the first one's, as the judge sees them
    kind           share of the other pictures that show what their prompt asks for
    leak           share of the other pictures that show the first one's kind

Results go to ``benchmarks/results/style_aligned--NAME.{json,md,png}``.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.personalization.tables import (
    difference_table,
    document_of,
    figures_table,
    note_of,
    write_files,
)
from benchmarks.text_to_3d.run_suite import RESULTS
from image_tools.configs import DdimConfig, PocketPriorConfig
from image_tools.diffusion.loading import load_prior
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.style_aligned import draw_style_set
from image_tools.personalization.style_aligned_configs import StyleSharingConfig
from scenes.toybox.captions import with_article
from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES, KINDS, PATTERNS
from studio.errors import StudioError
from studio.evaluation.comparison import Result
from studio.evaluation.judge import Judge, load_judge
from studio.evaluation.sheets import comparison_sheet
from studio.progress import say

SCHEMA = "style_aligned/1"
MODULE = "benchmarks.personalization.run_style"
BASELINE = "unshared"
VARIANTS = {
    BASELINE: StyleSharingConfig(attention="off", normalized=(), group_norm="own"),
    "style_aligned": StyleSharingConfig(),
    "full attention": StyleSharingConfig(attention="full"),
}
FIGURES = {
    "palette": "palette ↑",
    "color": "colour ↑",
    "pattern": "pattern ↑",
    "kind": "kind ↑",
    "leak": "leak ↓",
}
COSTS = {"seconds": "CPU s a set"}
SIZE = 4  # pictures of a set
BINS = 4  # of a colour histogram, for each channel
BORDER, CONTRAST = 2, 0.12  # pixels of the frame, and what differs from it
SHOWN, ZOOM = 5, 2


@dataclass(frozen=True)
class StyleSet:
    """What a set shows."""

    kinds: tuple[str, ...]
    color: str
    pattern: str

    @property
    def prompts(self) -> list[str]:
        """The first one tells the style."""
        words = [] if self.pattern == PATTERNS[0] else [self.pattern]
        first = " ".join([*words, self.color, KINDS[self.kinds[0]].noun])
        return [with_article(first), *(with_article(KINDS[k].noun) for k in self.kinds[1:])]


def style_sets(count: int, *, seed: int) -> list[StyleSet]:
    """Sets with kinds at random, and colours and patterns in turns."""
    rng = np.random.default_rng(seed)
    return [
        StyleSet(
            tuple(str(kind) for kind in rng.choice(KIND_NAMES, SIZE, replace=False)),
            COLOR_NAMES[k % len(COLOR_NAMES)],
            PATTERNS[k % len(PATTERNS)],
        )
        for k in range(count)
    ]


def palettes(images: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b bins"]:
    """Shares of colours among the pixels that differ from the frame's colour."""
    found = []
    for image in images:
        inner = image[BORDER:-BORDER, BORDER:-BORDER]
        frame = torch.ones(image.shape[:2], dtype=torch.bool)
        frame[BORDER:-BORDER, BORDER:-BORDER] = False
        ground = image[frame].median(dim=0).values
        pixels = inner[(inner - ground).abs().amax(dim=-1) > CONTRAST]
        places = (pixels.clamp(0.0, 1.0 - 1e-6) * BINS).long()
        index = (places * torch.tensor([BINS * BINS, BINS, 1])).sum(dim=-1)
        counts = torch.bincount(index, minlength=BINS**3).float()
        found.append(counts / counts.sum().clamp(min=1.0))
    return torch.stack(found)


def figures_of(asked: StyleSet, images: Float[Tensor, "n h w 3"], judge: Judge) -> dict[str, float]:
    """What the module's docstring tells."""
    seen, colors = judge(images), palettes(images)
    pairs = itertools.combinations(range(len(images)), 2)
    overlaps = [float(torch.minimum(colors[a], colors[b]).sum()) for a, b in pairs]
    kinds = [KIND_NAMES[k] for k in seen.kind.argmax(dim=1)][1:]
    wanted = {
        "color": [COLOR_NAMES[k] == asked.color for k in seen.color.argmax(dim=1)][1:],
        "pattern": [PATTERNS[k] == asked.pattern for k in seen.pattern.argmax(dim=1)][1:],
        "kind": [kind == own for kind, own in zip(kinds, asked.kinds[1:], strict=True)],
        "leak": [kind == asked.kinds[0] for kind in kinds],
    }
    shares = {name: sum(each) / len(each) for name, each in wanted.items()}
    return {"palette": sum(overlaps) / len(overlaps), **shares}


def draw(
    prior: DiffusionPrior, asked: StyleSet, sharing: StyleSharingConfig, sampler: DdimConfig, k: int
) -> Float[Tensor, "n h w 3"]:
    """A set, from noise of its own number."""
    generators = [torch.Generator().manual_seed(SIZE * k + place) for place in range(SIZE)]
    return draw_style_set(
        prior, asked.prompts, generators=generators, config=sampler, sharing=sharing
    )


def page(document: dict, results: Sequence[Result], sampler: DdimConfig) -> str:
    """The Markdown file."""
    return (
        "\n\n".join(
            [
                "# Sets in one style",
                f"`{document['command']}`",
                f"{document['date']}, {document['machine']['processor']}, prior "
                f"{', '.join(document['priors'])}. {sampler.steps} DDIM steps, guidance scale "
                f"{sampler.guidance_scale:g}. Sets have {SIZE} pictures. {note_of('sets')}",
                figures_table(results, FIGURES, COSTS, unit="sets"),
                f"## Difference to {BASELINE}\n\nPaired: the same prompts and noise.",
                difference_table(results, FIGURES, to=BASELINE),
            ]
        )
        + "\n"
    )


def sheet_of(drawn: dict[str, list[Tensor]], sets: Sequence[StyleSet]) -> Tensor:
    """The first sets in lines, variants side by side."""
    rows = [", ".join(asked.prompts) for asked in sets[:SHOWN]]
    cells = [[torch.cat(list(each[k]), dim=1) for each in drawn.values()] for k in range(len(rows))]
    zoomed = [
        [cell.repeat_interleave(ZOOM, 0).repeat_interleave(ZOOM, 1) for cell in line]
        for line in cells
    ]
    marks = [[True] * len(drawn) for _ in rows]
    return comparison_sheet(zoomed, rows=rows, columns=list(drawn), right=marks)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__.splitlines()[0])
    add = found.add_argument
    add("--name", default="pocket", help="name of the result files")
    add("--prior", help="folder of another pocket prior")
    add("--variants", default=",".join(VARIANTS), help=f"by commas; {BASELINE} is always drawn")
    add("--sets", type=int, default=24)
    add("--steps", type=int, default=15, help="of DDIM")
    add("--guidance-scale", type=float, default=5.0)
    add("--seed", type=int, default=0, help="of the kinds")
    add("--minutes", type=float, help="begin no set later than this")
    add("--results", type=Path, default=RESULTS)
    return found


def chosen_variants(names: str) -> dict[str, StyleSharingConfig]:
    """The baseline, and variants by their names.

    Raises:
        StudioError: a name is not known.
    """
    wanted = dict.fromkeys([BASELINE, *names.split(",")])
    unknown = sorted(set(wanted) - set(VARIANTS))
    if unknown:
        raise StudioError(
            f"--variants has {', '.join(unknown)} - expected some of: {', '.join(VARIANTS)}."
        )
    return {name: VARIANTS[name] for name in wanted}


def measure(
    prior: DiffusionPrior, options: argparse.Namespace, sets: Sequence[StyleSet]
) -> tuple[list[Result], dict[str, list[Tensor]]]:
    """Figures of all sets that there is time for, and the pictures of each variant.

    Raises:
        StudioError: a variant is not known.
    """
    variants, judge = chosen_variants(options.variants), load_judge()
    results, drawn = [], {name: [] for name in variants}
    begun = time.monotonic()
    for k, asked in enumerate(sets):
        if options.minutes is not None and time.monotonic() - begun > 60.0 * options.minutes:
            break
        for name, sharing in variants.items():
            started = time.process_time()
            images = draw(prior, asked, sharing, sampler_of(options), k)
            costs = {"seconds": time.process_time() - started}
            metrics, label = figures_of(asked, images, judge), " | ".join(asked.prompts)
            results.append(Result(name, label, k, "done", metrics, costs, prior=prior.fingerprint))
            drawn[name].append(images)
        say(f"set {k + 1} of {len(sets)}")
    return results, drawn


def sampler_of(options: argparse.Namespace) -> DdimConfig:
    """The sampler of all pictures."""
    return DdimConfig(steps=options.steps, guidance_scale=options.guidance_scale)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, measure, write."""
    options = parser().parse_args(argv)
    torch.set_num_threads(1)
    sets = style_sets(options.sets, seed=options.seed)
    try:
        prior = load_prior(PocketPriorConfig(path=options.prior), torch.device("cpu"))
        results, drawn = measure(prior, options, sets)
    except StudioError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    document = document_of(MODULE, SCHEMA, results, [*FIGURES, *COSTS])
    text, name = page(document, results, sampler_of(options)), f"style_aligned--{options.name}"
    done = len(next(iter(drawn.values())))
    paths = write_files(options.results, name, document, text, sheet_of(drawn, sets[:done]))
    sys.stdout.write(text + "\n".join(map(str, paths)) + "\n")


if __name__ == "__main__":
    main()

"""Prompt-to-Prompt on samples: swaps, added words, weights of words, and local blending.

Source, edit and baseline start from the same noise. The baseline is the edited prompt alone, which
is what one would do without the tool: it succeeds as often, and makes another object. So an edit is
worth its name if it succeeds as well and keeps the silhouette, or the other object, better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.editing.bench import BYTES, CORRELATION, Bench, Found, Row, Target
from benchmarks.editing.cases import Case, pair_cases, single_cases
from benchmarks.editing.oracles import (
    Seen,
    byte_difference,
    halves,
    overlap,
    read_images,
    read_objects,
    silhouette,
)
from image_tools.editing.editing_configs import (
    EditedPromptConfig,
    LocalBlendConfig,
    PromptToPromptConfig,
    WordWeightConfig,
)
from image_tools.editing.prompt_to_prompt import PromptToPromptPrior, edit_images

__all__ = ["PROMPT_EDITS", "edited"]

WEIGHTS = (0.0, 1.0, 2.0, 4.0)
POCKET_LEVEL = 0
"""Blending looks at maps of 16 x 16."""


def edited(
    bench: Bench, case: Case, config: PromptToPromptConfig
) -> Float[Tensor, "prompts h w 3"]:
    """The source and its edits from a case's noise."""
    prior = PromptToPromptPrior(bench.prior, replace(config, steps=bench.sampler.steps))
    generators = bench.generators([case.number])
    return edit_images(prior, generators=generators, config=bench.sampler)[:, 0]


@dataclass(frozen=True)
class _WordEdit:
    """A change of one object's word."""

    target: Callable[[Case], Case]
    edit: EditedPromptConfig
    """Without its prompt."""
    succeeds: Callable[[Seen, Case], bool]
    """Whether an image shows the target."""

    def measure(self, bench: Bench, count: int) -> Found:
        """Success, and how much of the silhouette stays."""
        cases = single_cases(count, seed=bench.seed)
        goals = [self.target(case) for case in cases]
        plain = bench.images([goal.prompt for goal in goals], [case.number for case in cases])
        found = Found(("source", "edited prompt alone", "Prompt-to-Prompt"))
        for case, goal, alone in zip(cases, goals, plain, strict=True):
            edit = replace(self.edit, prompt=goal.prompt)
            source, ours = edited(bench, case, PromptToPromptConfig(case.prompt, (edit,)))
            seen, other, _ = read_images(bench.judge, torch.stack([ours, alone, source]))
            masks = [silhouette(image) for image in (source, ours, alone)]
            found.add(
                {
                    "success": (self.succeeds(seen, goal), self.succeeds(other, goal)),
                    "silhouette": (overlap(masks[0], masks[1]), overlap(masks[0], masks[2])),
                }
            )
            backgrounds = tuple(
                byte_difference(source, image, ~(masks[0] | mask))
                for image, mask in ((ours, masks[1]), (alone, masks[2]))
            )
            found.add({"background": backgrounds}, within=BYTES)
            found.show(
                f"{case.prompt} -> {goal.prompt}",
                [source, alone, ours],
                self.succeeds(seen, goal),
            )
        return found


def _shows_goal(seen: Seen, goal: Case) -> bool:
    return seen.shows(goal.spec)


def _has_pattern(seen: Seen, goal: Case) -> bool:
    return seen.pattern == goal.pattern and seen.kind == goal.spec.kind


def _measure_weights(bench: Bench, count: int) -> Found:
    """How probable the pattern is to the judge, by the weight of its word."""
    found = Found(tuple(f"weight {weight:g}" for weight in WEIGHTS))
    for case in single_cases(count, seed=bench.seed):
        case = case.patterned
        edits = tuple(
            EditedPromptConfig(
                case.prompt,
                cross_steps=(0.0, 1.0),
                self_steps=(0.0, 0.4),
                word_weights=(WordWeightConfig(case.pattern, weight),),
            )
            for weight in WEIGHTS
        )
        images = edited(bench, case, PromptToPromptConfig(case.prompt, edits))
        strengths = [s.patterns[case.pattern] for s in read_images(bench.judge, images)]
        plain, strengths = strengths[0], strengths[1:]
        for weight, strength in zip(WEIGHTS, strengths, strict=True):
            found.add({f"pattern_at_{weight:g}": (strength, plain)})
        rank = spearmanr(WEIGHTS, strengths).statistic if len(set(strengths)) > 1 else 0.0
        found.add({"rank_correlation": float(rank)}, within=CORRELATION)
        found.show(case.prompt, list(images[1:]))
    return found


def _measure_blend(bench: Bench, count: int) -> Found:
    """One object of a pair changes colour; blending must leave the other one and the rest."""
    found = Found(("source", "edited prompt alone", "without blending", "local blending"))
    cases = pair_cases(count, seed=bench.seed)
    goals = [case.recolored for case in cases]
    plain = bench.images([goal.prompt for goal in goals], [case.number for case in cases])
    for case, goal, alone in zip(cases, goals, plain, strict=True):
        edit = EditedPromptConfig(goal.prompt, align="replace", self_steps=(0.0, 0.4))
        words = (case.words(0), case.words(0))
        blend = LocalBlendConfig(words, level=POCKET_LEVEL)
        source, free = edited(bench, case, PromptToPromptConfig(case.prompt, (edit,)))
        _, ours = edited(bench, case, PromptToPromptConfig(case.prompt, (edit,), blend=blend))
        own, other = halves(source)
        outside = ~(own | halves(ours)[0] | halves(alone)[0])
        reads = [read_objects(bench.judge, image, halves(image)) for image in (ours, alone)]
        free_reads = read_objects(bench.judge, free, halves(free))
        found.add(
            {
                "success": tuple(read[0].color == goal.spec.color for read in reads),
                "other_object": tuple(overlap(other, halves(i)[1]) for i in (ours, alone)),
                "success_without_blending": free_reads[0].color == goal.spec.color,
            }
        )
        outsides = [byte_difference(source, i, outside) for i in (ours, alone, free)]
        found.add(
            {"outside": tuple(outsides[:2]), "outside_without_blending": outsides[2]}, within=BYTES
        )
        found.show(
            f"{case.prompt} -> {goal.prompt}",
            [source, alone, free, ours],
            reads[0][0].color == goal.spec.color,
        )
    return found


_REPLACED = EditedPromptConfig("", align="replace", cross_steps=(0.0, 0.8), self_steps=(0.0, 0.4))
_REFINED = EditedPromptConfig("", align="refine", cross_steps=(0.0, 0.6), self_steps=(0.0, 0.3))
_SAME_PLACE = {"success": Target(0.8), "silhouette": Target(0.8)}

PROMPT_EDITS = (
    Row(
        "p2p-recolour",
        "Another colour word, swapped word for word.",
        "the edited prompt alone from the same noise",
        _WordEdit(lambda case: case.recolored, _REPLACED, _shows_goal).measure,
        _SAME_PLACE,
    ),
    Row(
        "p2p-refine",
        "A word for a pattern is added.",
        "the edited prompt alone from the same noise",
        _WordEdit(lambda case: case.patterned, _REFINED, _has_pattern).measure,
        _SAME_PLACE,
    ),
    Row(
        "p2p-swap",
        "Another kind of object in the same colour, swapped word for word.",
        "the edited prompt alone from the same noise",
        _WordEdit(lambda case: case.swapped, _REPLACED, _shows_goal).measure,
        {"success": Target(0.8)},
    ),
    Row(
        "p2p-reweight",
        "The word of a pattern gets less or more attention.",
        "the prompt without weights",
        _measure_weights,
        {"rank_correlation": Target(0.8)},
        share=0.5,
    ),
    Row(
        "p2p-local-blend",
        "The left object of a pair changes colour, within its place alone.",
        "the edited prompt alone from the same noise",
        _measure_blend,
        {"success": Target(0.8), "outside": Target(2.0, is_least=False)},
    ),
)

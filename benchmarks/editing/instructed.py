"""Instructed edits by how much the image counts: the curve of InstructPix2Pix (section 4.2).

Each edit of unseen individuals is made with image scales s_I from 1 to 2.2, from the same noise.
The more the image counts, the more alike are both images, and the less is their change that of the
words. The paper takes both from CLIP; here they are cosines in the judge's space, in which an image
is the probabilities of kind, colour and pattern, and words are what they name:

    image       cos(f(after), f(before))
    direction   cos(f(after) - f(before), c(after) - c(before))

``image_rank`` and ``direction_rank`` are the rank correlations of s_I and the means over cases, and
``outside_db`` is how well the background stays. The baseline of other scales is the least one.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.editing.adapters import edit_eval_config
from benchmarks.editing.bench import CORRELATION, Bench, Figure, Found, Row, Target
from benchmarks.editing.regression import rank_of_means
from image_tools.editing.edit_weights import read_edit_unet
from image_tools.pocket.paths import POCKET_FOLDER
from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES, PATTERNS
from studio.evaluation.edits import CHANGED, HEADS, EditCases, evaluate_edits
from studio.evaluation.intervals import SHARE
from studio.evaluation.judge import Judge
from studio.progress import say
from studio.training.adapters_edit import edit_cases
from studio.training.pairs_generated import JudgeScorer

__all__ = ["INSTRUCTED", "SCALES", "alike", "along_the_words"]

WEIGHTS = POCKET_FOLDER.parent / "pocket-ip2p"
SCALES = (1.0, 1.4, 1.8, 2.2)


def alike(
    judge: Judge, before: Float[Tensor, "n h w 3"], after: Float[Tensor, "n h w 3"]
) -> Float[Tensor, " n"]:
    """Cosines of images in the judge's space."""
    scorer = JudgeScorer(judge)
    return F.cosine_similarity(scorer.embed_images(before), scorer.embed_images(after))


def along_the_words(
    judge: Judge,
    before: Float[Tensor, "n h w 3"],
    after: Float[Tensor, "n h w 3"],
    labels: np.ndarray,
) -> Float[Tensor, " n"]:
    """Cosines of the images' change and that of the words.

    Args:
        judge: its space.
        before: images.
        after: images.
        labels: ``[n, 2, 3]`` index of kind, colour and pattern before and after.
    """
    scorer, sizes = JudgeScorer(judge), map(len, (KIND_NAMES, COLOR_NAMES, PATTERNS))
    parts = [
        F.one_hot(torch.from_numpy(labels[..., column]), size).float()
        for column, size in enumerate(sizes)
    ]
    words = torch.cat(parts, dim=-1)
    change = scorer.embed_images(after) - scorer.embed_images(before)
    return F.cosine_similarity(change, words[:, 1] - words[:, 0])


def _done(judge: Judge, images: Float[Tensor, "n h w 3"], cases: EditCases) -> Bool[Tensor, " n"]:
    """Whether the judge sees what each instruction asks for."""
    seen = judge(images)
    found = {head: getattr(seen, head).argmax(1) for head in HEADS}
    heads = [CHANGED[name] for name in cases.names]
    wanted = [cases.labels[k, 1, HEADS.index(head)] for k, head in enumerate(heads)]
    return torch.tensor([int(found[head][k]) == wanted[k] for k, head in enumerate(heads)])


def _measure_scales(bench: Bench, count: int) -> Found:
    config = edit_eval_config(bench, count)
    with tempfile.TemporaryDirectory() as work:
        cases = edit_cases(config, bench.prior, Path(work), log=say)
    unet, judge = read_edit_unet(WEIGHTS).to(bench.prior.device), bench.judge
    reports = [
        evaluate_edits(bench.prior, unet, judge, cases, replace(config, image_scale=s))
        for s in SCALES
    ]
    images = [report.images for report in reports]
    before, labels = cases.sources, cases.labels
    curves = {
        "image": torch.stack([alike(judge, before, after) for after in images]),
        "direction": torch.stack([along_the_words(judge, before, x, labels) for x in images]),
        "done": torch.stack([_done(judge, after, cases).float() for after in images]),
    }
    ranges = {"image": CORRELATION, "direction": CORRELATION, "done": SHARE}
    found = Found(("source", *(f"s_I {scale:g}" for scale in SCALES), "true"))
    for name in ("image", "direction"):
        rank = rank_of_means(SCALES, curves[name].T.tolist())
        found.figures.append(Figure(f"{name}_rank", rank))
    for scale, report in zip(SCALES, reports, strict=True):
        outside = report.figures["outside_db"]
        found.figures.append(Figure(f"outside_db_at_{scale:g}", outside))
    for k, said in enumerate(cases.instructions):
        for name, curve in curves.items():
            values = curve[:, k].tolist()
            found.add({f"{name}_at_{SCALES[0]:g}": values[0]}, within=ranges[name])
            for scale, value in zip(SCALES[1:], values[1:], strict=True):
                found.add({f"{name}_at_{scale:g}": (value, values[0])}, within=ranges[name])
        found.show(said, [before[k], *(after[k] for after in images), cases.targets[k]])
    return found


INSTRUCTED = (
    Row(
        "instruct-pix2pix-scales",
        f"Renders are edited with image scales {', '.join(f'{s:g}' for s in SCALES)}.",
        f"the same edit with image scale {SCALES[0]:g}",
        _measure_scales,
        {"image_rank": Target(0.8), "direction_rank": Target(-0.8, is_least=False)},
        share=0.5,
        weights=WEIGHTS,
    ),
)

"""The recipe of pocket-ip2p: the pocket prior taught to edit images by instructions.

As InstructPix2Pix (arXiv 2211.09800): the denoiser gets four more input channels with zero weights
and is trained whole on pairs, with instruction, image and both dropped in 5 % each; the result are
averaged weights. Pairs are exact ones of the renderer (:mod:`studio.training.pairs`) and, as in the
paper, ones that the prior draws itself (:mod:`studio.training.pairs_generated`), or instead those
of a folder of one's own (:mod:`studio.training.pairs_own`). Instructions say left and right, so
nothing is mirrored. While it trains, the network reads preconditioned text states
(:mod:`studio.training.conditioning`).

What is written is a stock ``UNet2DConditionModel`` of 8 input channels in the folder ``unet``, in
half precision, with ``training.json`` and ``evaluation.json``. Stages, each resumable and skipped
once finished: render, draw, encode, train, write; then it is measured.

    train_edit(PRESETS["cpu"], work, start=start, out=out, device=device, log=print)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.diffusion.conditions import TextEmbedding
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.stock_modules import write_module
from image_tools.editing.edit_training import EditDenoiser, draw_dropped, new_edit_unet
from image_tools.editing.edit_weights import read_edit_unet
from scenes.toybox.samples import SampleConfig
from studio.evaluation.edits import CHANGED, EditCases, EditEvalConfig, EditReport, evaluate_edits
from studio.evaluation.judge import load_judge
from studio.training.adapter_parts import draw_velocity, step_generator, write_card, write_figures
from studio.training.conditioning import TextPreconditioner
from studio.training.denoiser import LatentCache, cache_latents, cache_text
from studio.training.loop import LoopConfig, TrainingLoop
from studio.training.pair_cache import PairCache, PairConfig, render_pairs
from studio.training.pairs_generated import GeneratedPairConfig, generate_pairs
from studio.training.pairs_own import copy_pairs
from studio.training.start import frozen_parts, note_start, unet_digest, vae_digest

__all__ = [
    "PRESETS",
    "EditRecipe",
    "EncodedPairs",
    "edit_cases",
    "edit_loss",
    "encode_pairs",
    "make_pairs",
    "measure_edits",
    "train_edit",
]

Log = Callable[[str], None]


@dataclass(frozen=True)
class EditRecipe:
    """All choices of the recipe."""

    pairs: PairConfig = field(default_factory=PairConfig)
    """The exact pairs."""
    generated: GeneratedPairConfig = field(default_factory=GeneratedPairConfig)
    """The pairs that the prior draws."""
    batch_size: int = 16
    """Pairs a step."""
    dropout: float = 0.05
    """Probability to drop the instruction alone, the image alone, and both."""
    noise_tilt: float = 1.0
    """Timesteps have density p (t/T)^(p-1): 1 is uniform."""
    text_ridge: float = 1e-2
    """Ridge of the text preconditioner, as a share of the states' mean variance."""
    seed: int = 41
    """Seed of batches and noise."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=2600, learning_rate=4e-4))
    """Length and learning rate."""
    evaluation: EditEvalConfig = field(default_factory=EditEvalConfig)
    """How the result is measured."""


PRESETS: dict[str, EditRecipe] = {
    "cpu": EditRecipe(),
    "gpu": EditRecipe(
        pairs=PairConfig(edits=16_000),
        generated=GeneratedPairConfig(edits=60),
        batch_size=192,
        loop=LoopConfig(steps=2800, learning_rate=6e-4),
    ),
}


class EncodedPairs:
    """Latents and instructions of the pairs of several caches, one after the other."""

    def __init__(self, caches: Sequence[LatentCache]) -> None:
        """Keep ``caches`` of :func:`encode_pairs`; empty ones count nothing."""
        self.caches = tuple(caches)
        self._starts = np.cumsum([0, *(len(cache.latents) // 2 for cache in caches)])

    def __len__(self) -> int:
        """Number of pairs."""
        return int(self._starts[-1])

    def batch(
        self, rows: np.ndarray, drops_text: np.ndarray
    ) -> tuple[Float[Tensor, "b c s s"], Float[Tensor, "b c s s"], TextEmbedding]:
        """Latents before and after, and instructions, empty ones where ``drops_text`` is true."""
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        before, after, text = [], [], []
        for row, owner, is_empty in zip(rows, owners, drops_text, strict=True):
            cache, first = self.caches[owner], 2 * (row - self._starts[owner])
            before.append(cache.latents[first])
            after.append(cache.latents[first + 1])
            text.append(cache.text[0 if is_empty else cache.text_index[first]])
        latents = (torch.from_numpy(np.stack(part)).float() for part in (before, after))
        return *latents, TextEmbedding(torch.from_numpy(np.stack(text)).float())


def train_edit(
    config: EditRecipe,
    work: Path,
    *,
    start: Path,
    out: Path,
    device: torch.device,
    log: Log,
    pairs: Path | None = None,
) -> dict[str, float]:
    """Run the recipe in the folder ``work`` and write the edit model to ``out``.

    Args:
        config: a preset or a variation of one.
        work: training folder; calling again continues there.
        start: the prior to be taught, in stock diffusers layout.
        out: a new or existing folder, replaced file by file.
        device: where networks run; rendering is always on the CPU.
        log: receives progress lines.
        pairs: a folder of pairs in InstructPix2Pix's layout, in the place of the recipe's own.

    Returns:
        The measured figures.

    Raises:
        ConfigError: ``work`` began from another prior, or its pairs are of other settings.
        EditFolderError: ``pairs`` is no such folder.
    """
    note_start(start, work)
    prior = load_folder(start, device)
    data = make_pairs(config, work, prior, start, log=log, own=pairs)
    unet = new_edit_unet(prior)
    preconditioner = TextPreconditioner.of_states(data.caches[0].text, config.text_ridge)
    preconditioner.enter(unet)
    loss = edit_loss(config, prior, unet, data, preconditioner)
    loop = TrainingLoop(unet.requires_grad_(True).train(), config.loop, work / "unet")
    loop.run(loss, log=log)
    loop.load_average()
    preconditioner.leave(unet)
    out.mkdir(parents=True, exist_ok=True)
    write_module(unet.eval().requires_grad_(False).cpu().half(), out / "unet")
    facts = {"start": unet_digest(start), "seconds": round(loop.seconds), "steps": loop.step}
    facts["pairs"] = [len(cache.latents) // 2 for cache in data.caches]
    facts["pairs_are_own"] = pairs is not None
    write_card(out, {"config": asdict(config), "facts": facts})
    report = measure_edits(config.evaluation, prior, out, work, log=log)
    return write_figures(out, report)


def make_pairs(
    config: EditRecipe,
    work: Path,
    prior: DiffusionPrior,
    start: Path,
    *,
    log: Log,
    own: Path | None = None,
) -> EncodedPairs:
    """Pairs in ``work``, encoded: exact and generated ones, or those of a folder of one's own. What
    is there is not made again."""
    if own is not None:
        made = {"own": copy_pairs(work / "own", own, size=prior.image_size, log=log)}
    else:
        made = {"pairs": render_pairs(work / "pairs", config.pairs, log=log)}
    if own is None and config.generated.edits:
        folder, judge = work / "generated", load_judge()
        made["generated"] = generate_pairs(folder, config.generated, prior, judge, log=log)
    return EncodedPairs(
        [
            encode_pairs(work / f"{name}_latents", cache, start, device=prior.device, log=log)
            for name, cache in made.items()
            if len(cache)
        ]
    )


def encode_pairs(
    folder: Path, pairs: PairCache, start: Path, *, device: torch.device, log: Log
) -> LatentCache:
    """Latents and text states of pairs, made once by the parts of a prior."""
    vae, encoder, tokenizer = frozen_parts(start, device)
    cache_latents(folder, pairs, vae, key=f"pairs/{vae_digest(start)}", log=log)
    cache_text(folder, pairs, encoder, tokenizer, log=log)
    return LatentCache(folder)


def edit_loss(
    config: EditRecipe,
    prior: DiffusionPrior,
    unet: nn.Module,
    data: EncodedPairs,
    preconditioner: TextPreconditioner,
) -> Callable[[int], Float[Tensor, ""]]:
    """The loss of a step."""
    denoiser = EditDenoiser(prior, unet)

    def loss_at(step: int) -> Float[Tensor, ""]:
        rng = np.random.default_rng([config.seed, step])
        generator = step_generator(config.seed, step)
        rows = np.sort(rng.integers(0, len(data), config.batch_size))
        no_text, no_image = draw_dropped(len(rows), config.dropout, generator=generator)
        before, after, text = data.batch(rows, no_text.numpy())
        noisy = draw_velocity(prior, after, generator, tilt=config.noise_tilt)
        text = TextEmbedding(preconditioner(text.tokens.to(prior.device)))
        return denoiser.error(noisy, text, before.to(prior.device), no_image.to(prior.device))

    return loss_at


def measure_edits(
    config: EditEvalConfig, prior: DiffusionPrior, folder: Path, work: Path, *, log: Log
) -> EditReport:
    """Edit individuals that training never saw with a written model, and measure.

    Args:
        config: how many edits.
        prior: what the model was taught from.
        folder: the model's.
        work: where the evaluation's pairs are kept.
        log: receives progress lines.
    """
    cases = edit_cases(config, prior, work, log=log)
    unet = read_edit_unet(folder).to(prior.device)
    return evaluate_edits(prior, unet, load_judge(), cases, config, log=log)


def edit_cases(config: EditEvalConfig, prior: DiffusionPrior, work: Path, *, log: Log) -> EditCases:
    """Exact pairs of individuals that training never saw, rendered into ``work``."""
    samples = SampleConfig(
        image_size=prior.image_size, evaluation=True, pairs=0.0, white_background=1.0
    )
    pair_config = PairConfig(
        edits=config.samples, seed=config.seed, samples=samples, names=tuple(CHANGED)
    )
    pairs = render_pairs(work / "evaluation_pairs", pair_config, log=log)
    images = torch.from_numpy(np.array(pairs.images)).float() / 255.0
    return EditCases(
        sources=images[::2],
        targets=images[1::2],
        instructions=tuple(pairs.captions[::2]),
        names=tuple(pairs.names),
        labels=pairs.labels,
    )

"""How good a text-to-image prior of the toybox is: samples judged, and its autoencoder.

Samples are drawn for plain objects of the training combinations and of the held-out ones, with view
words in turn; one prompt in ten asks for an overhead view. The judge names kind, colour and view.
The autoencoder is measured on renders of individuals that no training saw. With an image-text
score, names of the object pack are drawn and ranked too (:mod:`studio.evaluation.name_retrieval`).

    report = evaluate_prior(load_folder(path, device), load_judge(), PriorEvalConfig())
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.configs import DdimConfig
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.sampling import sample_images
from scenes.toybox.captions import plain_caption
from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES
from scenes.toybox.objects import ObjectSpec
from scenes.toybox.samples import SampleConfig, ToySampler
from scenes.toybox.scene import SceneSpec
from scenes.toybox.splits import combinations
from studio.evaluation.image_text import ImageTextScorer
from studio.evaluation.intervals import Estimate, json_values, mean_estimate, wilson
from studio.evaluation.judge import SYMMETRIC_KINDS, VIEWS, Judge, Verdicts
from studio.evaluation.name_retrieval import name_figures

__all__ = [
    "GATES",
    "PriorEvalConfig",
    "PriorReport",
    "Request",
    "evaluate_prior",
    "judged_figures",
    "requests",
]

VIEW_CYCLE = ("front", "side", "back")
OVERHEAD_EVERY = 10
Log = Callable[[str], None]

GATES: dict[str, float] = {
    "train_kind": 0.90,
    "train_color": 0.90,
    "held_out_kind": 0.70,
    "held_out_color": 0.70,
    "view": 0.80,
    "vae_psnr_db": 28.0,
}
"""What the shipped prior must reach."""


@dataclass(frozen=True)
class PriorEvalConfig:
    """How many samples, and how they are drawn."""

    samples: int = 256
    """Samples of training combinations; half as many of held-out ones come on top."""
    steps: int = 25
    """Denoising steps."""
    guidance_scale: float = 5.0
    """s in eps_u + s (eps_c - eps_u)."""
    vae_images: int = 128
    """Renders on which the autoencoder is measured."""
    name_images: int = 2
    """Samples of each of the object pack's names that the image-text score ranks."""
    batch_size: int = 16
    """Samples at a time."""
    seed: int = 5
    """Seed of prompts, noise and renders."""


@dataclass(frozen=True)
class Request:
    """One prompt and what its image should show."""

    spec: ObjectSpec
    view: str
    held_out: bool

    @property
    def prompt(self) -> str:
        """Such as "a red mug, side view"."""
        return f"{plain_caption(SceneSpec((self.spec,)))}, {self.view} view"


@dataclass(frozen=True)
class PriorReport:
    """Figures with confidence intervals, and the images behind them."""

    figures: dict[str, Estimate]
    """By the names of :data:`GATES`; kind and colour together; obeyed view words by word; names of
    the object pack that are found again."""
    requests: tuple[Request, ...]
    images: Float[Tensor, "n h w 3"]
    seen: tuple[str, ...]
    """What the judge sees in each image, such as "red mug"."""
    right: tuple[bool, ...]
    """Whether it names kind and colour of the request."""
    config: PriorEvalConfig

    @property
    def passed(self) -> dict[str, bool]:
        """Which gates the figures reach."""
        return {name: self.figures[name].value >= bar for name, bar in GATES.items()}

    def as_dict(self) -> dict:
        """Plain JSON values without the images."""
        return {
            "figures": {name: json_values(figure) for name, figure in self.figures.items()},
            "gates": GATES,
            "passed": self.passed,
            "config": asdict(self.config),
        }


def requests(count: int, *, held_out: bool, seed: int) -> list[Request]:
    """``count`` prompts: all combinations of one side of the split in random order, repeatedly."""
    rng = np.random.default_rng([seed, int(held_out)])
    pairs, found = combinations(held_out), []
    while len(found) < count:
        for index in rng.permutation(len(pairs)):
            kind, color = pairs[index]
            k = len(found)
            view = VIEW_CYCLE[k % len(VIEW_CYCLE)]
            if k % OVERHEAD_EVERY == OVERHEAD_EVERY - 1:
                view = "overhead"
            found.append(Request(ObjectSpec(kind, color), view, held_out))
    return found[:count]


def _sample(
    prior: DiffusionPrior, prompts: list[str], config: PriorEvalConfig, log: Log
) -> Float[Tensor, "n h w 3"]:
    ddim = DdimConfig(steps=config.steps, guidance_scale=config.guidance_scale)
    images = []
    for start in range(0, len(prompts), config.batch_size):
        chunk = prompts[start : start + config.batch_size]
        generators = [
            torch.Generator().manual_seed(config.seed * 1_000_003 + start + k)
            for k in range(len(chunk))
        ]
        images.append(sample_images(prior, chunk, generators=generators, config=ddim).cpu())
        log(f"sampled {start + len(chunk)}/{len(prompts)}")
    return torch.cat(images)


@torch.no_grad()
def _vae_psnr(prior: DiffusionPrior, config: PriorEvalConfig) -> Estimate:
    """Mean PSNR in dB of decoded latents of evaluation renders, over images."""
    sampler = ToySampler(SampleConfig(evaluation=True, pairs=0.0, image_size=prior.image_size))
    values = []
    for start in range(0, config.vae_images, 32):
        numbers = range(start, min(start + 32, config.vae_images))
        rgb = [sampler.sample(np.random.default_rng([config.seed, k])).rgb for k in numbers]
        images = torch.from_numpy(np.stack(rgb)).float().to(prior.device)
        rebuilt = prior.decode_latents(prior.encode_images(images))
        error = (rebuilt - images).square().mean((1, 2, 3)).clamp(min=1e-12)
        values += (-10 * torch.log10(error)).tolist()
    return mean_estimate(values)


def _share(right: np.ndarray, among: np.ndarray) -> Estimate:
    return wilson(int(right[among].sum()), int(among.sum()))


def judged_figures(wanted: list[Request], verdicts: Verdicts) -> dict[str, Estimate]:
    """Shares of the images in which the judge sees what was asked for."""
    kind = np.array(KIND_NAMES)[verdicts.kind.argmax(1).numpy()]
    color = np.array(COLOR_NAMES)[verdicts.color.argmax(1).numpy()]
    view = np.array(VIEWS)[verdicts.view.argmax(1).numpy()]
    kind_right = kind == np.array([r.spec.kind for r in wanted])
    color_right = color == np.array([r.spec.color for r in wanted])
    asked = np.array([r.view for r in wanted])
    held_out = np.array([r.held_out for r in wanted])
    # A symmetric kind has no front, side or back; it can be seen from overhead.
    fronted = np.array([r.spec.kind not in SYMMETRIC_KINDS for r in wanted])
    judged = fronted | (asked == "overhead")
    figures = {
        "train_kind": _share(kind_right, ~held_out),
        "train_color": _share(color_right, ~held_out),
        "train_both": _share(kind_right & color_right, ~held_out),
        "held_out_kind": _share(kind_right, held_out),
        "held_out_color": _share(color_right, held_out),
        "held_out_both": _share(kind_right & color_right, held_out),
        "view": _share(view == asked, judged),
    }
    for word in VIEWS:
        among = judged & (asked == word)
        if among.any():
            figures[f"view_{word}"] = _share(view == asked, among)
    return figures


def evaluate_prior(
    prior: DiffusionPrior,
    judge: Judge,
    config: PriorEvalConfig,
    *,
    scorer: ImageTextScorer | None = None,
    log: Log = lambda _: None,
) -> PriorReport:
    """Sample, judge, and measure the autoencoder; rank names if there is a ``scorer``."""
    wanted = requests(config.samples, held_out=False, seed=config.seed)
    wanted += requests(max(1, config.samples // 2), held_out=True, seed=config.seed)
    images = _sample(prior, [request.prompt for request in wanted], config, log)
    verdicts = judge(images)
    kinds = [KIND_NAMES[k] for k in verdicts.kind.argmax(1).tolist()]
    colors = [COLOR_NAMES[k] for k in verdicts.color.argmax(1).tolist()]
    figures = judged_figures(wanted, verdicts)
    figures["vae_psnr_db"] = _vae_psnr(prior, config)
    if scorer is not None:
        figures |= name_figures(
            lambda prompts: _sample(prior, prompts, config, log),
            scorer,
            images=config.name_images,
            seed=config.seed,
        )
    return PriorReport(
        figures=figures,
        requests=tuple(wanted),
        images=images,
        seen=tuple(f"{color} {kind}" for color, kind in zip(colors, kinds)),
        right=tuple(
            (r.spec.kind, r.spec.color) == (k, c) for r, k, c in zip(wanted, kinds, colors)
        ),
        config=config,
    )

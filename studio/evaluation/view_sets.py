"""How good a multi-view prior of the toybox is: sets of four views, judged.

For plain objects of the training combinations and of the held-out ones, four views at steps of 90
degrees are drawn together, the first within 30 degrees of the front. The judge names what each view
shows and from which side. A set agrees if all four views read as the same kind and colour, right or
wrong. Silhouettes of opposite views are compared as mirror images: exact for a flat camera far
away, and at most ``mirror_true``, which true objects reach from these cameras.

A prior of single images is measured in the same way, asked by view words instead of by cameras:
the baseline of what drawing views together brings.

    report = evaluate_view_sets(prior, load_judge(), ViewSetEvalConfig())
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from image_tools.configs import DdimConfig
from image_tools.diffusion.camera_embedding import camera_vector
from image_tools.diffusion.conditions import Condition
from image_tools.diffusion.multiview import MultiViewPrior
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.sampling import sample_latents
from renderers.cameras import Cameras, orbit_cameras
from scenes.toybox.captions import plain_caption, view_word
from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES
from scenes.toybox.objects import ObjectSpec
from scenes.toybox.scene import SceneSpec
from scenes.toybox.splits import N_INDIVIDUALS, combinations
from studio.evaluation.intervals import SHARE, Estimate, json_values, mean_estimate
from studio.evaluation.judge import SYMMETRIC_KINDS, VIEWS, Judge, Verdicts
from studio.evaluation.metrics import view_consistency
from studio.evaluation.views import DISTANCE, ELEVATION_DEG, FOVY_DEG, render_toy

__all__ = [
    "SetRequest",
    "ViewSetEvalConfig",
    "ViewSetReport",
    "evaluate_view_sets",
    "foreground",
    "mirror_iou",
    "set_requests",
]

N_VIEWS = 4
NEAR_FRONT_DEG = 30.0
BACKGROUND_STEP = 0.12  # a larger difference from the border's colour is the object
Log = Callable[[str], None]


@dataclass(frozen=True)
class ViewSetEvalConfig:
    """How many sets, and how they are drawn."""

    sets: int = 64
    """Sets of training combinations; half as many of held-out ones come on top."""
    steps: int = 25
    """Denoising steps."""
    guidance_scale: float = 5.0
    """s in eps_u + s (eps_c - eps_u)."""
    batch_size: int = 4
    """Sets at a time."""
    seed: int = 5
    """Seed of prompts, cameras and noise."""


@dataclass(frozen=True)
class SetRequest:
    """One prompt, and from where its object is to be shown."""

    spec: ObjectSpec
    azimuth_deg: float
    """Of the first view; the others follow at steps of 90 degrees."""
    held_out: bool

    @property
    def prompt(self) -> str:
        """Such as "a red mug"."""
        return plain_caption(SceneSpec((self.spec,)))

    @property
    def views(self) -> tuple[str, ...]:
        """What the four views should show: front, side, back, side."""
        turns = (self.azimuth_deg + 90.0 * k for k in range(N_VIEWS))
        return tuple(view_word(turn, ELEVATION_DEG).removesuffix(" view") for turn in turns)

    def cameras(self, size: int) -> Cameras:
        """The four cameras."""
        return orbit_cameras(
            N_VIEWS,
            elevation_deg=ELEVATION_DEG,
            distance=DISTANCE,
            fovy_deg=FOVY_DEG,
            height=size,
            width=size,
            azimuth_start_deg=self.azimuth_deg,
        )


@dataclass(frozen=True)
class ViewSetReport:
    """Figures with confidence intervals over sets, and the images behind them."""

    figures: dict[str, Estimate]
    requests: tuple[SetRequest, ...]
    images: Float[Tensor, "sets views h w 3"]
    seen: tuple[tuple[str, ...], ...]
    """What the judge sees in each view, such as "red mug, back"."""
    right: tuple[tuple[bool, ...], ...]
    """Whether it names kind and colour of the request."""
    config: ViewSetEvalConfig

    def as_dict(self) -> dict:
        """Plain JSON values without the images."""
        figures = {name: json_values(figure) for name, figure in self.figures.items()}
        return {"figures": figures, "config": asdict(self.config)}


def set_requests(count: int, *, held_out: bool, seed: int) -> list[SetRequest]:
    """``count`` objects: all combinations of one side of the split in random order, repeatedly."""
    rng = np.random.default_rng([seed, int(held_out), N_VIEWS])
    pairs, found = combinations(held_out), []
    while len(found) < count:
        for index in rng.permutation(len(pairs)):
            start = float(rng.uniform(-NEAR_FRONT_DEG, NEAR_FRONT_DEG))
            found.append(SetRequest(ObjectSpec(*pairs[index]), start, held_out))
    return found[:count]


def evaluate_view_sets(
    prior: DiffusionPrior, judge: Judge, config: ViewSetEvalConfig, *, log: Log = lambda _: None
) -> ViewSetReport:
    """Draw the sets and judge them; a prior that is no ``MultiViewPrior`` is the baseline."""
    wanted = set_requests(config.sets, held_out=False, seed=config.seed)
    wanted += set_requests(max(1, config.sets // 2), held_out=True, seed=config.seed)
    images = []
    for start in range(0, len(wanted), config.batch_size):
        chunk = wanted[start : start + config.batch_size]
        images.append(_sample(prior, chunk, config, first=start))
        log(f"sampled {start + len(chunk)}/{len(wanted)} sets")
    drawn = torch.cat(images)
    verdicts = judge(drawn.flatten(0, 1))
    kinds = [KIND_NAMES[k] for k in verdicts.kind.argmax(1).tolist()]
    colors = [COLOR_NAMES[k] for k in verdicts.color.argmax(1).tolist()]
    sides = [VIEWS[k] for k in verdicts.view.argmax(1).tolist()]
    names = [f"{c} {k}, {s}" for c, k, s in zip(colors, kinds, sides)]
    specs = [request.spec for request in wanted for _ in range(N_VIEWS)]
    right = [(s.kind, s.color) == (k, c) for s, k, c in zip(specs, kinds, colors)]
    return ViewSetReport(
        figures=_figures(wanted, verdicts, drawn),
        requests=tuple(wanted),
        images=drawn,
        seen=tuple(_in_sets(names)),
        right=tuple(_in_sets(right)),
        config=config,
    )


def _in_sets(values: Sequence) -> list[tuple]:
    return [tuple(values[k : k + N_VIEWS]) for k in range(0, len(values), N_VIEWS)]


def _sample(
    prior: DiffusionPrior, wanted: list[SetRequest], config: ViewSetEvalConfig, *, first: int
) -> Float[Tensor, "sets views h w 3"]:
    """One batch of sets; each view has its own noise, which depends on its set's number alone."""
    rows = len(wanted) * N_VIEWS
    generators = [
        torch.Generator().manual_seed(config.seed * 1_000_003 + first * N_VIEWS + k)
        for k in range(rows)
    ]
    negative = prior.encode_negative([""]).expand(rows)
    if isinstance(prior, MultiViewPrior):
        prompts = [request.prompt for request in wanted for _ in range(N_VIEWS)]
        size = prior.image_size
        vectors = torch.cat([camera_vector(r.cameras(size).c2w) for r in wanted]).to(prior.device)
        cond = Condition(prior.encode_prompt(prompts), vectors)
        uncond = Condition(negative, vectors)
    else:
        prompts = [f"{r.prompt}, {view} view" for r in wanted for view in r.views]
        cond, uncond = Condition(prior.encode_prompt(prompts)), Condition(negative)
    ddim = DdimConfig(steps=config.steps, guidance_scale=config.guidance_scale)
    latents = sample_latents(prior, cond, uncond, generators=generators, config=ddim)
    with torch.no_grad():
        return prior.decode_latents(latents).cpu().unflatten(0, (len(wanted), N_VIEWS))


def _figures(wanted: list[SetRequest], verdicts: Verdicts, images: Tensor) -> dict[str, Estimate]:
    kind = np.array(KIND_NAMES)[verdicts.kind.argmax(1).numpy()].reshape(-1, N_VIEWS)
    color = np.array(COLOR_NAMES)[verdicts.color.argmax(1).numpy()].reshape(-1, N_VIEWS)
    side = np.array(VIEWS)[verdicts.view.argmax(1).numpy()].reshape(-1, N_VIEWS)
    kind_right = kind == np.array([[r.spec.kind] for r in wanted])
    color_right = color == np.array([[r.spec.color] for r in wanted])
    held_out = np.array([r.held_out for r in wanted])
    asked = np.array([r.views for r in wanted])
    # A symmetric kind looks the same from all sides.
    fronted = np.array([r.spec.kind not in SYMMETRIC_KINDS for r in wanted])
    figures = {
        "train_kind": _mean(kind_right[~held_out]),
        "train_color": _mean(color_right[~held_out]),
        "held_out_kind": _mean(kind_right[held_out]),
        "held_out_color": _mean(color_right[held_out]),
    }
    if fronted.any():
        obeyed = (side == asked)[fronted]
        figures["view"] = _mean(obeyed)
        for word in ("front", "side", "back"):
            shares = [float(o[a == word].mean()) for o, a in zip(obeyed, asked[fronted])]
            figures[f"view_{word}"] = mean_estimate(shares, within=SHARE)
    agrees = (kind == kind[:, :1]).all(1) & (color == color[:, :1]).all(1)
    size = images.shape[-2]
    by_set = {
        "set_agrees": agrees.astype(float).tolist(),
        "reads_alike": [view_consistency(_rows(verdicts, k)) for k in range(len(wanted))],
        "mirror": [mirror_iou(foreground(views)) for views in images],
        "mirror_true": [_true_mirror(r, k, size) for k, r in enumerate(wanted)],
    }
    return figures | {k: mean_estimate(shares, within=SHARE) for k, shares in by_set.items()}


def _mean(right: np.ndarray) -> Estimate:
    """Share of right views, its interval over sets."""
    return mean_estimate(right.mean(1).tolist(), within=SHARE)


def _rows(verdicts: Verdicts, number: int) -> Verdicts:
    rows = slice(number * N_VIEWS, (number + 1) * N_VIEWS)
    return Verdicts(
        verdicts.kind[rows], verdicts.color[rows], verdicts.pattern[rows], verdicts.view[rows]
    )


def foreground(images: Float[Tensor, "b h w 3"]) -> Bool[Tensor, "b h w"]:
    """What differs from the colour of the image's border, which prompts leave open."""
    border = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1)
    background = border.median(1).values[:, None, None]
    return (images - background).abs().amax(-1) > BACKGROUND_STEP


def mirror_iou(masks: Bool[Tensor, "4 h w"]) -> float:
    """Mean overlap of each silhouette with the mirrored one of the opposite view; 1 is the same.

    The mirror image is centred first, because framing may differ a little; no overlap is 0.
    """
    overlaps = []
    for first in (0, 1):
        front, back = masks[first], masks[first + N_VIEWS // 2].flip(-1)
        shifts = [back.roll(step, -1) for step in range(-3, 4)]
        overlaps.append(max(_iou(front, shifted) for shifted in shifts))
    return sum(overlaps) / len(overlaps)


def _iou(a: Tensor, b: Tensor) -> float:
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 0.0


def _true_mirror(request: SetRequest, number: int, size: int) -> float:
    """The figure of a true individual from the same cameras."""
    individual = 2 * (number % (N_INDIVIDUALS // 2)) + 1
    spec = ObjectSpec(request.spec.kind, request.spec.color, individual=individual)
    return mirror_iou(foreground(render_toy(spec, request.cameras(size)).rgb))

"""The recipe of the image-text score: render, one pass of a frozen backbone, ridge regression.

Images are views of the object pack's training split, as many of each object, and of the toybox;
captions name kind and colour, not the view. Half of the images are blurred and noised, as those of
small priors are. The map to captions is ridge regression in closed form, every noun counting alike,
so that a hundred chairs do not outweigh one hammock. Rendering resumes part by part.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.weight_writing import write_safetensors
from scenes.objects.pack import ObjectPack, default_pack
from scenes.objects.samples import ObjectSampleConfig, ObjectSampler
from scenes.toybox.catalog import KINDS
from scenes.toybox.samples import SampleConfig, ToySampler
from studio.errors import ConfigError
from studio.evaluation.image_backbone import folded_weights
from studio.evaluation.image_text import (
    ImageTextNet,
    ImageTextScorer,
    TextSide,
    load_image_text,
    save_image_text,
)
from studio.evaluation.name_retrieval import SETS, TOP, names_of, true_ranks

__all__ = [
    "PRESETS",
    "ImageTextConfig",
    "fit_ridge",
    "measure_image_text",
    "train_image_text",
    "worn",
]

PART = 96
OBJECT_STREAM, TOY_STREAM = 0, 1


@dataclass(frozen=True)
class ImageTextConfig:
    """All choices of the recipe."""

    views: int = 3
    """Views of each object of the pack's training split."""
    toys: int = 99
    """Views of toybox objects."""
    worn: float = 0.5
    """Share of images that are blurred and noised."""
    ridge: float = 0.3
    """Weight of the penalty on the map, as a share of the features' mean variance."""
    seed: int = 41
    """Seed of views and wear."""


PRESETS: dict[str, ImageTextConfig] = {
    "cpu": ImageTextConfig(),
    "gpu": ImageTextConfig(views=24, toys=2400),
}


@dataclass(frozen=True)
class _Example:
    """One view: ``rgb [h, w, 3]``, its caption, and the noun or kind it counts for."""

    rgb: np.ndarray
    caption: str
    noun: str


class _Examples:
    """All views of a config, in a fixed order; each depends on the seed and its number alone."""

    def __init__(self, config: ImageTextConfig) -> None:
        self.config = config
        self.pack = ObjectPack()
        self.names = self.pack.names("train")
        self.objects = ObjectSampler(ObjectSampleConfig(caption_view=0.0), self.pack)
        self.toys = ToySampler(SampleConfig(caption_view=0.0, pairs=0.0))

    def __len__(self) -> int:
        return len(self.names) * self.config.views + self.config.toys

    def __getitem__(self, number: int) -> _Example:
        config = self.config
        toy = number - len(self.names) * config.views
        if toy >= 0:
            sample = self.toys.sample(np.random.default_rng([config.seed, TOY_STREAM, toy]))
            noun = KINDS[sample.scene.objects[0].kind].noun
        else:
            # All views of an object in turn, so that it is read once.
            name = self.names[number // config.views]
            rng = np.random.default_rng([config.seed, OBJECT_STREAM, number])
            sample, noun = self.objects.view(name, rng), self.pack.info(name).noun
        return _Example(sample.rgb, sample.caption, noun)


def worn(
    images: Float[Tensor, "b h w 3"], share: float, rng: np.random.Generator
) -> Float[Tensor, "b h w 3"]:
    """``share`` of the images blurred, by a smaller size in between, and noised."""
    out = []
    for image in images.movedim(-1, 1):
        if rng.random() < share:
            size = int(rng.integers(28, 60))
            small = F.interpolate(image[None], (size, size), mode="bilinear", antialias=True)
            image = F.interpolate(small, image.shape[-2:], mode="bilinear")[0]
            noise = rng.standard_normal(image.shape) * rng.uniform(0.0, 0.05)
            image = image + torch.from_numpy(noise).float()
        out.append(image)
    return torch.stack(out).clamp(0, 1).movedim(1, -1)


def _note_views(config: ImageTextConfig, folder: Path) -> None:
    """Write down what the features in ``folder`` are of; refuse to go on with other views."""
    note, asked = folder / "views.json", asdict(config)
    del asked["ridge"]  # which features do not depend on
    if note.exists() and json.loads(note.read_text()) != asked:
        raise ConfigError(
            f"{folder} holds features of {note.read_text()}, but {json.dumps(asked)} is asked for. "
            "Name another work folder, or delete this one."
        )
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(asked))


@torch.no_grad()
def _features(
    net: ImageTextNet, config: ImageTextConfig, folder: Path, log: Callable[[str], None]
) -> tuple[Tensor, list[str], list[str]]:
    """Features, captions and nouns of all examples; parts on disk are not made again."""
    from safetensors.torch import load_file

    examples = _Examples(config)
    _note_views(config, folder)
    features, captions, nouns = [], [], []
    for start in range(0, len(examples), PART):
        numbers = range(start, min(start + PART, len(examples)))
        path = folder / f"{start:06d}.safetensors"
        if not path.exists():
            part = [examples[number] for number in numbers]
            images = torch.from_numpy(np.stack([one.rgb for one in part])).float()
            images = worn(images, config.worn, np.random.default_rng([config.seed, 2, start]))
            told = json.dumps([[one.caption, one.noun] for one in part])
            path.with_suffix(".json").write_text(told)
            write_safetensors(path, {"features": net.features(images)})
            log(f"views {numbers.stop}/{len(examples)}")
        features.append(load_file(path)["features"])
        told = json.loads(path.with_suffix(".json").read_text())
        captions += [caption for caption, _ in told]
        nouns += [noun for _, noun in told]
    return torch.cat(features), captions, nouns


def fit_ridge(
    features: Float[Tensor, "n f"],
    targets: Float[Tensor, "n t"],
    weights: Float[Tensor, " n"],
    *,
    ridge: float,
) -> tuple[Float[Tensor, "t f"], Float[Tensor, " t"]]:
    """The affine map from features to targets of least weighted squares, in closed form.

    Args:
        features: one row for each image.
        targets: what it should map to.
        weights: how much each row counts.
        ridge: penalty on the squared map, as a share of the features' mean variance.
    """
    x, y = features.double(), targets.double()
    share = (weights / weights.sum()).double()
    x_mean, y_mean = share @ x, share @ y
    x, y = x - x_mean, y - y_mean
    moment = x.T @ (share[:, None] * x)
    penalty = ridge * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)
    matrix = torch.linalg.solve(moment + penalty, x.T @ (share[:, None] * y)).T
    return matrix.float(), (y_mean - matrix @ x_mean).float()


def _fit(
    net: ImageTextNet,
    text: TextSide,
    config: ImageTextConfig,
    features: Tensor,
    captions: list[str],
    nouns: list[str],
) -> None:
    """Set the map and the captions' mean, every noun counting alike."""
    distinct = sorted(set(captions))
    row = {caption: k for k, caption in enumerate(distinct)}
    embedded = text(distinct)[[row[caption] for caption in captions]]
    count = Counter(nouns)
    weights = torch.tensor([1.0 / count[noun] for noun in nouns])
    mean = (weights / weights.sum()) @ embedded
    matrix, bias = fit_ridge(features, embedded - mean, weights, ridge=config.ridge)
    net.text_mean.copy_(mean)
    with torch.no_grad():
        net.to_text.weight.copy_(matrix)
        net.to_text.bias.copy_(bias)


def train_image_text(
    config: ImageTextConfig,
    work: Path,
    *,
    backbone: Path,
    out: Path,
    log: Callable[[str], None],
) -> dict[str, float]:
    """Run the recipe in the folder ``work``; write the weights to ``out`` and a card beside them.

    Args:
        config: a preset or a variation of one.
        work: training folder; calling again continues there.
        backbone: the public PyTorch weights of EfficientNet-lite0, a ``.pth`` of tensors alone.
        out: the ``.safetensors`` file.
        log: receives progress lines.

    Returns:
        Shares of true renders whose name is found, see :func:`measure_image_text`.

    Raises:
        ConfigError: ``work`` holds features of other views.
    """
    net, text = ImageTextNet().eval(), TextSide.of_pocket()
    source = torch.load(backbone, map_location="cpu", weights_only=True)
    net.backbone.load_state_dict(folded_weights(source))
    features, captions, nouns = _features(net, config, work / "features", log)
    _fit(net, text, config, features, captions, nouns)
    save_image_text(net, text, out)
    measured = measure_image_text(load_image_text(out, text=text), seed=config.seed + 1)
    _write_card(config, len(captions), len(set(nouns)), measured, out.with_suffix(".json"))
    return measured


def measure_image_text(scorer: ImageTextScorer, *, images: int = 2, seed: int) -> dict[str, float]:
    """Shares of true renders whose own noun comes first, or among five, of each set of names."""
    measured = {}
    for label, split in SETS.items():
        places = true_ranks(scorer, split, images=images, seed=seed)
        for top in TOP:
            measured[f"{label}_top{top}"] = float((places < top).float().mean())
    return measured


def _write_card(
    config: ImageTextConfig, images: int, nouns: int, measured: dict[str, float], path: Path
) -> None:
    card = {
        "what": "Image-text score: a linear map from EfficientNet-lite0's features to MiniLM's "
        "captions.",
        "data": f"{images} renders of {nouns} nouns: the object pack's training split and toybox "
        "objects, a seed of its own; no output of any prior, no held-out name.",
        "command": "studio train image-text --start efficientnet-lite0-57934424.pth",
        "licence": "Apache-2.0, as EfficientNet-lite0 by Google in its public PyTorch version; the "
        "renders derive from scenes/objects (CC0 and CC BY)",
        "parameters": sum(p.numel() for p in ImageTextNet().parameters()),
        "measured": {
            "on": "renders over white from the front and the left, each name against its whole set "
            f"of {len(names_of('held_out', default_pack()))}",
            **{name: round(value, 4) for name, value in measured.items()},
        },
        "config": asdict(config),
    }
    path.write_text(json.dumps(card, indent=2) + "\n")

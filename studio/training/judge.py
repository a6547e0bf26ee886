"""The recipe of the independent judge: render, train one small network, measure, write a card.

Losses are cross-entropies of kind, colour, pattern, and of the view among those of the true kind.
The view of a symmetric kind counts only where it is "overhead". Every stage is resumable and
seeded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES
from scenes.toybox.samples import SampleConfig, ToySampler
from studio.evaluation.judge import (
    SYMMETRIC_KINDS,
    VIEWS,
    Judge,
    JudgeNet,
    load_judge,
    save_judge,
    split_heads,
)
from studio.training.judge_augment import augment
from studio.training.judge_data import JudgeData, JudgeDataConfig, render_judge_data
from studio.training.loop import LoopConfig, TrainingLoop

__all__ = ["PRESETS", "JudgeConfig", "judge_loss", "measure_judge", "train_judge"]


@dataclass(frozen=True)
class JudgeConfig:
    """All choices of the recipe."""

    data: JudgeDataConfig = field(default_factory=JudgeDataConfig)
    """The rendered objects."""
    batch_size: int = 96
    """Images a step."""
    view_weight: float = 2.0
    """Weight of the view loss; kind and colour have weight 1."""
    pattern_weight: float = 0.5
    """Weight of the pattern loss."""
    test_images: int = 2000
    """Held-out renders that measure the result."""
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=3600,
            learning_rate=2e-3,
            warmup=100,
            ema_decay=0.998,
            weight_decay=0.02,
            clip_norm=5.0,
            save_every_s=120.0,
        )
    )
    """Length and learning rate."""


PRESETS: dict[str, JudgeConfig] = {
    "cpu": JudgeConfig(),
    "gpu": JudgeConfig(
        data=JudgeDataConfig(objects=40_000),
        batch_size=256,
        loop=replace(JudgeConfig().loop, steps=12_000),
    ),
}


def judge_loss(
    logits: Tensor, labels: Tensor, *, view_weight: float, pattern_weight: float
) -> Tensor:
    """Sum of the heads' losses.

    Args:
        logits: ``[b, outputs]`` of all heads side by side.
        labels: ``[b, 4]`` kind, colour, pattern, view.
        view_weight: weight of the view loss.
        pattern_weight: weight of the pattern loss.
    """
    kind, color, pattern, views = split_heads(logits)
    loss = F.cross_entropy(kind, labels[:, 0]) + F.cross_entropy(color, labels[:, 1])
    loss = loss + pattern_weight * F.cross_entropy(pattern, labels[:, 2])
    symmetric = torch.tensor([name in SYMMETRIC_KINDS for name in KIND_NAMES], device=logits.device)
    seen = ~symmetric[labels[:, 0]] | (labels[:, 3] == VIEWS.index("overhead"))
    view = views[torch.arange(len(views), device=views.device), labels[:, 0]]
    view_loss = F.cross_entropy(view, labels[:, 3], reduction="none")
    return loss + view_weight * (view_loss * seen).sum() / seen.sum().clamp(min=1)


def _batch(
    data: JudgeData, config: JudgeConfig, step: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Augmented images ``[b, 3, h, w]`` and labels ``[b, 4]`` of one step."""
    seed = config.data.seed
    index = np.random.default_rng([seed, step]).integers(0, len(data), config.batch_size)
    layers = torch.from_numpy(data.images[index]).permute(0, 3, 1, 2)
    images = augment(layers, torch.Generator().manual_seed(seed * 1_000_003 + step))
    images = images.contiguous(memory_format=torch.channels_last)
    return images.to(device), torch.from_numpy(data.labels[index]).to(device)


@torch.no_grad()
def _settle_norms(net: JudgeNet, batches: list[Tensor]) -> None:
    """Recompute the statistics of batch normalisation, which averaging the weights has moved."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches that follow
    net.train()
    for images in batches:
        net(images)
    net.eval()


def train_judge(
    config: JudgeConfig,
    work: Path,
    *,
    out: Path,
    device: torch.device,
    log: Callable[[str], None],
) -> dict[str, float]:
    """Run the recipe in the folder ``work``; write the weights to ``out`` and a card beside them.

    Args:
        config: a preset or a variation of one.
        work: training folder; calling again continues there.
        out: the ``.safetensors`` file.
        device: where the network is trained; images are made on the CPU.
        log: receives progress lines.

    Returns:
        The measured accuracies, see :func:`measure_judge`.
    """
    data = render_judge_data(work / "data", config.data, log=log)
    torch.manual_seed(config.data.seed)
    net = JudgeNet().to(device, memory_format=torch.channels_last)
    loop = TrainingLoop(net, config.loop, work / "net")

    def loss_at(step: int) -> Tensor:
        images, labels = _batch(data, config, step, device)
        return judge_loss(
            net(images),
            labels,
            view_weight=config.view_weight,
            pattern_weight=config.pattern_weight,
        )

    net.train()
    loop.run(loss_at, log=log)
    loop.load_average()
    settling = range(config.loop.steps, config.loop.steps + 16)
    _settle_norms(net, [_batch(data, config, step, device)[0] for step in settling])
    save_judge(net, out)
    measured = measure_judge(load_judge(out), config.test_images, seed=config.data.seed + 1)
    _write_card(config, len(data), loop.seconds, measured, out.with_suffix(".json"))
    return measured


def measure_judge(judge: Judge, count: int, *, seed: int) -> dict[str, float]:
    """Accuracies on clean renders: odd individuals, white background, elevation 0 to 30.

    Half of the images show training combinations, half held-out ones. ``view`` counts kinds with a
    front; ``view_clear`` only cameras at least 10 degrees from the borders between views.
    """
    images, truth = [], []
    for held_out in (False, True):
        config = SampleConfig(
            held_out=held_out,
            evaluation=True,
            pairs=0.0,
            white_background=1.0,
            elevation_deg=(0.0, 30.0),
        )
        sampler = ToySampler(config)
        for k in range(count // 2):
            sample = sampler.sample(np.random.default_rng([seed, int(held_out), k]))
            images.append(torch.from_numpy(sample.rgb))
            truth.append((sample.scene.objects[0], sample.view.split()[0], sample.azimuth_deg))
    verdicts = judge(torch.stack(images))
    names = {"kind": KIND_NAMES, "color": COLOR_NAMES}
    right = {
        head: np.array([getattr(spec, head) for spec, _, _ in truth])
        == np.array(names[head])[getattr(verdicts, head).argmax(1).numpy()]
        for head in names
    }
    fronted = np.array([spec.kind not in SYMMETRIC_KINDS for spec, _, _ in truth])
    seen = np.array([view for _, view, _ in truth])
    right_view = np.array(VIEWS)[verdicts.view.argmax(1).numpy()] == seen
    border = np.array([abs(abs((a + 180) % 360 - 180) % 90 - 45) for _, _, a in truth])
    return {
        "kind": float(right["kind"].mean()),
        "color": float(right["color"].mean()),
        "view": float(right_view[fronted].mean()),
        "view_clear": float(right_view[fronted & (border >= 10)].mean()),
    }


def _write_card(
    config: JudgeConfig, images: int, seconds: float, measured: dict[str, float], path: Path
) -> None:
    card = {
        "what": "Judge of toybox images: kind, colour, pattern and view of a 64x64 image.",
        "data": f"{images} toybox renders, individuals and seed of its own, all combinations of "
        "kind and colour, some with several fronts; worn by studio.training.judge_augment; no "
        "output of any prior.",
        "command": "studio train judge",
        "licence": "Apache-2.0; trained on procedural images only",
        "parameters": sum(p.numel() for p in JudgeNet().parameters()),
        "steps": config.loop.steps,
        "seconds": round(seconds),
        "timing": "wall seconds of the training loop, rendering not included",
        "measured": {
            "on": f"{config.test_images} clean renders: odd individuals, white background, "
            "elevation 0 to 30, half of them held-out combinations",
            **{name: round(value, 4) for name, value in measured.items()},
        },
        "config": asdict(config),
    }
    path.write_text(json.dumps(card, indent=2) + "\n")

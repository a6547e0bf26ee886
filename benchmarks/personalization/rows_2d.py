"""The rows of the 2D bench: train, draw, measure, and keep what was found.

A row is a subject and a variant, or one of two references: ``prior``, which reads the class word,
and ``photos``, further photos of the subject behind the prior's autoencoder. Its file says what it
was made of, so that a finished row is read and never made twice.

    bench = Bench(settings, runs)
    bench.row(Cell(case, "prior", None, None))
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.personalization.checks import obeyed
from benchmarks.personalization.drawing import (
    Pictures,
    digest_of,
    draw,
    read_pictures,
    write_pictures,
)
from benchmarks.personalization.drift import (
    DriftPrompt,
    accuracy,
    class_prompts,
    noised_predictions,
    unrelated_prompts,
)
from benchmarks.personalization.features import SubjectFeatures
from benchmarks.personalization.methods import CPU_SECONDS, Variant, attached, train
from benchmarks.personalization.subjects import Ask, Case, asks_of
from image_tools.configs import DdimConfig
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.protocol import NoisePrior
from scenes.objects.subjects import subject_photos
from scenes.toybox.captions import view_word
from studio.config import dump
from studio.evaluation.comparison import Result
from studio.personalize_configs import PersonalizeConfig
from studio.run_folder import RunFolder, write_atomic

__all__ = ["GROUPS", "PHOTOS", "PRIOR", "Bench", "Cell", "DrawSettings"]

PRIOR, PHOTOS = "prior", "photos"
"""Rows that no method makes."""
GROUPS = ("view", "color", "relation", "background")
HELD_BACK_SEEDS = (6, 7)
SEED = 3
SAMPLER = DdimConfig(steps=20, guidance_scale=5.0)


@dataclass(frozen=True)
class DrawSettings:
    """How pictures are drawn."""

    each: int = 2
    """Pictures of each prompt."""
    drift: int = 12
    """Pictures of unrelated prompts, and half as many of the class."""
    consistency: float = 3.0
    """w_con of consistency guidance."""
    sampler: DdimConfig = SAMPLER
    """Of all pictures."""


@dataclass(frozen=True)
class Cell:
    """One row: a subject, and a variant or a reference."""

    case: Case
    name: str
    """The variant's name, ``prior`` or ``photos``."""
    variant: Variant | None
    config: PersonalizeConfig | None


class Bench:
    """What all rows share."""

    def __init__(
        self, base: DiffusionPrior, features: SubjectFeatures, settings: DrawSettings, runs: Path
    ) -> None:
        """Nothing is drawn yet.

        Args:
            base: the untrained prior.
            features: of all subjects that are measured.
            settings: how pictures are drawn.
            runs: folder of trainings and rows.
        """
        self.base, self.features = base, features
        self.settings, self.runs = settings, runs
        self.measure_again = False
        """Whether finished rows get new figures."""

    def row(self, cell: Cell) -> Result:
        """The figures of a cell: those that stand in its file, or new ones."""
        path, key = self._path(cell).with_suffix(".json"), self._key(cell)
        found = self._kept(cell)
        if found is not None and not self.measure_again:
            return found
        result = self._measured(cell, key) if found is None else self._measured_again(cell, found)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({**asdict(result), "made_of": key}, indent=1) + "\n")
        return result

    def _kept(self, cell: Cell) -> Result | None:
        """A finished row, if it and its pictures are of these settings."""
        path = self._path(cell).with_suffix(".json")
        if not path.is_file() or self.pictures(cell) is None:
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        return Result(**found) if found.pop("made_of") == self._key(cell) else None

    def _measured_again(self, cell: Cell, found: Result) -> Result:
        """A finished row with new figures of its pictures; changes of predictions stay."""
        pictures = self.pictures(cell) or {}
        of_truth = cell.name == PHOTOS
        figures = self._photos(cell.case)[1] if of_truth else self._figures(cell.case, pictures)
        return replace(found, metrics={**found.metrics, **figures})

    def pictures(self, cell: Cell) -> dict[str, Tensor] | None:
        """The pictures of a finished row."""
        return read_pictures(self._path(cell), self._key(cell))

    def asks(self, case: Case) -> list[Ask]:
        """What is asked of a subject."""
        return asks_of(case, each=self.settings.each)

    def _path(self, cell: Cell) -> Path:
        return self.runs / "rows" / f"{cell.case.name}--{cell.name}.safetensors"

    def _key(self, cell: Cell) -> str:
        """Everything that the pictures of a row depend on, but for where its photos lie."""
        config = None if cell.config is None else dump(cell.config)
        if config is not None:
            config["subject"] |= {"images": "", "captions": ""}
        settings = asdict(self.settings)
        if cell.variant is None or cell.variant.guidance == "plain":
            settings.pop("consistency")
        asks = [asdict(ask) for ask in self.asks(cell.case)]
        return digest_of(self.base.fingerprint, cell.name, config, settings, asks)

    def _measured(self, cell: Cell, key: str) -> Result:
        """Train, draw and measure."""
        run, own = None, self.runs / cell.case.name
        if cell.config is not None:
            run = train(cell.config, own, prior=self.base.fingerprint)
        started, change = time.process_time(), {}
        if cell.name == PHOTOS:
            pictures, figures = self._photos(cell.case)
            write_pictures(self._path(cell), pictures, key)
        else:
            pictures, change = self._drawn(cell, run)
            write_pictures(self._path(cell), pictures, key)
            # Of the bytes that are kept, so that measuring again finds the same.
            figures = self._figures(cell.case, self.pictures(cell) or {})
        costs = {"draw_seconds": round(time.process_time() - started, 1)}
        if run is not None:
            costs["train_seconds"] = run.read_info()[CPU_SECONDS]
        metrics = {**figures, **change}
        return Result(
            cell.name, cell.case.name, 0, "done", metrics, costs, prior=self.base.fingerprint
        )

    def _drawn(self, cell: Cell, run: RunFolder | None) -> tuple[Pictures, dict[str, float]]:
        """Pictures of a variant or of the prior, and how far its predictions moved."""
        if cell.variant is None or cell.config is None or run is None:
            drift = {
                group: self._draw(self.base, [prompt.prompt for prompt in prompts])
                for group, prompts in self._drift_prompts(cell.case).items()
            }
            return {"asked": self._asked(self.base, cell.case, cell.case.word), **drift}, {}
        prior = attached(
            *(cell.variant, cell.config, run, self.base.device),
            consistency_scale=self.settings.consistency,
        )
        drift, change = self._changed(prior, cell.case)
        return {"asked": self._asked(prior, cell.case, cell.config.token), **drift}, change

    def _changed(self, prior: NoisePrior, case: Case) -> tuple[Pictures, dict[str, float]]:
        """What a trained prior draws without its subject, and how far its predictions moved."""
        reference = Cell(case, PRIOR, None, None)
        self.row(reference)
        before = self.pictures(reference) or {}
        drawn, change = {}, {}
        for group, prompts in self._drift_prompts(case).items():
            texts = [prompt.prompt for prompt in prompts]
            old = noised_predictions(self.base, self.base, before[group], texts)
            new = noised_predictions(prior, self.base, before[group], texts)
            moved = float((new - old).square().mean() / old.square().mean())
            change[f"{group}_change"] = moved
            # Equal predictions draw equal pictures.
            drawn[group] = self._draw(prior, texts) if moved else before[group]
        return drawn, change

    def _asked(self, prior: NoisePrior, case: Case, subject: str) -> Tensor:
        """Pictures of the subject, or of what a prior knows by a word."""
        return self._draw(prior, [ask.prompt(subject) for ask in self.asks(case)])

    def _draw(self, prior: NoisePrior, prompts: Sequence[str]) -> Tensor:
        return draw(prior, prompts, self.settings.sampler, seed=SEED)

    def _figures(self, case: Case, pictures: Pictures) -> dict[str, float | None]:
        """What is measured of drawn pictures."""
        asks, asked = self.asks(case), pictures["asked"]
        own = asked[[k for k, ask in enumerate(asks) if ask.group in ("plain", "view")]]
        right = obeyed(asked, asks, case, self.features)
        shares: dict[str, float | None] = {}
        for group in GROUPS:
            of_group = [r for r, ask in zip(right, asks, strict=True) if ask.group == group]
            shares[group] = sum(of_group) / len(of_group) if of_group else None
        known = [share for share in shares.values() if share is not None]
        drift = {
            f"{group}_right": accuracy(self.features.judge, pictures[group], prompts)
            for group, prompts in self._drift_prompts(case).items()
        }
        return {**self._likeness(own, case), "prompt": sum(known) / len(known), **shares, **drift}

    def _photos(self, case: Case) -> tuple[Pictures, dict[str, float | None]]:
        """Further photos behind the autoencoder: what a perfect sample would be measured as."""
        size = self.base.image_size
        sets = [subject_photos(case.name, image_size=size, seed=seed) for seed in HELD_BACK_SEEDS]
        photos = [photo for one in sets for photo in one]
        rgb = torch.stack([torch.from_numpy(photo.rgb) for photo in photos])
        with torch.no_grad():
            latents = self.base.encode_images(rgb.to(self.base.device))
            seen = self.base.decode_latents(latents).clamp(0, 1).cpu()
        figures = self._likeness(seen, case)
        if case.has_front:
            pairs = zip(self.features.views_seen(seen, case.name), photos, strict=True)
            right = [
                view == view_word(float(p.camera.azimuth_deg[0]), float(p.camera.elevation_deg[0]))
                for view, p in pairs
            ]
            figures["view"] = sum(right) / len(right)
        taught = subject_photos(case.name, image_size=size)
        return {"asked": torch.stack([torch.from_numpy(p.rgb) for p in taught])}, figures

    def _likeness(self, images: Tensor, case: Case) -> dict[str, float | None]:
        """Whether pictures show the subject."""
        return {
            "fidelity": self.features.fidelity(images, case.name),
            "identified": float(self.features.identified(images, case.name).float().mean()),
        }

    def _drift_prompts(self, case: Case) -> dict[str, list[DriftPrompt]]:
        """What is drawn without the subject."""
        count = self.settings.drift
        return {
            "class": class_prompts(case, max(1, count // 2)),
            "unrelated": unrelated_prompts(case, count),
        }

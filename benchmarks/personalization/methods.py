"""The methods of the 2D bench: how they are trained, and how their results are used.

A training is a personalization as `studio personalize` makes it, of the settings that ship for the
pocket prior (``scenes/presets/personalize``). It is found again by its settings, goes on where it
was killed, and is never made twice.
A variant is a training and the guidance that draws with it; variants share trainings.

    run = train(config, out, prior=base.fingerprint)
    prior = attached(variant, config, run, device)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.personalization.subjects import CAPTIONS, Case
from image_tools.configs import PersonalizedPriorConfig
from image_tools.diffusion.loading import load_prior
from image_tools.diffusion.protocol import NoisePrior
from image_tools.personalization.dreambooth_configs import DcoConfig
from image_tools.personalization.personalized_configs import (
    EmbeddingUseConfig,
    GuidanceMix,
    LoraUseConfig,
    SubjectConfig,
)
from studio.config import dump_yaml, validate
from studio.errors import ConfigError
from studio.personalize import personalize
from studio.personalize_configs import PersonalizeConfig
from studio.run_folder import RunFolder, create_run, write_atomic
from studio.scene_file import POCKET_METHODS, read_yaml

__all__ = [
    "CPU_SECONDS",
    "VARIANTS",
    "Variant",
    "attached",
    "train",
    "training_config",
    "variants_of",
]

CPU_SECONDS = "cpu_seconds"
"""Key of ``run.json``: processor seconds of a training, of all calls together."""


@dataclass(frozen=True)
class Variant:
    """A way to draw a subject."""

    name: str
    """As in tables."""
    method: str
    """The training: a file of the settings."""
    guidance: GuidanceMix
    """plain, or consistency where the method keeps the prior beside the subject."""


VARIANTS: tuple[Variant, ...] = (
    Variant("textual_inversion", "textual_inversion", "plain"),
    Variant("dreambooth", "dreambooth", "plain"),
    Variant("dreambooth_lora", "dreambooth_lora", "plain"),
    Variant("dreambooth_lora+cg", "dreambooth_lora", "consistency"),
    Variant("dco", "dco", "plain"),
    Variant("dco+cg", "dco", "consistency"),
)
"""DCO's paper draws LoRAs of both trainings with and without consistency guidance, ``cg``."""


def variants_of(text: str) -> list[Variant]:
    """The variants of the methods in a list with commas.

    Raises:
        ConfigError: a name is neither a method nor a variant, or there is none.
    """
    names = [name for name in text.split(",") if name]
    known = {name for v in VARIANTS for name in (v.name, v.method)}
    if not names or not known.issuperset(names):
        raise ConfigError(f"--methods is {text!r} - expected some of {', '.join(sorted(known))}.")
    return [variant for variant in VARIANTS if {variant.name, variant.method} & set(names)]


def training_config(
    method: str, case: Case, photos: Path, overrides: Sequence[str]
) -> PersonalizeConfig:
    """The settings of one training.

    Args:
        method: a file of the settings.
        case: the subject.
        photos: folder of its photos and captions.
        overrides: ``key.path=value``.

    Raises:
        ConfigError: an override is wrong.
    """
    tree, _ = read_yaml(POCKET_METHODS / f"{method}.yaml")
    found = validate(PersonalizeConfig, tree, overrides, where=f"{method}.yaml")
    subject = replace(
        found.subject, images=str(photos.absolute()), word=case.word, template=case.template
    )
    if isinstance(found.method, DcoConfig):
        captions = str((photos / CAPTIONS).absolute())
        subject = replace(subject, token=f"<my-{case.name}>", captions=captions)
    return replace(found, subject=subject)


def train(config: PersonalizeConfig, out: Path, *, prior: str) -> RunFolder:
    """The finished training of these settings: found, gone on with, or made.

    Its processor seconds stand in ``run.json``, those of all its calls.

    Args:
        config: the settings.
        out: folder of the subject's trainings.
        prior: fingerprint of what is trained; trainings of another prior are passed over.
    """
    run = _found(config, out, prior) or _new(config, out)
    info = run.read_info()
    if info["status"] != "done":
        started = time.process_time()
        try:
            personalize(config, run)
        finally:
            spent = info.get(CPU_SECONDS, 0.0) + time.process_time() - started
            run.update_info({CPU_SECONDS: round(spent, 1)})
    return run


def _found(config: PersonalizeConfig, out: Path, prior: str) -> RunFolder | None:
    """The run of these settings and this prior, if there is one."""
    text = dump_yaml(config)
    for path in sorted(out.glob("*/*/resolved.yaml")):
        run = RunFolder(path.parent)
        same = path.read_text(encoding="utf-8") == text
        # A run that has not begun to train has no prior yet.
        if same and run.read_info().get("prior_fingerprint", prior) == prior:
            return run
    return None


def _new(config: PersonalizeConfig, out: Path) -> RunFolder:
    """A new run folder with the settings in it."""
    loop = config.method.loop
    run = create_run(
        out,
        prompt=config.subject.word,
        method=config.method.kind,
        seed=loop.seed,
        info={"task": config.task},
    )
    write_atomic(run.resolved_path, dump_yaml(config))
    write_atomic(run.scene_path, dump_yaml(config))
    return run


def attached(
    variant: Variant,
    config: PersonalizeConfig,
    run: RunFolder,
    device: torch.device,
    *,
    consistency_scale: float,
) -> NoisePrior:
    """The prior with what a training made of it, fresh from its file."""
    files = {name: str(run.path / path) for name, path in run.read_info()["files"].items()}
    names = {} if variant.guidance == "plain" else _names(config)
    subject = SubjectConfig(
        loras=(LoraUseConfig(files["lora"]),) if "lora" in files else (),
        embeddings=(EmbeddingUseConfig(files["embedding"]),) if "embedding" in files else (),
        weights=files.get("weights"),
        consistency_scale=consistency_scale,
        **names,
    )
    prior = PersonalizedPriorConfig(
        base=config.prior, subjects=(subject,), guidance=variant.guidance
    )
    return load_prior(prior, device)


def _names(config: PersonalizeConfig) -> dict[str, str]:
    """How prompts name the subject, and what the prior reads there."""
    return {"token": config.token, "word": config.subject.word}

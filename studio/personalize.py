"""A personalization as a run: photos and a prior in, LoRA, embedding or model files out.

    runs/dog/dco-s0-20261123-031500/
      run.json  scene.yaml  resolved.yaml  log.txt
      photos/           the photos as they are used, and their captions where they have some
      class_images/     what the untrained prior makes of the class (prior preservation)
      training/         state, checkpoints, log.csv: what a killed training goes on from
      previews/         a grid of samples every method.loop.sample_every steps
      asset/            the results

The run folder is the handle for going on, as of every run; the photos' own folder is read once.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.configs import DiffusersPriorConfig, PocketPriorConfig
from image_tools.diffusion.layout import locate_folder
from image_tools.diffusion.loading import load_prior
from image_tools.diffusion.lora_files import LORA_WEIGHT_NAME, read_lora, write_lora
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.captioned import CaptionedImages
from image_tools.personalization.captions import SubjectCaptions, plain_captions
from image_tools.personalization.class_images import make_class_images
from image_tools.personalization.dco import train_dco
from image_tools.personalization.dreambooth import TrainingResult, train_dreambooth
from image_tools.personalization.dreambooth_configs import (
    ClassImagesConfig,
    DcoConfig,
    DreamBoothConfig,
    DreamBoothLoraConfig,
)
from image_tools.personalization.dreambooth_lora import train_dreambooth_lora
from image_tools.personalization.loop import LoopHooks
from image_tools.personalization.pipeline_folder import write_pipeline
from image_tools.personalization.sample_grid import grid_writer
from image_tools.personalization.textual_inversion import train_textual_inversion
from image_tools.personalization.textual_inversion_configs import TextualInversionConfig
from studio.device import peak_memory_bytes, resolve_device
from studio.errors import Interrupted, StorageError
from studio.personalize_configs import PersonalizeConfig
from studio.progress import logged_to, say
from studio.run_folder import RunFolder, slug, storage_errors
from studio.stop_request import StopRequest
from studio.subject.folder import read_images
from studio.subject.photos import check_name, keep_photos, kept_captions, kept_photos
from studio.suggestions import command

__all__ = ["personalize"]

PHOTOS = "photos"


def personalize(config: PersonalizeConfig, run: RunFolder) -> dict[str, Path]:
    """Train, or go on, in a run folder; returns the results by name.

    Raises:
        Interrupted: after Ctrl-C; everything is saved.
        StudioError: anything that a user can cause or cure.
    """
    run.update_info({"status": "running", "error": None})
    started, before = time.monotonic(), float(_seconds(run).get("personalize", 0.0))
    try:
        with logged_to(run.log_path), StopRequest() as stop:
            device = resolve_device(config.device)
            prior = load_prior(config.prior, device)
            if isinstance(config.method, DreamBoothConfig | DreamBoothLoraConfig):
                check_name(prior, config.token, word=config.subject.word)
            photos = _photos(config, run, size=prior.image_size)
            run.update_info(_facts(prior, run, device))
            with storage_errors(run.path, "write"):
                result = _train(config, run, prior, photos, stop)
                _check_finished(config, run, result)
                files = _results(config, run, prior, result)
    except BaseException as error:
        is_stop = isinstance(error, Interrupted | KeyboardInterrupt)
        status = "interrupted" if is_stop else "failed"
        with contextlib.suppress(StorageError):  # whatever ended the run is the error to show
            run.update_info({"status": status, "error": str(error)})
        raise
    finally:
        spent = before + time.monotonic() - started
        with contextlib.suppress(StorageError):
            run.update_info({"seconds": {"personalize": round(spent, 2)}})
    names = {name: str(path.relative_to(run.path)) for name, path in files.items()}
    peak = peak_memory_bytes(device)
    run.update_info(
        {"status": "done", "steps": result.step, "files": names, "peak_memory_bytes": peak}
    )
    return files


def _seconds(run: RunFolder) -> dict[str, float]:
    """What earlier calls of the run took."""
    return run.read_info().get("seconds") or {}


def _check_finished(config: PersonalizeConfig, run: RunFolder, result: TrainingResult) -> None:
    """Tell how a stopped training goes on."""
    if not result.finished:
        raise Interrupted(
            f"Stopped after step {result.step} of {config.method.loop.steps}, saved. "
            f"Continue with: {command('personalize', '--resume', run.path)}"
        )


def _photos(config: PersonalizeConfig, run: RunFolder, *, size: int) -> Float[Tensor, "n h w 3"]:
    """The photos as they are used: from their own folder once, then from the run's."""
    folder = run.path / PHOTOS
    if kept_photos(folder) is None:
        with storage_errors(folder, "write"):
            keep_photos(config.subject, folder, size=size)
    return read_images(folder)


def _facts(prior: DiffusionPrior, run: RunFolder, device: torch.device) -> dict[str, Any]:
    """What `run.json` says about photos and prior."""
    return {
        **kept_photos(run.path / PHOTOS),
        "prior_fingerprint": prior.fingerprint,
        "device": str(device),
    }


def _train(
    config: PersonalizeConfig,
    run: RunFolder,
    prior: DiffusionPrior,
    photos: Float[Tensor, "n h w 3"],
    stop: StopRequest,
) -> TrainingResult:
    """Run the method's trainer."""
    method, folder = config.resolved_method(), run.path / "training"
    prompts = [prompt.replace("{}", config.token) for prompt in config.samples.prompts]
    hooks = LoopHooks(
        log=say,
        should_stop=lambda: stop.asked,
        sample=grid_writer(
            prior,
            prompts,
            run.previews_dir,
            columns=config.samples.columns,
            seed=method.loop.seed,
            sampler=config.samples.sampler,
        ),
    )
    say(f"{len(photos)} photos, the subject is '{config.token}', {method.loop.steps} steps")
    if isinstance(method, TextualInversionConfig):
        return train_textual_inversion(prior, photos, method, folder, hooks=hooks)
    if isinstance(method, DcoConfig):
        captions = _captions(config, run, count=len(photos))
        return train_dco(prior, photos, captions, method, folder, hooks=hooks)
    caption = config.subject.template.replace("{}", config.token)
    subject = CaptionedImages(photos, (caption,) * len(photos))
    class_set = _class_set(config, method.class_images, run, prior, stop)
    if isinstance(method, DreamBoothConfig):
        return train_dreambooth(prior, subject, class_set, method, folder, hooks=hooks)
    return train_dreambooth_lora(prior, subject, class_set, method, folder, hooks=hooks)


def _captions(config: PersonalizeConfig, run: RunFolder, *, count: int) -> SubjectCaptions:
    """The captions file, or the template with a new word that starts as the class word."""
    own = kept_captions(run.path / PHOTOS)
    if own is not None:
        return own
    plain = plain_captions(
        count,
        subject=config.token,
        word=config.class_phrase,
        template=config.subject.template,
    )
    return replace(plain, tokens=(config.token,), initializers=(config.subject.word,))


def _class_set(
    config: PersonalizeConfig,
    settings: ClassImagesConfig,
    run: RunFolder,
    prior: DiffusionPrior,
    stop: StopRequest,
) -> CaptionedImages | None:
    """Class images, where prior preservation is on."""
    if settings.count == 0:
        return None

    def check_stop() -> None:
        if stop.asked:
            raise Interrupted(
                "Stopped while class images were made; those that are made are kept. "
                f"Continue with: {command('personalize', '--resume', run.path)}"
            )

    prompt = config.subject.template.replace("{}", config.class_phrase)
    return make_class_images(
        prior,
        prompt,
        run.path / "class_images",
        config=settings,
        seed=config.method.loop.seed,
        log=say,
        check_stop=check_stop,
    )


def _results(
    config: PersonalizeConfig, run: RunFolder, prior: DiffusionPrior, result: TrainingResult
) -> dict[str, Path]:
    """Copy or convert what was learned into the asset folder."""
    name, files = slug(config.subject.word), {}
    lora = run.path / "training" / LORA_WEIGHT_NAME
    if isinstance(config.method, DreamBoothLoraConfig | DcoConfig):
        files["lora"] = run.asset_dir / LORA_WEIGHT_NAME
        shutil.copyfile(lora, files["lora"])
        per_block = prior.unet.config.layers_per_block
        content = read_lora(lora, layers_per_block=per_block)
        files["lora_kohya"] = run.asset_dir / f"{name}.safetensors"
        write_lora(files["lora_kohya"], content, layout="kohya")
    if isinstance(config.method, TextualInversionConfig):
        files["embedding"] = run.asset_dir / result.files[-1].name
        shutil.copyfile(result.files[-1], files["embedding"])
    if isinstance(config.method, DcoConfig):
        words = sorted((run.path / "training" / "embeddings").glob("*.safetensors"))
        for index, word in enumerate(words):
            number = str(index) if index else ""
            files[f"embedding{number}"] = run.asset_dir / f"learned_embeds{number}.safetensors"
            shutil.copyfile(word, files[f"embedding{number}"])
    if isinstance(config.method, DreamBoothConfig):
        files["weights"] = result.files[-1]
        if isinstance(config.prior, PocketPriorConfig | DiffusersPriorConfig):
            base, _ = locate_folder(config.prior)
            files["model"] = run.asset_dir / "model"
            shutil.rmtree(files["model"], ignore_errors=True)
            write_pipeline(prior, base, files["model"], parts=config.method.parts)
    return files

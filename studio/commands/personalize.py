"""`studio personalize`: from a folder of photos to LoRA, embedding or model files.

It is `studio run` of a file with ``task: personalize``; a folder of photos instead of a file starts
from the defaults, which are the papers', or with the pocket prior from settings of its own.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from image_tools.configs import PocketPriorConfig
from image_tools.personalization.textual_inversion_configs import TextualInversionConfig
from studio.commands.begin import made_with
from studio.config import dump, dump_yaml, split_arguments, validate
from studio.errors import ConfigError, StorageError
from studio.folder_lock import hold_run
from studio.personalize_configs import PersonalizeConfig, SubjectPhotosConfig
from studio.progress import say
from studio.run_folder import RunFolder, create_run, open_run, storage_errors, write_atomic
from studio.scene_file import POCKET_METHODS, merge, read_yaml, with_bases
from studio.suggestions import command
from studio.waiting import settle_waiting

__all__ = ["TASK", "check", "is_personalization", "load", "run"]

TASK = "personalize"
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft")
OF_CUTOUTS = "subject.photos."


def is_personalization(source: str | None, resume: Path | None) -> bool:
    """Whether a run folder, or a file with what it builds on, is a personalization."""
    if resume is not None:
        return (resume / "run.json").is_file() and open_run(resume).read_info().get("task") == TASK
    if source is None or not source.endswith((".yaml", ".yml")):
        return False
    try:
        is_there = Path(source).is_file()
    except (OSError, ValueError):  # too long for a path, or a NUL in it: a prompt
        return False
    if not is_there:
        return False
    tree, _ = with_bases(read_yaml(Path(source))[0], Path(source))
    return tree.get("task") == TASK


def run(
    arguments: Sequence[str],
    *,
    out: Path,
    resume: Path | None = None,
    dry_run: bool = False,
    as_json: bool = False,
) -> None:
    """Train and print where the results are; a stopped run goes on with ``resume``.

    Args:
        arguments: a folder of photos or a file with ``task: personalize``, and overrides.
        out: folder of all runs.
        resume: a run folder to go on with.
        dry_run: print the resolved settings only.
        as_json: print the results as JSON.

    Raises:
        StudioError: anything a user can cause or cure.
    """
    _check_photos(arguments)
    source, overrides = split_arguments(arguments)
    config, text = _resumed(resume, source, overrides) if resume else load(source, overrides)
    if dry_run:
        sys.stdout.write(json.dumps(dump(config)) + "\n" if as_json else dump_yaml(config))
        return
    check(config)
    settle_waiting()
    from studio.device import resolve_device

    resolve_device(config.device)  # refuse before a folder is made
    if not resume:
        from image_tools.diffusion.layout import find_prior_files
        from studio.subject.photos import check_photos

        check_photos(config.subject)
        find_prior_files(config.prior)
    folder = open_run(resume) if resume else _start(config, text, out)
    from studio.personalize import personalize

    with hold_run(folder):
        try:
            files = personalize(config, folder)
        finally:
            with contextlib.suppress(StorageError):  # whatever ended the run is the error to show
                folder.add_to_index()
    _print(config, folder, files, as_json)


def load(source: str | None, overrides: list[str]) -> tuple[PersonalizeConfig, str]:
    """Settings from a file or for a folder of photos, and the text they came from.

    Raises:
        ConfigError: there is neither, or a setting is wrong.
    """
    path = Path(source) if source else None
    if path is None or path.is_dir():
        where, text = "personalize", None
        tree = {"subject": {"images": source}} if source else {}
    else:
        _check_file(path)
        where = str(path)
        raw, text = read_yaml(path)
        tree, _ = with_bases(raw, path)
    tree = _with_pocket_settings(tree, overrides, where)
    config = _absolute(validate(PersonalizeConfig, tree, overrides, where=where))
    _check_template(config, where)
    return config, text or dump_yaml(config)


def _check_photos(arguments: Sequence[str]) -> None:
    """Refuse the photos themselves where their folder belongs, as a shell's `photos/*` gives."""
    files = [text for text in arguments if "=" not in text]
    if len(files) > 1 and all(Path(text).is_file() for text in files):
        raise ConfigError(
            f"{len(files)} files are given ({files[0]}, …) - expected the folder that holds the "
            f"photos. Put them in one of their own: {command('personalize', 'PHOTOS')}"
        )


def _check_file(path: Path) -> None:
    """Refuse what is neither photos in a folder nor settings in a file."""
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file or folder - expected a folder with photos of the subject, or "
            "a file with task: personalize."
        )
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(
            f"{path} is a file - expected the folder that holds the photos, or a .yaml file with "
            "task: personalize. Put the photos in a folder of their own, and give that."
        )


def _check_template(config: PersonalizeConfig, where: str) -> None:
    """Refuse a caption that would not be read: those of a new word are the method's own."""
    template = config.subject.template
    is_own = template != SubjectPhotosConfig.template
    if is_own and isinstance(config.method, TextualInversionConfig):
        raise ConfigError(
            f"{where}: subject.template is {template!r}, which method.kind=textual_inversion does "
            f"not read - expected it as a caption of the method: method.templates=['{template}']."
        )


def _with_pocket_settings(tree: dict[str, Any], overrides: list[str], where: str) -> dict[str, Any]:
    """The settings, with pocket's own below them where pocket learns."""
    # Pocket's own settings depend on the others, and these on keys that only pocket's have.
    deciding = [text for text in overrides if not text.startswith(OF_CUTOUTS)]
    config = validate(PersonalizeConfig, tree, deciding, where=where)
    if not isinstance(config.prior, PocketPriorConfig):
        return tree
    kind = config.method.kind
    pocket, _ = read_yaml(POCKET_METHODS / f"{kind}.yaml")
    if tree.get("method", {}).get("kind", kind) != kind:  # an override takes another method
        tree = {key: value for key, value in tree.items() if key != "method"}
    return merge(pocket, tree)


def _absolute(config: PersonalizeConfig) -> PersonalizeConfig:
    """The same with absolute paths, since a run may go on from another folder."""
    subject = config.subject
    paths = {
        name: str(Path(value).expanduser().absolute())
        for name in ("images", "captions")
        if (value := getattr(subject, name))
    }
    return replace(config, subject=replace(subject, **paths))


def _resumed(
    resume: Path, source: str | None, overrides: list[str]
) -> tuple[PersonalizeConfig, str]:
    """The run's own settings; only the device may be another one.

    Raises:
        ConfigError: it is another kind of run, or other settings are given.
    """
    folder = open_run(resume)
    if folder.read_info().get("task") != TASK:
        raise ConfigError(
            f"{resume} is no personalization - expected a folder that studio personalize made. "
            "Runs that make an asset go on with studio run --resume; those of pictures are made "
            "again."
        )
    tree, text = read_yaml(folder.resolved_path)
    if source is not None or any(not text.startswith("device=") for text in overrides):
        raise ConfigError(
            f"--resume {resume}: other settings were given - expected none but device, because the "
            "run goes on as it began. Leave --resume out for a new run."
        )
    config = validate(PersonalizeConfig, tree, overrides, where=str(folder.resolved_path))
    return config, text


def check(config: PersonalizeConfig) -> None:
    """Refuse what is missing, before anything is loaded.

    Raises:
        ConfigError: photos or their word are not given.
    """
    subject = config.subject
    if not subject.images:
        raise ConfigError(
            "subject.images is empty - expected a folder with photos of the subject. "
            "Give it: studio personalize PHOTOS --word dog"
        )
    if not subject.word.strip():
        raise ConfigError(
            "subject.word is empty - expected what the subject is, in a word or two such as dog or "
            "teddy bear. Give it with --word, or as subject.word=dog."
        )


def _start(config: PersonalizeConfig, text: str, out: Path) -> RunFolder:
    """Make the run folder and record what is about to happen in it."""
    info = {
        "task": TASK,
        **made_with(PACKAGES),
        "prompt": config.subject.word,
        "method": config.method.kind,
        "seed": config.method.loop.seed,
    }
    run = create_run(
        out,
        prompt=config.subject.word,
        method=config.method.kind,
        seed=config.method.loop.seed,
        info=info,
    )
    with storage_errors(run.path, "write"):
        write_atomic(run.scene_path, text)
        write_atomic(run.resolved_path, dump_yaml(config))
    say(f"{config.method.kind} of '{config.subject.word}' -> {run.path}")
    return run


def _print(
    config: PersonalizeConfig, folder: RunFolder, files: dict[str, Path], as_json: bool
) -> None:
    """Results on stdout, the one to use last."""
    paths = {name: str(path) for name, path in files.items()}
    if as_json:
        result = {"run": str(folder.path), "token": config.token, "files": paths}
        sys.stdout.write(json.dumps(result) + "\n")
        return
    sys.stdout.write(f"run        {folder.path}\ntoken      {config.token}\n")
    for name, path in paths.items():
        sys.stdout.write(f"{name:<10} {path}\n")

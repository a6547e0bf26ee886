"""`studio doctor`: what this machine can do, and what is in the way, one line each."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

from image_tools.configs import (
    DiffusersPriorConfig,
    MVDreamPriorConfig,
    PersonalizedPriorConfig,
    PriorConfig,
    ReferencedPriorConfig,
)
from studio.commands import personalize
from studio.config import load_task, split_arguments
from studio.configs import SceneConfig
from studio.edit_configs import check_edit
from studio.errors import StudioError, install_command
from studio.personalize_configs import PersonalizeConfig
from studio.task_configs import TaskConfig

__all__ = ["Check", "checks", "run"]

PACKAGES = (
    "torch", "numpy", "scipy", "numba", "diffusers", "transformers", "peft", "safetensors",
    "trimesh", "xatlas", "fast-simplification", "manifold3d", "pillow", "imageio",
    "imageio-ffmpeg", "pydantic", "typer", "rich",
)  # fmt: skip
EXTRAS = {
    "viser": "view",
    "pymeshlab": "geometry",
    "open3d": "geometry",
    "tensorboard": "log",
    "pillow_heif": "photos",
}
REPLACEABLE = {"xatlas": "so textures have a patch for each triangle"}
MIN_FREE_BYTES = 2 * 1024**3
MARKS = {"ok": "ok     ", "note": "-      ", "problem": "PROBLEM"}


@dataclass(frozen=True)
class Check:
    """One finding."""

    group: str
    name: str
    state: Literal["ok", "note", "problem"]
    """note: something optional that is not there."""
    detail: str


def run(arguments: Sequence[str] = (), *, as_json: bool = False) -> None:
    """Print every check; exits with 3 when something the core or the scene needs is missing.

    Args:
        arguments: a scene and overrides, as of ``studio run``; without them only the demo's
            weights are looked for.
        as_json: print the checks as JSON.

    Raises:
        ConfigError: the scene cannot be read.
    """
    found = list(checks(arguments))
    problems = [check for check in found if check.state == "problem"]
    if as_json:
        rows = [asdict(check) for check in found]
        sys.stdout.write(json.dumps({"ok": not problems, "checks": rows}) + "\n")
    else:
        _print(found)
    if problems:
        sys.stderr.write(f"{len(problems)} problem(s) found.\n")
        raise SystemExit(3)


def checks(arguments: Sequence[str] = ()) -> Iterator[Check]:
    """All findings, grouped."""
    source, overrides = split_arguments(arguments)
    if personalize.is_personalization(source, None):
        config, _ = personalize.load(source, overrides)
    else:
        config = load_task(source or "demo", overrides).config
    yield from _system()
    yield from _packages()
    yield from _devices()
    yield from _backends()
    yield from _weights(config)
    yield from _files(config)


def _print(found: list[Check]) -> None:
    """A table, one group after the other."""
    group = ""
    for check in found:
        if check.group != group:
            group = check.group
            sys.stdout.write(f"{group}\n")
        sys.stdout.write(f"  {MARKS[check.state]}  {check.name:<20} {check.detail}\n")


def _system() -> Iterator[Check]:
    """Python, cores, disk, environment."""
    version = platform.python_version()
    state = "ok" if sys.version_info >= (3, 10) else "problem"
    yield Check("system", "python", state, f"{version} on {platform.platform()}")
    yield Check("system", "cores", "ok", str(os.cpu_count()))
    free = shutil.disk_usage(".").free
    writable = os.access(".", os.W_OK)
    state = "ok" if free > MIN_FREE_BYTES and writable else "problem"
    detail = f"{free / 1024**3:.1f} GiB free" + ("" if writable else ", not writable")
    yield Check("system", "current folder", state, detail)
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    yield Check("system", "hub", "note" if offline else "ok", "offline" if offline else "online")


def _packages() -> Iterator[Check]:
    """Core packages, extras, and the one package that breaks others."""
    for name in PACKAGES:
        try:
            yield Check("packages", name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            hint = f"missing: {sys.executable} -m pip install {name}"
            if name in REPLACEABLE:
                hint = f"missing, {REPLACEABLE[name]}: {sys.executable} -m pip install {name}"
            state = "note" if name in REPLACEABLE else "problem"
            yield Check("packages", name, state, hint)
    for name, extra in EXTRAS.items():
        found = importlib.util.find_spec(name) is not None
        hint = f"not installed: {install_command(extra)}"
        yield Check("packages", name, "ok" if found else "note", "installed" if found else hint)
    if importlib.util.find_spec("torchvision") is not None:
        yield _torchvision()


def _torchvision() -> Check:
    """diffusers and transformers use torchvision if it is there, and fail if it does not load."""
    try:
        import torchvision

        return Check("packages", "torchvision", "ok", f"{torchvision.__version__} (not needed)")
    except Exception as error:  # whatever it raises is the finding
        detail = f"installed but broken ({error}); run: pip uninstall torchvision"
        return Check("packages", "torchvision", "problem", detail)


def _devices() -> Iterator[Check]:
    """CPU, CUDA, MPS."""
    import torch

    from studio.device import gpu_obstacle

    yield Check("devices", "cpu", "ok", f"{torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 1024**3:.0f} GiB"
        obstacle = gpu_obstacle(index)
        detail = obstacle or f"{properties.name}, {memory}"
        yield Check("devices", f"cuda:{index}", "problem" if obstacle else "ok", detail)
    if not torch.cuda.is_available():
        yield Check("devices", "cuda", "note", "no CUDA device")
    mps = torch.backends.mps.is_available()
    yield Check("devices", "mps", "ok" if mps else "note", "available" if mps else "not here")


def _backends() -> Iterator[Check]:
    """What runs the kernels, and why."""
    from renderers.backends import resolve, status
    from studio.device import resolve_device

    device = resolve_device("auto")
    for backend in status():
        detail = f"{backend.reason} ({backend.licence})"
        if not backend.available:
            detail += f"; {backend.install_hint}"
        yield Check("backends", backend.name, "ok" if backend.available else "note", detail)
    yield Check("backends", "chosen", "ok", f"{resolve(device)} on {device}")


def _weights(config: TaskConfig | PersonalizeConfig) -> Iterator[Check]:
    """The models of the scene, without loading any."""
    from guidance.debiasing import find_masked_language_model
    from image_tools.pocket.paths import adapter_files
    from studio.images.adapters import named_adapters
    from studio.scene_inputs import named_models
    from studio.stage_priors import priors_of

    is_scene = isinstance(config, SceneConfig)
    for key, prior in priors_of(config) if is_scene else [("prior", config.prior)]:
        yield from _prior(key, prior)
    if not isinstance(config, PersonalizeConfig):
        for key, name in named_models(config) if is_scene else named_adapters(config):
            yield _model(key, "adapter", partial(adapter_files, name, role=key))
    if is_scene and config.debias is not None:
        find = partial(find_masked_language_model, config.debias.model)
        yield _model("debias", "masked language model", find)


def _prior(key: str, prior: PriorConfig) -> Iterator[Check]:
    """One prior; what a run would ask the hub for is a note, what lies beside it is still looked
    for."""
    from image_tools.diffusion.layout import files_beside_folder, find_prior_files
    from image_tools.diffusion.weights import find_local_folder

    hub_id = _hub_id(prior)
    if hub_id is None:
        yield _model(key, prior.kind, partial(find_prior_files, prior, find_local_folder))
        return
    yield Check("weights", key, "note", f"{prior.kind}: a run will ask the hub for {hub_id}")
    beside = _model(key, f"beside {hub_id}", partial(files_beside_folder, prior))
    if beside.state == "problem":
        yield beside


def _hub_id(prior: PriorConfig) -> str | None:
    """The model that a run would ask the hub for: it is not here, and the hub may be asked."""
    from image_tools.diffusion.layout import ROLE
    from image_tools.diffusion.weights import find_local_folder, hub_allowed, is_hub_id

    while isinstance(prior, PersonalizedPriorConfig | ReferencedPriorConfig):
        prior = prior.base
    if not isinstance(prior, DiffusersPriorConfig | MVDreamPriorConfig) or not hub_allowed():
        return None
    model = prior.model if isinstance(prior, DiffusersPriorConfig) else prior.base
    try:
        find_local_folder(model, role=ROLE, revision=prior.revision, variant=prior.variant)
    except StudioError:
        return model if is_hub_id(model) and not Path(model).expanduser().exists() else None
    return None


def _model(key: str, kind: str, find: Callable[[], list[Path]]) -> Check:
    """Whether the files of one model are here and whole."""
    try:
        files = find()
        for file in files:
            _check_header(file)
    except StudioError as error:
        return Check("weights", key, "problem", str(error))
    size = sum(file.stat().st_size for file in files) / 1e6
    places = ", ".join(sorted({str(file.parent) for file in files}))
    return Check("weights", key, "ok", f"{kind}, {len(files)} files, {size:.0f} MB: {places}")


def _files(config: TaskConfig | PersonalizeConfig) -> Iterator[Check]:
    """Pictures, photos, meshes and runs that the scene starts from."""
    try:
        _check_files(config)
    except StudioError as error:
        yield Check("files", "of the scene", "problem", str(error))
    else:
        yield Check("files", "of the scene", "ok", "whatever it starts from can be read")


def _check_files(config: TaskConfig | PersonalizeConfig) -> None:
    """Refuse a scene whose files a run would refuse."""
    from studio.images.reading import check_pictures
    from studio.scene_inputs import check_files
    from studio.subject.photos import check_photos, check_subject

    if isinstance(config, PersonalizeConfig):
        personalize.check(config)
        check_photos(config.subject)
        return
    if not isinstance(config, SceneConfig):
        check_pictures(config)
        return
    if config.edit is not None:
        check_edit(config.edit)
    if config.subject is not None:
        check_subject(config.subject)
    check_files(config)


def _check_header(file: Path) -> None:
    """Notice a truncated download: the header says how long the file must be."""
    from safetensors import safe_open

    from image_tools.diffusion.loading import readable_weights

    if file.suffix == ".safetensors":
        with readable_weights(file, "prior"), safe_open(file, "pt"):
            pass

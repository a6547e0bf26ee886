"""Where the files of a prior lie: which folder, which components, which weights; nothing is loaded.

for file in find_prior_files(config):
    print(file)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from image_tools.configs import (
    DiffusersPriorConfig,
    MVDreamPriorConfig,
    PersonalizedPriorConfig,
    PocketMultiViewPriorConfig,
    PocketPriorConfig,
    PriorConfig,
    ReferencedPriorConfig,
    SingleFilePriorConfig,
)
from image_tools.diffusion.mvdream_weights import find_mvdream_files
from image_tools.diffusion.weights import (
    check_safetensors_file,
    find_model_folder,
    find_weights,
    read_json,
)
from image_tools.errors import UnsupportedModel
from image_tools.personalization.subject_files import subject_files
from image_tools.pocket.paths import pocket_folder, pocket_mv_folder

__all__ = [
    "ROLE",
    "FolderFinder",
    "StockFolderConfig",
    "files_beside_folder",
    "find_prior_files",
    "find_unet",
    "locate_folder",
    "read_index",
    "tower_names",
    "weight_files",
]

ROLE = "prior"
PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",  # what SDXL refiners are saved as
)

StockFolderConfig = (
    PocketPriorConfig | DiffusersPriorConfig | PocketMultiViewPriorConfig | MVDreamPriorConfig
)
FolderFinder = Callable[..., Path]
"""``find_model_folder``, or ``find_local_folder``, which never asks the hub."""


def find_prior_files(
    config: PriorConfig, find_folder: FolderFinder = find_model_folder
) -> list[Path]:
    """Every weight file that ``load_prior`` reads.

    Args:
        config: one of the prior configurations.
        find_folder: what turns a model's name into its folder.

    Raises:
        WeightsMissing: if one is absent; UnsafeWeights if it is a pickle.
        UnsupportedModel: if the model is of a design that does not fit.
    """
    if isinstance(config, PersonalizedPriorConfig):
        return find_prior_files(config.base, find_folder) + subject_files(config.subjects)
    if isinstance(config, ReferencedPriorConfig):
        from image_tools.personalization.references import reference_files

        return find_prior_files(config.base, find_folder) + reference_files(config.tool)
    if isinstance(config, SingleFilePriorConfig):
        path = Path(config.path).expanduser()
        check_safetensors_file(path, role=ROLE)
        read_index(Path(config.config).expanduser())
        return [path]
    folder, variant = locate_folder(config, find_folder)
    encoders = [encoder for _, encoder in tower_names(read_index(folder))]
    shared = weight_files(folder, ["vae", *encoders], variant)
    return find_unet(config, folder, variant) + shared


def files_beside_folder(config: PriorConfig) -> list[Path]:
    """What ``load_prior`` reads beside the folder of the prior's model, which is not looked for.

    Raises:
        WeightsMissing: if a multi-view denoiser, a subject or a tool's model is absent.
    """
    if isinstance(config, PersonalizedPriorConfig):
        return files_beside_folder(config.base) + subject_files(config.subjects)
    if isinstance(config, ReferencedPriorConfig):
        from image_tools.personalization.references import reference_files

        return files_beside_folder(config.base) + reference_files(config.tool)
    if isinstance(config, MVDreamPriorConfig):
        return find_mvdream_files(Path(config.weights).expanduser())
    return []


def find_unet(config: StockFolderConfig, folder: Path, variant: str | None) -> list[Path]:
    """The denoiser's weight files: in the stock folder, or a multi-view model's own."""
    if isinstance(config, MVDreamPriorConfig):
        return find_mvdream_files(Path(config.weights).expanduser())
    if isinstance(config, PocketMultiViewPriorConfig):
        folder = pocket_mv_folder(_path(config.path))
    return weight_files(folder, ["unet"], variant)


def locate_folder(
    config: StockFolderConfig, find_folder: FolderFinder = find_model_folder
) -> tuple[Path, str | None]:
    """The stock folder of everything but a multi-view denoiser, and its variant."""
    if isinstance(config, DiffusersPriorConfig | MVDreamPriorConfig):
        model = config.model if isinstance(config, DiffusersPriorConfig) else config.base
        folder = find_folder(model, role=ROLE, revision=config.revision, variant=config.variant)
        return folder, config.variant
    own = config.path if isinstance(config, PocketPriorConfig) else config.base
    return pocket_folder(_path(own)), None


def weight_files(folder: Path, components: list[str], variant: str | None) -> list[Path]:
    """All weight files; looked up early, although the text encoders are read late."""
    stems = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
    roles = {"unet": "denoiser", "vae": "VAE"}
    files = []
    for name in components:
        stem, role = stems.get(name, "model"), roles.get(name, "text encoder")
        files += find_weights(folder / name, stem, role=role, variant=variant)
    return files


def read_index(folder: Path) -> dict[str, Any]:
    """``model_index.json``.

    Raises:
        WeightsMissing: if there is none.
        UnsupportedModel: if it is that of another kind of pipeline.
    """
    index = read_json(folder / "model_index.json", role=ROLE)
    if index.get("_class_name") not in PIPELINES:
        kind = index.get("_class_name", "unknown")
        raise UnsupportedModel(
            f"'{folder}' holds a {kind}. Expected {', '.join(PIPELINES[:-1])} or {PIPELINES[-1]} "
            "(Stable Diffusion 1.x, 2.x, SDXL base, SDXL refiner, pocket)."
        )
    return index


def tower_names(index: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs of tokenizer and text encoder folders that the model has, in order."""
    pairs = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")]
    return [pair for pair in pairs if (index.get(pair[1]) or [None])[0] is not None]


def _path(folder: str | None) -> Path | None:
    return Path(folder).expanduser() if folder else None

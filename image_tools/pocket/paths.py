"""Where the shipped pocket models lie."""

from __future__ import annotations

import difflib
import shlex
from pathlib import Path

from image_tools.errors import WeightsMissing

__all__ = [
    "ADAPTERS",
    "CONTROLS",
    "POCKET_FOLDER",
    "POCKET_MV_FOLDER",
    "adapter_files",
    "adapter_path",
    "pocket_folder",
    "pocket_mv_folder",
]

WEIGHTS = Path(__file__).parent / "weights"
POCKET_FOLDER = WEIGHTS / "pocket"
POCKET_MV_FOLDER = WEIGHTS / "pocket-mv"
SHIPPED_PREFIX = "pocket-"
CONTROLS = ("depth", "normal", "edge", "seg", "keypoints")
"""What there is a ControlNet for."""
ADAPTERS = ("pocket-ip2p", "pocket-uni", *(f"pocket-control-{name}" for name in CONTROLS))
"""Models beside the pocket prior, by what ``studio train`` calls them."""
SUFFIX = ".safetensors"


def pocket_folder(folder: Path | None = None) -> Path:
    """The folder of a pocket model, the shipped one by default, in stock diffusers layout.

    Raises:
        WeightsMissing: if there is no model in it.
    """
    folder = folder or POCKET_FOLDER
    if not (folder / "model_index.json").is_file():
        raise WeightsMissing(
            f"Weights for the pocket prior are missing: no model_index.json in '{folder}'. "
            "Expected the model that ships with this package; install the package again, "
            "or train one, with DIR the folder of all-MiniLM-L6-v2: "
            f"studio train pocket --text-source DIR --out {shlex.quote(str(folder))}"
        )
    return folder


def pocket_mv_folder(folder: Path | None = None) -> Path:
    """The folder of a multi-view denoiser, the shipped one by default: ``unet``, ``scheduler``.

    Raises:
        WeightsMissing: if there is none in it.
    """
    folder = folder or POCKET_MV_FOLDER
    if not (folder / "unet" / "config.json").is_file():
        raise WeightsMissing(
            f"Weights for the pocket_mv prior are missing: no unet/config.json in '{folder}'. "
            "Expected the model that ships with this package; install the package again, "
            f"or train one with: studio train pocket-mv --out {shlex.quote(str(folder))}"
        )
    return folder


def adapter_path(name: str, *, role: str) -> Path:
    """Where a model beside a prior lies: a path of the user's, or one that ships, by its name.

    Args:
        name: a folder, a file, or a name such as pocket-control-depth.
        role: what the weights are for, named in the error.

    Raises:
        WeightsMissing: there is nothing.
    """
    path = Path(name).expanduser()
    is_name = path.name == name and name.startswith(SHIPPED_PREFIX)
    if is_name and not path.exists():
        path = WEIGHTS / name
    if not path.exists():
        place = "" if str(path) == name else f", nor at '{path}'"
        remedy = _remedy(name, path) if is_name else "correct the path."
        raise WeightsMissing(
            f"Weights for the {role} are missing: '{name}' is not there{place}. Expected "
            f"a file, or a folder in diffusers layout; {remedy}"
        )
    return path


def _remedy(name: str, path: Path) -> str:
    """What to do about a name of which nothing ships."""
    if name in ADAPTERS:
        return f"train it with: studio train {shlex.join([name, '--out', str(path)])}"
    near = difflib.get_close_matches(name, ADAPTERS, n=1)
    hint = f"did you mean {near[0]}? Of" if near else "of"
    return f"{hint} this package's own there are {', '.join(ADAPTERS)}."


def adapter_files(name: str, *, role: str) -> list[Path]:
    """The weight files that are meant by ``name``: one file, or those in its folder.

    Raises:
        WeightsMissing: there are none.
    """
    path = adapter_path(name, role=role)
    if path.is_file():
        return [path]
    places = (path.glob(f"{folder}*{SUFFIX}") for folder in ("", "unet/", "*/"))
    found = next((files for place in places if (files := sorted(place))), None)
    if found is None:
        raise WeightsMissing(f"{role}: no {SUFFIX} file in '{path}' - expected a model's weights.")
    return found

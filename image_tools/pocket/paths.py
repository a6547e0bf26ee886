"""Where the shipped pocket model lies."""

from __future__ import annotations

from pathlib import Path

from image_tools.errors import WeightsMissing

__all__ = ["POCKET_FOLDER", "POCKET_MV_FOLDER", "pocket_folder", "pocket_mv_folder"]

POCKET_FOLDER = Path(__file__).parent / "weights" / "pocket"
POCKET_MV_FOLDER = Path(__file__).parent / "weights" / "pocket-mv"


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
            "or train one with: studio train pocket."
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
            "or train one with: studio train pocket-mv."
        )
    return folder

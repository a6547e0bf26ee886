"""A folder of photos to images of one size. Nothing in the folder is ever written.

Photos are turned as their EXIF says, brought to sRGB where they carry another profile, cut to the
middle square or padded, and resized (Lanczos); transparent parts become white and the alpha is
kept as a mask. One photo is in memory at a time, JPEGs are decoded at a fraction of their size, and
what is larger than the limit is not decoded at all.

A photo that cannot be read is skipped with a warning as long as others remain; when none remains,
the first reason is the error. Everything else in the folder is listed in ``skipped``.

    photos = load_photos("~/photos/my-dog", size=prior.image_size)
    latents = prior.encode_images(photos.images)
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageCms, UnidentifiedImageError
from torch import Tensor

from image_tools.personalization.photo_cutouts import on_plain
from image_tools.personalization.photos_configs import PhotosConfig
from image_tools.vision.cutout_configs import CutoutConfig
from renderers.errors import StudioError

__all__ = [
    "PhotosError",
    "SkippedFile",
    "SubjectPhotos",
    "load_photo",
    "load_photos",
    "orientation_of",
]

logger = logging.getLogger(__name__)

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif")
)
HEIF_SUFFIXES = (".heic", ".heif")
# The brands at byte 8 of HEIC files; phones also hand them out under the name .jpg.
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
EXIF_ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Everything that Pillow's decoders raise on damaged files.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError)
# Reduce by whole factors first where the result stays at least so many times too large.
REDUCING_GAP = 3.0


class PhotosError(StudioError):
    """A folder has no photo that can be used."""

    exit_code = 2


@dataclass(frozen=True)
class SkippedFile:
    """Something in the folder that is not among the photos."""

    path: Path
    reason: str
    """In words that fit behind the file's name."""


@dataclass(frozen=True)
class SubjectPhotos:
    """Photos of one size, in the order of their file names."""

    images: Float[Tensor, "n h w 3"]
    """sRGB colours in 0..1."""
    paths: tuple[Path, ...]
    """Where each photo comes from."""
    masks: Float[Tensor, "n h w"] | None = None
    """1 where a photo shows something, 0 where it is transparent or padded; None if all is 1."""
    skipped: tuple[SkippedFile, ...] = ()
    """What was left out, and why."""

    def __len__(self) -> int:
        return len(self.paths)


class _Unreadable(Exception):
    """Why one photo is skipped."""


def load_photos(
    folder: Path | str, *, size: int, config: PhotosConfig | None = None
) -> SubjectPhotos:
    """Read all photos of a folder; subfolders are not entered.

    Args:
        folder: where the photos are.
        size: rows and columns of the result.
        config: crop or pad, and the size limit.

    Raises:
        PhotosError: if the folder is absent or holds no photo that can be read.
    """
    folder, config = Path(folder).expanduser(), config or PhotosConfig()
    candidates, skipped = _list_folder(folder)
    images, masks, paths = [], [], []
    # A subject is told from its surroundings better in a larger photo.
    read_size = size if config.cutout is None else max(2 * size, config.cutout.size)
    for path in candidates:
        try:
            image, mask = _read_photo(path, read_size, config)
        except _Unreadable as problem:
            skipped.append(SkippedFile(path, str(problem)))
            continue
        images.append(image)
        masks.append(mask)
        paths.append(path)
    unreadable = [item for item in skipped if item.path in candidates]
    if not images:
        raise _no_photos(folder, unreadable, skipped)
    _warn(folder, paths, unreadable, is_cut_out=config.cutout is not None)
    stacked = torch.stack(masks)
    photos = SubjectPhotos(
        torch.stack(images),
        tuple(paths),
        stacked if bool((stacked < 1.0).any()) else None,
        tuple(sorted(skipped, key=lambda item: item.path.name)),
    )
    return photos if config.cutout is None else _cut_out(photos, config.cutout, size)


def _cut_out(photos: SubjectPhotos, config: CutoutConfig, size: int) -> SubjectPhotos:
    """Photos on plain grounds, without those whose subject was not found while others remain."""
    masks = torch.ones(photos.images.shape[:3]) if photos.masks is None else photos.masks
    plain = on_plain(photos.images, masks, config, size=size)
    found = plain.is_found
    lost = [path for path, is_found in zip(photos.paths, found, strict=True) if not is_found]
    is_hopeless = len(lost) == len(photos)
    for path in lost:
        logger.warning(
            "The subject of '%s' could not be told from its surroundings, and the photo %s. Save "
            "it as PNG with a transparent background.",
            path,
            "stays as it is, like all others" if is_hopeless else "is left out",
        )
    if is_hopeless:
        return replace(photos, images=plain.images, masks=None)
    skipped = [SkippedFile(path, "has a subject that could not be cut out") for path in lost]
    return SubjectPhotos(
        plain.images[found],
        tuple(path for path in photos.paths if path not in lost),
        plain.masks[found],
        tuple(sorted([*photos.skipped, *skipped], key=lambda item: item.path.name)),
    )


def load_photo(
    path: Path | str, *, size: int, config: PhotosConfig | None = None
) -> Float[Tensor, "h w 3"]:
    """Read one image file in the same way.

    Raises:
        PhotosError: if it is absent or cannot be read.
    """
    path = Path(path).expanduser()
    try:
        return _read_photo(path, size, config or PhotosConfig())[0]
    except _Unreadable as problem:
        raise PhotosError(
            f"The image '{path}' {problem}. Expected a PNG, JPEG or WebP file. Correct the path, "
            "or save the image again."
        ) from problem


def _list_folder(folder: Path) -> tuple[list[Path], list[SkippedFile]]:
    """Files that may be photos, by name, and everything else."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise PhotosError(
            f"The photo folder '{folder}' {what} - expected a folder with three to six photos of "
            "the subject. Correct the path, or create the folder and copy the photos into it."
        )
    try:
        found = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise PhotosError(
            f"The photo folder '{folder}' cannot be opened ({error.strerror}) - expected a folder "
            "that you may read. Change its permissions, or choose another."
        ) from error
    candidates, others = [], []
    for path in found:
        if path.is_dir():
            others.append(SkippedFile(path, "is a folder"))
        elif path.name.startswith("."):
            others.append(SkippedFile(path, "is a hidden file"))
        elif path.suffix.lower() not in SUFFIXES:
            others.append(SkippedFile(path, "is not a photo"))
        else:
            candidates.append(path)
    return candidates, others


def _no_photos(
    folder: Path, unreadable: list[SkippedFile], skipped: list[SkippedFile]
) -> PhotosError:
    wanted = "Expected three to six PNG, JPEG or WebP photos of the subject."
    if unreadable:
        first, others = unreadable[0], len(unreadable) - 1
        more = f" (and {others} more like it)" if others else ""
        return PhotosError(
            f"No photo in '{folder}' can be used: '{first.path.name}' {first.reason}{more}. "
            f"{wanted} Replace the file and start again."
        )
    names = ", ".join(f"'{item.path.name}'" for item in skipped[:3])
    found = f"only {names}{' ...' if len(skipped) > 3 else ''}" if skipped else "it is empty"
    return PhotosError(
        f"There are no photos in '{folder}': {found}. {wanted} Copy them into the folder, not into "
        "folders inside it."
    )


def _warn(
    folder: Path, paths: list[Path], unreadable: list[SkippedFile], *, is_cut_out: bool
) -> None:
    for item in unreadable:
        logger.warning("Photo left out: '%s' %s.", item.path, item.reason)
    if len(paths) == 1:
        with_ground = "" if is_cut_out else "together with its background and "
        logger.warning(
            "There is one photo in '%s'. The subject will be learned %sfrom one side only; three "
            "to six photos on different backgrounds work better.",
            folder,
            with_ground,
        )


def _read_photo(path: Path, size: int, config: PhotosConfig) -> tuple[Tensor, Tensor]:
    """One photo [size, size, 3] and its mask [size, size]."""
    _allow_heif(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large and of slightly damaged files
        try:
            with Image.open(path) as image:
                return _to_tensors(_square(image, size, config))
        except Image.DecompressionBombError as error:
            raise _Unreadable(f"is too large to be a photo ({error})") from error
        except UnidentifiedImageError as error:
            raise _Unreadable("is no image, or damaged at its very start") from error
        except MemoryError as error:
            raise _Unreadable("does not fit into memory; save it smaller") from error
        except DAMAGE as error:
            raise _Unreadable(f"is damaged ({str(error).strip() or type(error).__name__})") from (
                error
            )


def _allow_heif(path: Path) -> None:
    """Let Pillow read HEIC, for which it needs another package."""
    try:
        with path.open("rb") as file:
            header = file.read(12)
    except OSError as error:
        raise _Unreadable(f"cannot be opened ({error.strerror})") from error
    is_heif = header[4:8] == b"ftyp" and header[8:12] in HEIF_BRANDS
    if not is_heif and path.suffix.lower() not in HEIF_SUFFIXES:
        return
    try:
        import pillow_heif
    except ImportError as error:
        raise _Unreadable(
            "is a HEIC photo, which needs the package pillow-heif (pip install pillow-heif); or "
            "save it as JPEG"
        ) from error
    pillow_heif.register_heif_opener()


def _square(image: Image.Image, size: int, config: PhotosConfig) -> Image.Image:
    """The photo as RGBA of the wanted size, turned upright, in sRGB."""
    orientation = orientation_of(image)
    profile = image.info.get("icc_profile")
    image.draft("RGB", (2 * size, 2 * size))  # JPEG: decode an eighth, a quarter or a half
    megapixels = image.width * image.height / 1e6
    if megapixels > config.max_megapixels:
        raise _Unreadable(
            f"has {megapixels:.0f} megapixels, more than max_megapixels "
            f"({config.max_megapixels:g}); save it smaller"
        )
    small = _resize(_plain_mode(image), size, config)
    if orientation in TURNS:
        small = small.transpose(TURNS[orientation])
    return _to_srgb(small, profile).convert("RGBA")


def orientation_of(image: Image.Image) -> int:
    """How the camera was held; unreadable EXIF data do not make a photo unreadable."""
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1)
    except DAMAGE:
        return 1


def _plain_mode(image: Image.Image) -> Image.Image:
    """The photo in a mode that can be resized; the common ones are not copied."""
    if image.mode in ("RGB", "RGBA", "L", "LA") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image, dtype=np.float32) / 257.0
        return Image.fromarray(values.clip(0.0, 255.0).round().astype(np.uint8), "L")
    has_alpha = "transparency" in image.info or image.mode in ("PA", "La", "RGBa")
    return image.convert("RGBA" if has_alpha else "RGB")


def _resize(image: Image.Image, size: int, config: PhotosConfig) -> Image.Image:
    """To a square of ``size``; a centred cut does not depend on the orientation."""
    width, height = image.size
    lanczos = Image.Resampling.LANCZOS
    if config.fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        return image.resize((size, size), lanczos, box=box, reducing_gap=REDUCING_GAP)
    scale = size / max(width, height)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    small = image.resize(inner, lanczos, reducing_gap=REDUCING_GAP).convert("RGBA")
    padded = Image.new("RGBA", (size, size), (255, 255, 255, 0))
    padded.paste(small, ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return padded


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert from the photo's own colour profile; a broken profile is as good as none."""
    if not profile:
        return image
    colours = image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"))
    except (ImageCms.PyCMSError, OSError):
        return image
    if image.mode in ("RGBA", "LA"):
        converted.putalpha(image.getchannel("A"))
    return converted


def _to_tensors(image: Image.Image) -> tuple[Tensor, Tensor]:
    """Colours on white, and the alpha."""
    rgba = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)
    colours, alpha = rgba[..., :3], rgba[..., 3]
    return colours * alpha[..., None] + (1.0 - alpha[..., None]), alpha.contiguous()

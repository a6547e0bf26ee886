"""Reading a folder of photos: shapes, formats, orientation, and everything that can be wrong."""

from __future__ import annotations

import io
import logging
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from image_tools.personalization.photos import PhotosError, load_photo, load_photos
from image_tools.personalization.photos_configs import PhotosConfig
from image_tools.vision.cutout_configs import CutoutConfig

SIZE = 16
RED, GREEN, BLUE, GREY = (220, 30, 30), (30, 180, 40), (40, 60, 220), (128, 128, 128)


def quarters(width: int = 64, height: int = 64) -> Image.Image:
    """Red, green; blue, grey, so that every orientation looks different."""
    image = Image.new("RGB", (width, height))
    half_w, half_h = width // 2, height // 2
    for colour, corner in zip(
        (RED, GREEN, BLUE, GREY), ((0, 0), (half_w, 0), (0, half_h), (half_w, half_h)), strict=True
    ):
        image.paste(colour, (*corner, corner[0] + half_w, corner[1] + half_h))
    return image


def corners(image: torch.Tensor) -> list[tuple[int, ...]]:
    """Colours in the middle of the four quarters, as bytes."""
    low, high = SIZE // 4, 3 * SIZE // 4
    places = ((low, low), (low, high), (high, low), (high, high))
    return [tuple((image[r, c] * 255).round().int().tolist()) for r, c in places]


def assert_looks_like(image: torch.Tensor, colours, tolerance: int = 6) -> None:
    difference = np.abs(np.array(corners(image)) - np.array(colours)).max()
    assert difference <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_out_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    quarters(96, 64).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "photo.jpg") as stored:
        upright = ImageOps.exif_transpose(stored)
    width, height = upright.size
    places = [(x * width, y * height) for y in (0.3, 0.7) for x in (0.3, 0.7)]
    expected = [upright.getpixel((int(x), int(y))) for x, y in places]
    assert_looks_like(load_photos(tmp_path, size=SIZE).images[0], expected)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG", "a.webp", "a.bmp", "a.tiff"])
def test_formats_and_spellings_of_their_endings(tmp_path, name):
    quarters().save(tmp_path / name)
    photos = load_photos(tmp_path, size=SIZE)
    assert photos.images.shape == (1, SIZE, SIZE, 3)
    assert photos.images.dtype == torch.float32
    assert photos.masks is None
    assert_looks_like(photos.images[0], (RED, GREEN, BLUE, GREY), tolerance=16)


def test_mixed_sizes_come_in_the_order_of_names(tmp_path):
    Image.new("RGB", (300, 100), BLUE).save(tmp_path / "c.png")
    Image.new("RGB", (5, 7), RED).save(tmp_path / "a.png")
    Image.new("RGB", (64, 64), GREEN).save(tmp_path / "b.png")
    photos = load_photos(tmp_path, size=SIZE)
    assert [path.name for path in photos.paths] == ["a.png", "b.png", "c.png"]
    assert [corners(image)[0] for image in photos.images] == [RED, GREEN, BLUE]


def test_crop_keeps_the_middle_square(tmp_path):
    image = Image.new("RGB", (90, 30), RED)
    image.paste(quarters(30, 30), (30, 0))
    image.save(tmp_path / "wide.png")
    assert_looks_like(load_photos(tmp_path, size=SIZE).images[0], (RED, GREEN, BLUE, GREY))


def test_pad_keeps_everything_and_masks_the_rest(tmp_path):
    Image.new("RGB", (60, 30), BLUE).save(tmp_path / "wide.png")
    photos = load_photos(tmp_path, size=SIZE, config=PhotosConfig(fit="pad"))
    expected = torch.zeros(SIZE, SIZE)
    expected[SIZE // 4 : 3 * SIZE // 4] = 1.0
    torch.testing.assert_close(photos.masks[0], expected)
    assert bool((photos.images[0][expected == 0] == 1.0).all())
    assert tuple((photos.images[0][SIZE // 2, 0] * 255).int().tolist()) == BLUE


def test_transparency_becomes_white_and_a_mask(tmp_path):
    image = quarters().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 32, 32))
    image.save(tmp_path / "a.png")
    Image.new("RGB", (32, 32), RED).save(tmp_path / "b.jpg")
    photos = load_photos(tmp_path, size=SIZE)
    assert_looks_like(photos.images[0], ((255, 255, 255), GREEN, BLUE, GREY))
    assert photos.masks.shape == (2, SIZE, SIZE)
    assert photos.masks[0, 4, 4] == 0.0
    assert photos.masks[0, 4, 12] == 1.0
    assert bool((photos.masks[1] == 1.0).all())


def test_a_half_transparent_pixel_is_blended_with_white(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 51)).save(tmp_path / "a.png")
    photos = load_photos(tmp_path, size=SIZE)
    torch.testing.assert_close(photos.images, torch.full_like(photos.images, 0.8))
    torch.testing.assert_close(photos.masks, torch.full_like(photos.masks, 0.2))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "CMYK", "I;16"])
def test_unusual_modes(tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((32, 32), 257 * 100, np.uint16))
        expected = 100 / 255
    else:
        image = Image.new("RGB", (32, 32), (255, 255, 255)).convert(mode)
        expected = 1.0
    image.save(tmp_path / ("a.tiff" if mode == "CMYK" else "a.png"))
    images = load_photos(tmp_path, size=SIZE).images
    torch.testing.assert_close(images, torch.full_like(images, expected), atol=0.01, rtol=0)


def test_a_palette_with_a_transparent_colour(tmp_path):
    image = quarters().quantize(4)
    image.save(tmp_path / "a.png", transparency=image.getpixel((10, 10)))
    photos = load_photos(tmp_path, size=SIZE)
    assert_looks_like(photos.images[0], ((255, 255, 255), GREEN, BLUE, GREY))
    assert photos.masks[0, 4, 4] == 0.0


def linear_profile() -> bytes:
    """An ICC profile with the primaries of sRGB and no gamma."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    tags = {
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.4361, 0.2225, 0.0139),
        b"gXYZ": xyz(0.3851, 0.7169, 0.0971),
        b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
    }
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), b"curv\x00\x00\x00\x00\x00\x00\x00\x00")
    table, data, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(data), len(value))
        data += value + b"\0" * (-len(value) % 4)
    body = struct.pack(">I", len(tags)) + table + data
    head = struct.pack(
        ">I4sI4s4s4s", 128 + len(body), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ "
    )
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + xyz(0.9642, 1.0, 0.8249)[8:]
    return head.ljust(128, b"\0") + body


def test_another_colour_profile_is_converted_to_srgb(tmp_path):
    value = 0.2140411  # linear light of sRGB 0.5
    image = Image.new("RGB", (32, 32), (round(value * 255),) * 3)
    image.save(tmp_path / "a.png", icc_profile=linear_profile())
    images = load_photos(tmp_path, size=SIZE).images
    torch.testing.assert_close(images, torch.full_like(images, 0.5), atol=0.01, rtol=0)


def test_a_broken_profile_is_as_good_as_none(tmp_path):
    quarters().save(tmp_path / "a.png", icc_profile=b"no profile")
    assert_looks_like(load_photos(tmp_path, size=SIZE).images[0], (RED, GREEN, BLUE, GREY))


@pytest.mark.parametrize("name", ["big.jpg", "big.png"])
def test_a_photo_of_8000_pixels_is_read(tmp_path, name):
    Image.new("L", (8000, 8000), 100).save(tmp_path / name)
    images = load_photos(tmp_path, size=SIZE).images
    torch.testing.assert_close(images, torch.full_like(images, 100 / 255), atol=0.01, rtol=0)


def write_bomb(path, side: int) -> None:
    """A PNG of a few bytes that says it is ``side`` pixels wide and high."""
    chunks = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + name + data
        chunks += struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(chunks)


@pytest.mark.parametrize("side", [11_000, 60_000])
def test_a_decompression_bomb_is_skipped_unopened(tmp_path, side):
    write_bomb(tmp_path / "bomb.png", side)
    quarters().save(tmp_path / "ok.png")
    photos = load_photos(tmp_path, size=SIZE)
    assert len(photos) == 1
    assert [item.path.name for item in photos.skipped] == ["bomb.png"]
    assert "large" in photos.skipped[0].reason or "megapixels" in photos.skipped[0].reason


def test_other_files_are_skipped_and_listed(tmp_path, caplog):
    for name in ("a.png", "b.png", "c.png"):
        quarters().save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("my dog")
    (tmp_path / "movie.mp4").write_bytes(b"\0")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "more").mkdir()
    quarters().save(tmp_path / "more" / "d.png")
    with caplog.at_level(logging.WARNING):
        photos = load_photos(tmp_path, size=SIZE)
    assert len(photos) == 3
    assert {item.path.name: item.reason for item in photos.skipped} == {
        ".DS_Store": "is a hidden file",
        "more": "is a folder",
        "movie.mp4": "is not a photo",
        "notes.txt": "is not a photo",
    }
    assert caplog.records == []


def damaged(kind: str) -> bytes:
    """Bytes of a photo that cannot be decoded."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG" if kind == "cut" else "PNG")
    content = buffer.getvalue()
    return {"empty": b"", "text": b"hello", "cut": content[:700], "png": content[:2000]}[kind]


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "png"])
def test_a_damaged_photo_is_skipped_with_a_warning(tmp_path, caplog, kind):
    quarters().save(tmp_path / "a.png")
    quarters().save(tmp_path / "b.png")
    (tmp_path / "broken.jpg").write_bytes(damaged(kind))
    with caplog.at_level(logging.WARNING):
        photos = load_photos(tmp_path, size=SIZE)
    assert len(photos) == 2
    assert len(photos.skipped) == 1
    assert "damaged" in photos.skipped[0].reason
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "broken.jpg" in caplog.text


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "png"])
def test_damaged_photos_alone_are_an_error_that_names_one(tmp_path, kind):
    (tmp_path / "broken.jpg").write_bytes(damaged(kind))
    with pytest.raises(PhotosError, match=r"'broken.jpg' is .*damaged.*Replace the file"):
        load_photos(tmp_path, size=SIZE)


def test_a_single_file_is_read_as_in_a_folder(tmp_path):
    quarters(40, 30).save(tmp_path / "a.png")
    alone = load_photo(tmp_path / "a.png", size=SIZE)
    assert torch.equal(alone, load_photos(tmp_path, size=SIZE).images[0])
    with pytest.raises(PhotosError, match=r"The image '.*b\.png' cannot be opened .* Correct the"):
        load_photo(tmp_path / "b.png", size=SIZE)


def test_one_photo_is_enough_but_warned_about(tmp_path, caplog):
    quarters().save(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        assert len(load_photos(tmp_path, size=SIZE)) == 1
    assert "There is one photo" in caplog.text
    assert "together with its background" in caplog.text
    assert "three to six" in caplog.text
    caplog.clear()
    cutout = PhotosConfig(cutout=CutoutConfig(size=SIZE))
    with caplog.at_level(logging.WARNING):
        load_photos(tmp_path, size=SIZE, config=cutout)
    assert "There is one photo" in caplog.text
    assert "together with its background" not in caplog.text


def test_no_photos_says_what_was_found_instead(tmp_path):
    with pytest.raises(PhotosError, match=r"it is empty.*three to six"):
        load_photos(tmp_path, size=SIZE)
    (tmp_path / "notes.txt").write_text("my dog")
    with pytest.raises(PhotosError, match=r"only 'notes.txt'"):
        load_photos(tmp_path, size=SIZE)


def test_a_missing_folder_and_a_file_in_its_place(tmp_path):
    with pytest.raises(PhotosError, match=r"is not there.*create the folder"):
        load_photos(tmp_path / "nowhere", size=SIZE)
    quarters().save(tmp_path / "a.png")
    with pytest.raises(PhotosError, match="is a file"):
        load_photos(tmp_path / "a.png", size=SIZE)


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "renamed.jpg"])
def test_heic_without_its_package_names_the_file_and_the_package(tmp_path, name):
    try:
        import pillow_heif  # noqa: F401
    except ImportError:
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 64)
        with pytest.raises(PhotosError, match=rf"'{name}' is a HEIC photo.*pillow-heif"):
            load_photos(tmp_path, size=SIZE)


def test_heic_with_its_package(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(quarters()).save(tmp_path / "IMG_1.HEIC", quality=95)
    images = load_photos(tmp_path, size=SIZE).images
    assert_looks_like(images[0], (RED, GREEN, BLUE, GREY), tolerance=16)


def test_nothing_in_the_folder_changes(tmp_path):
    quarters().save(tmp_path / "a.png")
    quarters(50, 80).save(tmp_path / "b.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"hello")
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()}
    load_photos(tmp_path, size=SIZE)
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()} == before

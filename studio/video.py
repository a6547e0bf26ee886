"""Moving pictures: MP4 (H.264, plays everywhere) and GIF, from frames of any renderer.

frames = render_frames(render, cameras)
write_mp4(run.renders_dir / "turntable.mp4", frames, fps=24)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from renderers.cameras import Cameras
from renderers.outputs import RenderOutput
from studio.errors import ConfigError
from studio.run_folder import storage_errors

__all__ = ["Frame", "Picture", "Render", "picture", "render_frames", "write_gif", "write_mp4"]

Frame = UInt8[np.ndarray, "h w 3"]
Render = Callable[[Cameras], RenderOutput]
"""Renders views without gradients, with normals."""
Picture = Literal["comp_rgb", "normal", "depth", "opacity"]

# Constant rate factor of x264: visually lossless for flat renders, still small.
MP4_QUALITY = 18
GIF_COLOURS = 255
PALETTE_FRAMES = 12


def picture(output: RenderOutput, kind: str, cameras: Cameras) -> Float[Tensor, "b h w 3"]:
    """One kind of image of a render, in 0..1, over white.

    Depth is dark where near; its scale is that of the scene (two world units around the centre),
    so that it does not flicker between frames.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind not in get_args(Picture):
        raise ConfigError(
            f"outputs: unknown {kind!r} - expected some of {', '.join(get_args(Picture))}."
        )
    if kind == "comp_rgb":
        return output.comp_rgb.clamp(0.0, 1.0)
    opacity = output.opacity.clamp(0.0, 1.0)
    if kind == "opacity":
        return opacity.expand_as(output.comp_rgb)
    if kind == "normal":
        normal = torch.zeros_like(output.comp_rgb) if output.normal is None else output.normal
        return ((0.5 + 0.5 * normal) * opacity + 1.0 - opacity).clamp(0.0, 1.0)
    distance = output.depth / opacity.clamp_min(1e-5)
    near = cameras.camera_distance[:, None, None, None] - 1.0
    gray = 0.1 + 0.75 * ((distance - near) / 2.0).clamp(0.0, 1.0)
    return (gray * opacity + 1.0 - opacity).expand_as(output.comp_rgb)


def render_frames(
    render: Render,
    cameras: Cameras,
    *,
    kinds: Sequence[str] = ("comp_rgb",),
    done: Callable[[int], None] = lambda _: None,
) -> Iterator[Frame]:
    """Render one view after the other; several kinds of image stand side by side.

    Args:
        render: the renderer.
        cameras: the views, in the order of the film.
        kinds: what to show.
        done: told the number of finished frames.
    """
    for index in range(len(cameras)):
        view = cameras[index]
        with torch.no_grad():
            output = render(view)
            images = [picture(output, kind, view)[0] for kind in kinds]
        joined = torch.cat(images, dim=1)
        done(index + 1)
        yield (joined * 255.0).round().to(torch.uint8).cpu().numpy()


def write_mp4(path: Path, frames: Iterable[Frame], *, fps: int = 24) -> None:
    """Encode H.264 in 4:2:0, the form that every browser and phone plays.

    Raises:
        ConfigError: there are no frames.
        StorageError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
    with storage_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = None
        try:
            for frame in map(_even, frames):
                if writer is None:
                    writer = _encoder(temporary, frame, fps)
                writer.send(np.ascontiguousarray(frame))
            if writer is None:
                raise ConfigError(f"{path.name}: there are no frames - expected at least one view.")
            writer.close()
            os.replace(temporary, path)
        finally:
            if writer is not None:
                writer.close()  # ffmpeg must be gone before its file is
            temporary.unlink(missing_ok=True)


def _encoder(path: Path, first: Frame, fps: int) -> Generator[None, Frame, None]:
    """A running ffmpeg that takes frames of this size."""
    import imageio_ffmpeg

    writer = imageio_ffmpeg.write_frames(
        str(path),
        (first.shape[1], first.shape[0]),
        fps=fps,
        codec="libx264",
        macro_block_size=2,
        output_params=["-crf", str(MP4_QUALITY), "-movflags", "+faststart"],
    )
    writer.send(None)
    return writer


def write_gif(path: Path, frames: Iterable[Frame], *, fps: int = 12) -> None:
    """Write an endless GIF with one palette for all frames, so that plain areas do not flicker.

    Raises:
        ConfigError: there are no frames.
        StorageError: the file cannot be written.
    """
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    if not images:
        raise ConfigError(f"{path.name}: there are no frames - expected at least one view.")
    palette = _palette(images)
    coded = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.gif")
    with storage_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            coded[0].save(
                temporary,
                save_all=True,
                append_images=coded[1:],
                duration=round(1000 / fps),
                loop=0,
                optimize=False,
            )
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _even(frame: Frame) -> UInt8[np.ndarray, "even_h even_w 3"]:
    """Repeat the last row or column where a side is odd; 4:2:0 halves both."""
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _palette(images: list):
    """The common colours of a few frames spread over the film."""
    from PIL import Image

    places = np.linspace(0, len(images) - 1, min(PALETTE_FRAMES, len(images))).round()
    chosen = [images[int(place)] for place in places]
    width, height = chosen[0].size
    strip = Image.new("RGB", (width * len(chosen), height))
    for index, image in enumerate(chosen):
        strip.paste(image, (index * width, 0))
    return strip.quantize(colors=GIF_COLOURS, method=Image.Quantize.MEDIANCUT)

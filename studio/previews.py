"""Preview sheets of a running stage: four views by colour, normal, depth, opacity and guess.

The last column is what the prior believes the view should look like (its x0 prediction), which
shows early whether prompt and prior agree. A preview draws from a generator of its own, so that
making previews does not change a run.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from renderers.cameras import Cameras, orbit_cameras
from renderers.configs import CamerasConfig, MultiViewCamerasConfig
from renderers.outputs import RenderOutput
from studio.run_folder import storage_errors, write_atomic
from studio.scene_parts import SceneRenderer

__all__ = ["preview_cameras", "preview_sheet", "save_png"]

N_VIEWS = 4
GAP = 2  # white pixels between the images
Guess = Callable[[RenderOutput, Cameras], Tensor]


def preview_cameras(config: CamerasConfig, size: int) -> Cameras:
    """Four views around the object, at the middle of the training distances, front first."""
    fovy_deg = sum(config.fovy_deg_range) / 2.0
    if isinstance(config, MultiViewCamerasConfig):
        relative = sum(config.relative_distance_range) / 2.0
        distance = relative / float(torch.tan(torch.deg2rad(torch.tensor(fovy_deg / 2.0))))
    else:
        distance = sum(config.distance_range) / 2.0
    return orbit_cameras(
        N_VIEWS, elevation_deg=15.0, distance=distance, fovy_deg=fovy_deg, height=size, width=size
    )


@torch.no_grad()
def preview_sheet(
    renderer: SceneRenderer, cameras: Cameras, guess: Guess
) -> Float[Tensor, "height width 3"]:
    """Rows are the views; columns colour, normal, depth, opacity, guess.

    Args:
        renderer: the stage's renderer.
        cameras: the views, on the renderer's device.
        guess: from renders of b views to the prior's idea of them [b, h, w, 3], at any size.
    """
    output = renderer.render(cameras, with_normals=True)
    opacity = output.opacity.expand_as(output.comp_rgb)
    normal = 0.5 + 0.5 * output.normal
    guessed = guess(output, cameras).movedim(-1, 1)
    guessed = torch.nn.functional.interpolate(
        guessed, (cameras.height, cameras.width), mode="bilinear", align_corners=False
    ).movedim(1, -1)
    columns = (
        output.comp_rgb,
        normal * opacity + 1.0 - opacity,
        _depth_image(output).expand_as(opacity),
        opacity,
        guessed,
    )
    rows = [_join([column[view] for column in columns], dim=1) for view in range(len(cameras))]
    return _join(rows, dim=0).cpu()


def _depth_image(output: RenderOutput) -> Float[Tensor, "b h w 1"]:
    """Near is dark, far is light, nothing is white; scaled over all views together."""
    hit = output.opacity > 0.5
    if not hit.any():
        return torch.ones_like(output.depth)
    distance = output.depth / output.opacity.clamp(min=1e-5)
    near, far = distance[hit].min(), distance[hit].max()
    gray = 0.1 + 0.7 * (distance - near) / (far - near).clamp(min=1e-5)
    return torch.where(hit, gray, torch.ones_like(gray))


def _join(images: list[Tensor], *, dim: int) -> Tensor:
    """Images side by side (dim 1) or below each other (dim 0) with a white gap."""
    shape = list(images[0].shape)
    shape[dim] = GAP
    gap = images[0].new_ones(shape)
    parts = [part for image in images for part in (image, gap)][:-1]
    return torch.cat(parts, dim=dim)


def save_png(
    path: Path, image: Float[Tensor, "h w 3"], settings: Mapping[str, Any] | None = None
) -> None:
    """Write an image in 0..1, whole or not at all, with its settings in the PNG's text chunks.

    ``studio`` holds them as JSON, ``parameters`` as the line that image galleries show.

    Raises:
        StorageError: the file cannot be written.
    """
    settings = dict(settings or {})
    text = PngInfo()
    text.add_itxt("studio", json.dumps(settings, ensure_ascii=False))
    line = ", ".join(f"{key}: {value}" for key, value in settings.items() if key != "prompt")
    text.add_itxt("parameters", f"{settings.get('prompt', '')}\n{line}".strip())
    pixels = (image.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).cpu().numpy()
    data = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(data, format="PNG", pnginfo=text)
    with storage_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data.getvalue())

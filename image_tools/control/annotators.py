"""Condition images for ControlNets, from photographs and from exact buffers of renderers.

Edges are Canny's (A Computational Approach to Edge Detection, 1986), step by step as in OpenCV, so
that public thresholds mean the same here. Depth, normals and regions come from what a renderer
knows:

    depth     inverse, near is bright, the background black
    normals   of the camera (+x right, +y up, +z to the viewer) as 0.5 n + 0.5; every normal faces
              the viewer, and so does the background
    regions   one colour for each id, the background black

The public ControlNets were trained on such depth and regions. Their normals (Normal-BAE, of
control_v11p_sd15_normalbae) have red to the left, which ``right=-1`` gives; pocket's have it to the
right.

All are ``[b, h, w, 3]`` in 0..1. Depth and normals are differentiable; edges and regions are not.
A ControlNet that wants BGR says so in its own settings; nothing is swapped here.

    output = renderer.render(cameras, generator=None, shading=shading)
    control = Control(controlnet, depth_of_render(output, cameras).detach(), name="depth")
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from renderers.cameras import Cameras
from renderers.errors import ShapeError, StudioError, check_shape
from renderers.outputs import RenderOutput

__all__ = [
    "axis_depth",
    "camera_normals",
    "canny_edges",
    "canny_image",
    "depth_image",
    "depth_of_render",
    "line_image",
    "normal_image",
    "normals_of_render",
    "palette",
    "segmentation_image",
]

# A ray that hit less than this has no surface whose distance could be told.
MIN_OPACITY = 1e-3
TAN_22_5 = 0.41421356237309503
FACING = (0.5, 0.5, 1.0)
# The step of hues that keeps colours of any count apart.
GOLDEN_RATIO = 0.618033988749895


def canny_image(
    images: Float[Tensor, "b h w 3"], *, low: float = 100.0, high: float = 200.0
) -> Float[Tensor, "b h w 3"]:
    """White lines on black; thresholds are for bytes, as the public ControlNets' are.

    Raises:
        ShapeError: if ``images`` is not [b, h, w, 3].
        StudioError: if the thresholds are in the wrong order.
    """
    check_shape("images", images, "B H W 3")
    pixels = images.detach().cpu().double().mul(255.0).round().clamp(0.0, 255.0).numpy()
    edges = np.stack([canny_edges(one, low=low, high=high) for one in pixels])
    return line_image(torch.from_numpy(edges)).to(images)


def canny_edges(pixels: np.ndarray, *, low: float, high: float) -> np.ndarray:
    """Edges ``[h, w]`` of an image ``[h, w, c]`` in 0..255.

    Sobel derivatives of the channel with the strongest one, absolute values added; ridges across
    one of four directions; weak ridges stay where they touch strong ones. No blur.

    Raises:
        StudioError: if the thresholds are in the wrong order.
    """
    from scipy import ndimage

    if not 0.0 <= low <= high:
        raise StudioError(f"low {low}, high {high} - expected 0 <= low <= high, in bytes.")
    values = pixels.astype(np.float64)
    # Channel by channel: scipy's own Sobel filter would smooth across the channels too.
    kernel = np.outer((1.0, 2.0, 1.0), (-1.0, 0.0, 1.0))[..., None]
    dx = ndimage.correlate(values, kernel, mode="nearest")
    dy = ndimage.correlate(values, kernel.swapaxes(0, 1), mode="nearest")
    strongest = (np.abs(dx) + np.abs(dy)).argmax(-1)[..., None]
    dx = np.take_along_axis(dx, strongest, -1)[..., 0]
    dy = np.take_along_axis(dy, strongest, -1)[..., 0]
    strength = np.abs(dx) + np.abs(dy)
    ridges = _ridges(dx, dy, strength) & (strength > low)
    parts, _ = ndimage.label(ridges, structure=np.ones((3, 3)))
    return ridges & np.isin(parts, np.unique(parts[ridges & (strength > high)]))


def _ridges(dx: np.ndarray, dy: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Pixels that are strongest across their edge; the first one wins along the axes."""
    around = np.pad(strength, 1)
    height, width = strength.shape

    def beside(row: int, col: int) -> np.ndarray:
        return around[1 + row : 1 + row + height, 1 + col : 1 + col + width]

    flat, steep = np.abs(dy) < TAN_22_5 * np.abs(dx), np.abs(dx) < TAN_22_5 * np.abs(dy)
    across = (strength > beside(0, -1)) & (strength >= beside(0, 1))
    along = (strength > beside(-1, 0)) & (strength >= beside(1, 0))
    falling = (strength > beside(-1, -1)) & (strength > beside(1, 1))
    rising = (strength > beside(-1, 1)) & (strength > beside(1, -1))
    slanted = np.where((dx < 0.0) == (dy < 0.0), falling, rising)
    return np.where(flat, across, np.where(steep, along, slanted))


def line_image(edges: Tensor) -> Float[Tensor, "b h w 3"]:
    """White where ``edges`` [b, h, w] is true, black elsewhere."""
    check_shape("edges", edges, "B H W")
    return edges.float()[..., None].expand(*edges.shape, 3)


def depth_image(
    depth: Float[Tensor, "b h w"], mask: Float[Tensor, "b h w"], *, far: float = 0.2
) -> Float[Tensor, "b h w 3"]:
    """Inverse depth, from ``far`` at the farthest point of a view to 1 at the nearest.

    Args:
        depth: distance along the viewing axis; only what the mask covers counts.
        mask: coverage, 0..1; the background is black.
        far: brightness of the farthest point, which sets it off from the background.

    Raises:
        ShapeError: if depth and mask are no two images of one size.
        StudioError: if the mask covers points at or behind the camera.
    """
    check_shape("depth", depth, "B H W")
    if mask.shape != depth.shape:
        raise ShapeError(
            f"mask has shape {tuple(mask.shape)}, depth {tuple(depth.shape)}. Make them alike."
        )
    seen = mask >= MIN_OPACITY
    if bool((depth[seen] <= 0.0).any()):
        raise StudioError(
            f"depth is {float(depth[seen].min()):.3g} where the mask covers it - expected "
            "distances above 0. Give distances along the viewing axis, and a mask of the object."
        )
    inverse = 1.0 / torch.where(seen, depth, 1.0)
    nearest = inverse.masked_fill(~seen, 0.0).amax((1, 2), keepdim=True)
    farthest = inverse.masked_fill(~seen, torch.inf).amin((1, 2), keepdim=True)
    span = nearest - farthest
    is_flat = ~(span > 0.0)  # a view of nothing too: its span is -inf
    share = (inverse - torch.where(is_flat, 0.0, farthest)) / torch.where(is_flat, 1.0, span)
    shown = torch.where(is_flat, 1.0, far + (1.0 - far) * share)
    return (torch.where(seen, shown, 0.0) * mask)[..., None].expand(*depth.shape, 3)


def normal_image(
    normals: Float[Tensor, "b h w 3"], mask: Float[Tensor, "b h w"], *, right: float = 1.0
) -> Float[Tensor, "b h w 3"]:
    """Unit normals of the camera as colours, over a background that faces the viewer.

    Args:
        normals: +x right, +y up, +z to the viewer.
        mask: coverage in 0..1.
        right: 1 where red is right, -1 where it is left.

    Raises:
        ShapeError: if normals and mask are not of one size.
    """
    check_shape("normals", normals, "B H W 3")
    if mask.shape != normals.shape[:3]:
        raise ShapeError(
            f"mask has shape {tuple(mask.shape)}, normals {tuple(normals.shape)}. Make them alike."
        )
    cover, axes = mask[..., None], normals.new_tensor([right, 1.0, 1.0])
    return cover * (0.5 * axes * normals + 0.5) + (1.0 - cover) * normals.new_tensor(FACING)


def segmentation_image(
    ids: Int[Tensor, "b h w"], colors: Float[Tensor, "n 3"] | None = None
) -> Float[Tensor, "b h w 3"]:
    """One colour for each id; id 0, the background, is black.

    Args:
        ids: regions.
        colors: of ids 1 to n in 0..1, such as those of a public palette; None for ``palette``.

    Raises:
        StudioError: if there are negative ids, or ids without a colour.
    """
    check_shape("ids", ids, "B H W")
    low, count = int(ids.min()), int(ids.max())
    colors = palette(count) if colors is None else colors
    if low < 0 or count > len(colors):
        raise StudioError(
            f"ids go from {low} to {count} - expected 0 to {len(colors)}, the number of colours."
        )
    table = torch.cat([colors.new_zeros(1, 3), colors])
    return table.to(ids.device)[ids.long()]


def palette(count: int) -> Float[Tensor, "n 3"]:
    """Colours that differ, the same ones for every count."""
    hue = (torch.arange(count, dtype=torch.float64) * GOLDEN_RATIO) % 1.0
    level = 1.0 - 0.25 * (torch.arange(count) % 3)
    offsets = torch.tensor([0.0, 4.0, 2.0], dtype=torch.float64)
    ramp = ((hue[:, None] * 6.0 + offsets) % 6.0 - 3.0).abs() - 1.0
    return (ramp.clamp(0.0, 1.0) * level[:, None]).float()


def axis_depth(output: RenderOutput, cameras: Cameras) -> Float[Tensor, "b h w"]:
    """Distance of the seen surface along the viewing axis; 0 where nothing is seen.

    Renders have distances along rays, weighted with their opacity.
    """
    opacity = output.opacity[..., 0]
    distance = output.depth[..., 0] / opacity.clamp(min=MIN_OPACITY)
    directions = cameras.rays()[1].to(distance)
    forward = -cameras.c2w[:, :3, 2].to(distance)
    cosine = torch.einsum("bhwc,bc->bhw", directions, forward)
    return torch.where(opacity >= MIN_OPACITY, distance * cosine, 0.0)


def camera_normals(normals: Float[Tensor, "b h w 3"], cameras: Cameras) -> Float[Tensor, "b h w 3"]:
    """World normals in camera axes, turned towards the viewer where they look away.

    Open meshes and densities show surfaces from behind, which a photograph does not.
    """
    check_shape("normals", normals, "B H W 3")
    away = (normals * cameras.rays()[1].to(normals)).sum(-1, keepdim=True) > 0.0
    facing = torch.where(away, -normals, normals)
    return torch.einsum("bhwi,bij->bhwj", facing, cameras.c2w[:, :3, :3].to(normals))


def depth_of_render(output: RenderOutput, cameras: Cameras) -> Float[Tensor, "b h w 3"]:
    """The depth condition of a render."""
    return depth_image(axis_depth(output, cameras), output.opacity[..., 0].clamp(0.0, 1.0))


def normals_of_render(
    output: RenderOutput, cameras: Cameras, *, right: float = 1.0
) -> Float[Tensor, "b h w 3"]:
    """The normal condition of a render, which must have been made with normals.

    Args:
        output: the render.
        cameras: its cameras.
        right: 1 where red is right, -1 where it is left.

    Raises:
        StudioError: if it was not.
    """
    if output.normal is None:
        raise StudioError(
            "The render has no normals - expected them for a normal condition. Render with "
            "normals, or use depth."
        )
    normals = camera_normals(output.normal, cameras)
    return normal_image(normals, output.opacity[..., 0].clamp(0.0, 1.0), right=right)

"""Small images of assets and of true objects from the same cameras, for the judge.

An asset is shown as the guidance saw it: unlit, over white, because light is part of its colours.
A true object is shown by the toybox's own renderer. Both are centred by their bounding box and
scaled so that the farthest vertex is at ``OBJECT_RADIUS``, as toybox objects are.

    views = render_mesh(normalized(load_asset(path)), eval_cameras())
    verdicts = load_judge()(views.rgb)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from renderers.cameras import Cameras, orbit_cameras
from renderers.errors import EmptyGeometry
from renderers.mesh import Mesh
from renderers.raster import interpolate, rasterize, to_clip
from renderers.texture import texture
from renderers.volume_renderer import VolumeRenderer
from scenes.toybox.objects import OBJECT_RADIUS, ObjectSpec, ToyObject, build_object
from scenes.toybox.render import ToyGeometry, render_rgb
from scenes.toybox.scene import ToyScene
from studio.errors import Diverged

__all__ = [
    "Views",
    "eval_cameras",
    "normalized",
    "render_field",
    "render_mesh",
    "render_toy",
]

ELEVATION_DEG = 15.0
FOVY_DEG = 40.0
DISTANCE = 2.7  # an object of OBJECT_RADIUS fills 87 % of the image's height
SUPERSAMPLE = 2


@dataclass(frozen=True)
class Views:
    """Images of one object from ``b`` cameras."""

    rgb: Float[Tensor, "b h w 3"]
    """Over white, 0..1."""
    mask: Float[Tensor, "b h w"]
    """Coverage, 0..1."""


def eval_cameras(
    n_views: int = 8, *, size: int = 64, elevation_deg: float = ELEVATION_DEG
) -> Cameras:
    """The cameras of all metrics: equally spaced, the first one in front."""
    return orbit_cameras(
        n_views,
        elevation_deg=elevation_deg,
        distance=DISTANCE,
        fovy_deg=FOVY_DEG,
        height=size,
        width=size,
    )


def normalized(mesh: Mesh, *, radius: float = OBJECT_RADIUS) -> Mesh:
    """The mesh centred by its bounding box, its farthest vertex at ``radius``.

    Raises:
        EmptyGeometry: there are no faces.
        Diverged: a vertex of a face is NaN or infinite.
    """
    if not mesh.n_faces:
        raise EmptyGeometry("The mesh has no faces - expected a surface to evaluate.")
    used = mesh.v_pos[mesh.t_pos_idx.unique()]
    wrong = int((~torch.isfinite(used)).any(1).sum())
    if wrong:
        raise Diverged(
            f"{wrong} of {len(used)} vertices of the mesh are NaN or infinite - expected numbers."
        )
    centre = (used.amin(0) + used.amax(0)) / 2
    reach = torch.linalg.vector_norm(used - centre, dim=1).max().clamp(min=1e-12)
    return replace(mesh, v_pos=(mesh.v_pos - centre) * (radius / reach))


def render_mesh(mesh: Mesh, cameras: Cameras) -> Views:
    """Unlit images of a mesh by its texture, else its vertex colours, else grey; over white."""
    s, height, width = SUPERSAMPLE, cameras.height, cameras.width
    large = cameras.resized(height * s, width * s)
    raster = rasterize(to_clip(mesh.v_pos, large.mvp()), mesh.t_pos_idx, (height * s, width * s))
    if mesh.texture is not None and mesh.v_tex is not None and mesh.t_tex_idx is not None:
        color = texture(mesh.texture, interpolate(mesh.v_tex, raster, mesh.t_tex_idx))
    elif mesh.v_rgb is not None:
        color = interpolate(mesh.v_rgb, raster, mesh.t_pos_idx)
    else:
        color = torch.full((*raster.tri_id.shape, 3), 0.5)
    over_white = color * raster.mask + (1.0 - raster.mask)
    both = torch.cat([over_white, raster.mask], -1).movedim(-1, 1)
    both = F.avg_pool2d(both, s).movedim(1, -1)
    return Views(both[..., :3].clamp(0, 1), both[..., 3])


@torch.no_grad()
def render_field(renderer: VolumeRenderer, cameras: Cameras) -> Views:
    """Images of a field over white, whatever background it was trained with."""
    output = renderer.render(cameras)
    rgb = output.over(torch.ones_like(output.comp_rgb)).comp_rgb
    return Views(rgb.clamp(0, 1), output.opacity[..., 0])


def render_toy(toy: ObjectSpec | ToyObject, cameras: Cameras) -> Views:
    """Images of a true object over white."""
    toy = build_object(toy) if isinstance(toy, ObjectSpec) else toy
    scene = ToyScene((toy,), np.zeros((1, 3)), np.ones(1))
    rgb, mask = render_rgb(ToyGeometry(scene), cameras, background=np.ones(3))
    return Views(torch.from_numpy(rgb).float(), torch.from_numpy(mask).float())

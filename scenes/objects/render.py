"""Exact images and buffers of the pack's objects, by the studio's own rasteriser.

Light is that of the toybox unless another is given, so that both worlds look alike. Images have
``supersample`` x ``supersample`` samples a pixel and a box filter; the other buffers are taken at
one sample of each pixel and are therefore exact.

    geometry = ObjectGeometry(load_object("dog"))
    rgb, mask = render_rgb(geometry, cameras, background=np.ones(3))
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from renderers.cameras import Cameras
from renderers.raster import rasterize, to_clip
from scenes.objects.mesh import ObjectMesh
from scenes.objects.sheer import BAYER, PRESENT, SheerFaces, add_sheer
from scenes.toybox.render import AMBIENT, HEAD_LIGHT, SKY_LIGHT

__all__ = [
    "Lighting",
    "ObjectBuffers",
    "ObjectGeometry",
    "Recolor",
    "render_buffers",
    "render_rgb",
]

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
SOLID = 0.98
MIN_LUMINANCE = 0.02


@dataclass(frozen=True)
class Lighting:
    """How a surface is lit; the terms add up and multiply the surface's colour."""

    ambient: float = AMBIENT
    """From everywhere."""
    head: float = HEAD_LIGHT
    """From the camera."""
    sky: float = SKY_LIGHT
    """From above."""
    key: float = 0.0
    """From ``key_direction``."""
    key_direction: tuple[float, float, float] = (0.0, 0.0, 1.0)
    """Towards the key light, unit length."""
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Colour of all light."""


@dataclass(frozen=True)
class Recolor:
    """Another colour for some materials; their light and dark stay."""

    materials: tuple[int, ...]
    """Which materials of the object."""
    rgb: tuple[float, float, float]
    """The new mean colour."""


@dataclass(frozen=True)
class ObjectBuffers:
    """What one camera sees, for ``b`` cameras of ``h x w`` pixels.

    Attributes:
        rgb: ``[b, h, w, 3]`` in 0..1, composited over the background.
        mask: ``[b, h, w]`` coverage in 0..1.
        part: ``[b, h, w]`` int, 0 = background, material k is k + 1.
        depth: ``[b, h, w]`` distance along the viewing axis, 0 on the background.
        normal: ``[b, h, w, 3]`` unit, camera space (+x right, +y up, +z towards the camera).
    """

    rgb: np.ndarray
    mask: np.ndarray
    part: np.ndarray
    depth: np.ndarray
    normal: np.ndarray


class ObjectGeometry:
    """An object prepared once and rendered from many cameras."""

    def __init__(self, mesh: ObjectMesh, recolor: Recolor | None = None) -> None:
        """Sort solid faces from those with holes.

        Args:
            mesh: what to draw.
            recolor: paint some materials.
        """
        self.mesh = mesh
        sizes = np.array([i.shape[:2] for i in mesh.images], np.int64).reshape(-1, 2)
        starts = np.cumsum(np.r_[0, sizes.prod(1)])
        pixels = [image.reshape(-1, 4) for image in mesh.images]
        texels = np.concatenate([*pixels, np.zeros((1, 4), np.uint8)])
        self._texels = texels[:, :3].astype(np.float32) / 255
        has_image = mesh.image >= 0
        self._start = np.where(has_image, starts[mesh.image], 0)
        self._height, self._width = np.where(
            has_image, np.concatenate([sizes, [(0, 0)]])[mesh.image].T, 0
        )
        holes = np.array([image[..., 3].min() < 255 for image in mesh.images] + [False])
        sheer = holes[mesh.image] | (mesh.opacity < SOLID)
        self._solid = np.nonzero(~sheer[mesh.face_material])[0]
        self._sheer = self._sheer_faces(np.nonzero(sheer[mesh.face_material])[0], texels[:, 3])
        self._tri = torch.from_numpy(np.ascontiguousarray(mesh.t_pos_idx[self._solid]))
        self._v_pos = torch.from_numpy(mesh.v_pos)
        self._paint = self._painted(recolor)

    def visible(self, cameras: Cameras, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Face id (0 = none) ``[b, h, w]`` and vertex weights ``[b, h, w, 3]`` of each pixel."""
        clip = to_clip(self._v_pos, cameras.mvp())
        raster = rasterize(clip, self._tri, (cameras.height, cameras.width))
        face = np.r_[0, self._solid + 1].astype(np.int32)[raster.tri_id.numpy()]
        bary = raster.bary.numpy()
        if len(self._sheer.face):
            add_sheer(
                face, raster.zw.numpy(), bary, pos_clip=clip.numpy(), sheer=self._sheer,
                thresholds=thresholds,
            )  # fmt: skip
        last = 1.0 - (bary[..., :1] + bary[..., 1:])
        return face, np.concatenate([bary, last], -1)

    def surface_color(self, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Unshaded RGB ``[n, 3]`` at points given by face ``[n]`` and vertex weights ``[n, 3]``."""
        mesh = self.mesh
        material = mesh.face_material[face]
        color = mesh.rgb[material]
        rows = np.nonzero(self._width[material])[0]
        if len(rows):
            uv = np.einsum("nk,nkc->nc", weights[rows], mesh.v_tex[mesh.t_tex_idx[face[rows]]])
            color[rows] = self._texture(material[rows], uv)
        if self._paint is not None:
            target, mean = self._paint
            rows = np.nonzero(mean[material])[0]
            scale = color[rows] @ LUMINANCE / mean[material[rows]]
            color[rows] = np.clip(target * scale[:, None], 0.0, 1.0)
        return color

    def surface_normal(self, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Unit world normals ``[n, 3]`` at the same points."""
        normal = np.einsum("nk,nkc->nc", weights, self.mesh.normals[face])
        return normal / np.maximum(_lengths(normal), 1e-12)

    def position(self, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """World positions ``[n, 3]`` of the same points."""
        return np.einsum("nk,nkc->nc", weights, self.mesh.v_pos[self.mesh.t_pos_idx[face]])

    def _texture(self, material: np.ndarray, uv: np.ndarray) -> np.ndarray:
        """Bilinear lookup ``[n, 3]`` in the image of each material; coordinates repeat."""
        size = np.stack([self._width[material], self._height[material]], 1)
        at = uv * size - 0.5
        corner = np.floor(at)
        part = (at - corner).astype(np.float32)
        corner = corner.astype(np.int64)
        out = np.zeros((len(uv), 3), np.float32)
        for dx in (0, 1):
            for dy in (0, 1):
                x, y = ((corner + np.array([dx, dy])) % size).T
                weight = np.abs(1 - dx - part[:, 0]) * np.abs(1 - dy - part[:, 1])
                texel = self._texels[self._start[material] + y * size[:, 0] + x]
                out += weight[:, None] * texel
        return out

    def _sheer_faces(self, faces: np.ndarray, alpha: np.ndarray) -> SheerFaces:
        mesh, material = self.mesh, self.mesh.face_material[faces]
        uv = np.zeros((len(faces), 3, 2), np.float32)
        textured = self._width[material] > 0
        uv[textured] = mesh.v_tex[mesh.t_tex_idx[faces[textured]]]
        return SheerFaces(
            face=faces,
            tri=mesh.t_pos_idx[faces],
            uv=uv,
            opacity=mesh.opacity[material],
            start=self._start[material],
            width=self._width[material],
            height=self._height[material],
            alpha=np.ascontiguousarray(alpha),
        )

    def _painted(self, recolor: Recolor | None) -> tuple[np.ndarray, np.ndarray] | None:
        """The new colour, and the old mean luminance of each material (0 = not painted)."""
        if recolor is None:
            return None
        mean = np.zeros(len(self.mesh.rgb), np.float32)
        for k in recolor.materials:
            image = self.mesh.image[k]
            color = self.mesh.rgb[k]
            if image >= 0:
                texels = self.mesh.images[image].reshape(-1, 4).astype(np.float32) / 255
                color = np.average(texels[:, :3], 0, texels[:, 3] + 1e-6)
            mean[k] = max(float(color @ LUMINANCE), MIN_LUMINANCE)
        return np.array(recolor.rgb, np.float32), mean


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """Lengths ``[n, 1]`` of ``[n, 3]``; numpy's own are slow along so short an axis."""
    return np.sqrt(np.einsum("nc,nc->n", vectors, vectors))[:, None]


def _shade(
    geometry: ObjectGeometry,
    face: np.ndarray,
    weights: np.ndarray,
    eye: np.ndarray,
    light: Lighting,
) -> np.ndarray:
    normal = geometry.surface_normal(face, weights)
    to_eye = eye - geometry.position(face, weights)
    to_eye /= _lengths(to_eye)
    facing = np.einsum("nc,nc->n", normal, to_eye)
    # Thin parts show their back: light what the camera sees.
    normal = np.where(facing[:, None] < 0, -normal, normal)
    amount = light.ambient + light.head * np.abs(facing) + light.sky * (0.5 + 0.5 * normal[:, 2])
    if light.key > 0:
        amount += light.key * np.maximum(normal @ np.array(light.key_direction, np.float32), 0.0)
    color = geometry.surface_color(face, weights) * amount[:, None]
    return color * np.array(light.tint, np.float32)


def _box_filter(samples: np.ndarray, s: int) -> np.ndarray:
    """Means ``[b, h, w, c]`` of the ``s x s`` samples of each pixel."""
    b, height, width, c = samples.shape
    # Rows first: long contiguous sums are several times as fast as one mean over two axes.
    rows = samples.reshape(b, height // s, s, width * c).sum(2)
    return rows.reshape(b, height // s, width // s, s, c).sum(3) / np.float32(s * s)


def render_rgb(
    geometry: ObjectGeometry,
    cameras: Cameras,
    *,
    background: np.ndarray,
    supersample: int = 4,
    light: Lighting | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Images ``[b, h, w, 3]`` and masks ``[b, h, w]``, float32 in 0..1.

    Args:
        geometry: what to draw.
        cameras: ``b`` cameras.
        background: anything that broadcasts to ``[b, h, w, 3]``.
        supersample: samples along each axis of a pixel; multiples of 4 show glass best.
        light: other light than the toybox's.
    """
    s, light = supersample, light or Lighting()
    b, h, w = len(cameras), cameras.height, cameras.width
    ids, weights = geometry.visible(cameras.resized(h * s, w * s), BAYER)
    rgb = np.zeros((b, h * s, w * s, 3), dtype=np.float32)
    eyes = cameras.position.numpy()
    for k in range(b):
        hit = ids[k] > 0
        rgb[k][hit] = _shade(geometry, ids[k][hit] - 1, weights[k][hit], eyes[k], light)
    mask = _box_filter((ids > 0).astype(np.float32)[..., None], s)[..., 0]
    rgb = _box_filter(np.minimum(rgb, 1.0), s)
    rgb += (1.0 - mask)[..., None] * np.asarray(background, dtype=np.float32)
    return np.clip(rgb, 0.0, 1.0), mask


def render_buffers(
    geometry: ObjectGeometry,
    cameras: Cameras,
    *,
    background: np.ndarray,
    supersample: int = 4,
    light: Lighting | None = None,
) -> ObjectBuffers:
    """All buffers of the object from ``cameras``; see :class:`ObjectBuffers`."""
    rgb, mask = render_rgb(
        geometry, cameras, background=background, supersample=supersample, light=light
    )
    ids, weights = geometry.visible(cameras, PRESENT)
    part = np.zeros(ids.shape, dtype=np.int64)
    depth = np.zeros(ids.shape, dtype=np.float32)
    normal = np.zeros((*ids.shape, 3), dtype=np.float32)
    c2w = cameras.c2w.numpy()
    for k in range(len(ids)):
        hit = ids[k] > 0
        face, at = ids[k][hit] - 1, weights[k][hit]
        part[k][hit] = geometry.mesh.face_material[face] + 1
        offset = geometry.position(face, at) - c2w[k, :3, 3]
        depth[k][hit] = -offset @ c2w[k, :3, 2]
        world = geometry.surface_normal(face, at)
        away = (world * offset).sum(1, keepdims=True) > 0
        normal[k][hit] = np.where(away, -world, world) @ c2w[k, :3, :3]
    return ObjectBuffers(rgb=rgb, mask=mask, part=part, depth=depth, normal=normal)

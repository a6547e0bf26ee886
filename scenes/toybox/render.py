"""Exact images and buffers of toybox scenes, by the studio's own rasteriser.

Shading is simple on purpose: a mild head light and a sky term, so that shape can be read from an
image while colours stay close to their words. Images are supersampled and box filtered; the other
buffers are taken at one sample of each pixel and are therefore exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from renderers.cameras import Cameras
from renderers.raster import rasterize
from scenes.toybox.objects import pattern_mask
from scenes.toybox.scene import ToyScene

__all__ = ["ToyBuffers", "ToyGeometry", "render_buffers", "render_rgb"]

AMBIENT, HEAD_LIGHT, SKY_LIGHT = 0.44, 0.36, 0.20
EDGE_DEPTH_STEP = 0.08
EDGE_NORMAL_COS = 0.75


@dataclass(frozen=True)
class ToyBuffers:
    """What one camera sees, for ``b`` cameras of ``h x w`` pixels.

    Attributes:
        rgb: ``[b, h, w, 3]`` in 0..1, composited over the background.
        mask: ``[b, h, w]`` coverage in 0..1.
        instance: ``[b, h, w]`` int, 0 = background, object k is k + 1.
        depth: ``[b, h, w]`` distance along the viewing axis, 0 on the background.
        normal: ``[b, h, w, 3]`` unit, camera space (+x right, +y up, +z towards the camera).
        edges: ``[b, h, w]`` bool, outlines and creases.
        keypoints: per camera, ``{"k/name": (x, y, visible)}`` in pixels.
    """

    rgb: np.ndarray
    mask: np.ndarray
    instance: np.ndarray
    depth: np.ndarray
    normal: np.ndarray
    edges: np.ndarray
    keypoints: list[dict[str, tuple[float, float, bool]]]


class ToyGeometry:
    """A scene flattened to one triangle soup, built once and rendered from many cameras."""

    def __init__(self, scene: ToyScene) -> None:
        """Concatenate the placed objects of ``scene``."""
        self.scene = scene
        placed = zip(scene.objects, scene.offsets, scene.scales)
        self.vertices = np.concatenate([o.vertices * s + t for o, t, s in placed])
        self.local = np.concatenate([o.vertices for o in scene.objects])
        self.normals = np.concatenate([o.normals for o in scene.objects])
        starts = np.cumsum([0] + [len(o.vertices) for o in scene.objects[:-1]])
        self.faces = np.concatenate([o.faces + s for o, s in zip(scene.objects, starts)])
        counts = [len(o.faces) for o in scene.objects]
        self.instance = np.repeat(np.arange(1, len(counts) + 1), counts)
        self.color = np.concatenate([o.face_color for o in scene.objects])
        self.second = np.concatenate([o.face_second for o in scene.objects])
        self.patterned = np.concatenate([o.face_patterned for o in scene.objects])
        self._tri = torch.from_numpy(np.ascontiguousarray(self.faces))
        self._homogeneous = torch.from_numpy(
            np.concatenate([self.vertices, np.ones((len(self.vertices), 1))], 1)
        ).float()

    def visible(self, cameras: Cameras) -> tuple[np.ndarray, np.ndarray]:
        """Face id (0 = none) ``[b, h, w]`` and vertex weights ``[b, h, w, 3]`` of each pixel."""
        clip = self._homogeneous @ cameras.mvp().transpose(-1, -2)
        raster = rasterize(clip, self._tri, (cameras.height, cameras.width))
        bary = raster.bary.numpy()
        weights = np.concatenate([bary, 1.0 - bary.sum(-1, keepdims=True)], -1)
        return raster.tri_id.numpy(), weights

    def surface_color(self, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Unshaded RGB ``[n, 3]`` at points given by face ``[n]`` and vertex weights ``[n, 3]``."""
        color = self.color[face].copy()
        where = np.nonzero(self.patterned[face])[0]
        corners = self.faces[face[where]]
        position = np.einsum("nk,nkc->nc", weights[where], self.local[corners])
        instance = self.instance[face[where]]
        for k, obj in enumerate(self.scene.objects, start=1):
            of_object = instance == k
            second = where[of_object][pattern_mask(obj.pattern, position[of_object])]
            color[second] = self.second[face[second]]
        return color

    def surface_normal(self, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Unit world normals ``[n, 3]`` at the same points."""
        normal = np.einsum("nk,nkc->nc", weights, self.normals[self.faces[face]])
        return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)


def _shade(geometry: ToyGeometry, face: np.ndarray, weights: np.ndarray, eye: np.ndarray):
    normal = geometry.surface_normal(face, weights)
    position = np.einsum("nk,nkc->nc", weights, geometry.vertices[geometry.faces[face]])
    to_eye = eye - position
    to_eye /= np.linalg.norm(to_eye, axis=1, keepdims=True)
    facing = np.abs((normal * to_eye).sum(1))
    light = AMBIENT + HEAD_LIGHT * facing + SKY_LIGHT * (0.5 + 0.5 * normal[:, 2])
    return geometry.surface_color(face, weights) * light[:, None], normal


def render_rgb(
    geometry: ToyGeometry,
    cameras: Cameras,
    *,
    background: np.ndarray,
    supersample: int = 2,
) -> tuple[np.ndarray, np.ndarray]:
    """Images ``[b, h, w, 3]`` and masks ``[b, h, w]``, float32 in 0..1.

    Args:
        geometry: what to draw.
        cameras: ``b`` cameras.
        background: anything that broadcasts to ``[b, h, w, 3]``.
        supersample: samples along each axis of a pixel.
    """
    s = supersample
    b, h, w = len(cameras), cameras.height, cameras.width
    ids, weights = geometry.visible(cameras.resized(h * s, w * s))
    rgb = np.zeros((b, h * s, w * s, 3), dtype=np.float32)
    eyes = cameras.c2w[:, :3, 3].numpy().astype(np.float64)
    for k in range(b):
        hit = ids[k] > 0
        rgb[k][hit] = _shade(geometry, ids[k][hit] - 1, weights[k][hit], eyes[k])[0]
    mask = (ids > 0).reshape(b, h, s, w, s).mean((2, 4), dtype=np.float32)
    rgb = rgb.reshape(b, h, s, w, s, 3).mean((2, 4))
    rgb += (1.0 - mask)[..., None] * np.asarray(background, dtype=np.float32)
    return np.clip(rgb, 0.0, 1.0), mask


def _edges(instance: np.ndarray, depth: np.ndarray, normal: np.ndarray) -> np.ndarray:
    edges = np.zeros(instance.shape, dtype=bool)
    for axis in (1, 2):
        near = np.take(instance, range(instance.shape[axis] - 1), axis)
        far = np.take(instance, range(1, instance.shape[axis]), axis)
        n = instance.shape[axis]
        d0, d1 = np.take(depth, range(n - 1), axis), np.take(depth, range(1, n), axis)
        n0, n1 = np.take(normal, range(n - 1), axis), np.take(normal, range(1, n), axis)
        crease = ((n0 * n1).sum(-1) < EDGE_NORMAL_COS) | (np.abs(d0 - d1) > EDGE_DEPTH_STEP)
        jump = (near != far) | (crease & (near > 0))
        target = edges[:, : n - 1] if axis == 1 else edges[:, :, : n - 1]
        target |= jump
    return edges


def _keypoints(
    geometry: ToyGeometry, cameras: Cameras, depth: np.ndarray
) -> list[dict[str, tuple[float, float, bool]]]:
    scene = geometry.scene
    names, points = [], []
    for k, (obj, offset, scale) in enumerate(zip(scene.objects, scene.offsets, scene.scales)):
        for name, point in obj.keypoints.items():
            names.append(f"{k}/{name}")
            points.append(point * scale + offset)
    homogeneous = np.concatenate([np.stack(points), np.ones((len(points), 1))], 1)
    clip = homogeneous @ cameras.mvp().numpy().astype(np.float64).transpose(0, 2, 1)
    h, w = cameras.height, cameras.width
    result = []
    for k in range(len(cameras)):
        xy = (clip[k, :, :2] / clip[k, :, 3:] + 1) / 2 * (w, h)
        found = {}
        for name, (x, y), distance in zip(names, xy, clip[k, :, 3]):
            col, row = int(np.clip(x, 0, w - 1)), int(np.clip(y, 0, h - 1))
            inside = 0 <= x < w and 0 <= y < h
            # A part's centre lies below its own surface, by at most about half a part.
            visible = inside and 0 < depth[k, row, col] > distance - 0.45
            found[name] = (float(x), float(y), bool(visible))
        result.append(found)
    return result


def render_buffers(
    geometry: ToyGeometry, cameras: Cameras, *, background: np.ndarray, supersample: int = 2
) -> ToyBuffers:
    """All buffers of the scene from ``cameras``; see :class:`ToyBuffers`."""
    rgb, mask = render_rgb(geometry, cameras, background=background, supersample=supersample)
    ids, weights = geometry.visible(cameras)
    shape = ids.shape
    instance = np.zeros(shape, dtype=np.int64)
    depth = np.zeros(shape, dtype=np.float32)
    normal = np.zeros((*shape, 3), dtype=np.float32)
    c2w = cameras.c2w.numpy().astype(np.float64)
    for k in range(shape[0]):
        hit = ids[k] > 0
        face, at = ids[k][hit] - 1, weights[k][hit]
        instance[k][hit] = geometry.instance[face]
        position = np.einsum("nk,nkc->nc", at, geometry.vertices[geometry.faces[face]])
        depth[k][hit] = -(position - c2w[k, :3, 3]) @ c2w[k, :3, 2]
        camera_normal = geometry.surface_normal(face, at) @ c2w[k, :3, :3]
        # Parts interpenetrate and thin parts show their back: orient towards the camera.
        camera_normal *= np.where(camera_normal[:, 2:] < 0, -1.0, 1.0)
        normal[k][hit] = camera_normal
    return ToyBuffers(
        rgb=rgb,
        mask=mask,
        instance=instance,
        depth=depth,
        normal=normal,
        edges=_edges(instance, depth, normal),
        keypoints=_keypoints(geometry, cameras, depth),
    )

"""Images and exact buffers of dressed people.

Images are supersampled and box filtered; the other buffers are taken at pixel centres and are
therefore exact. The body under the clothes is traced as well, so that body parts tell nothing of
the garment.

    scene = Scene.build(people, outfit)
    buffers = render_buffers(scene, cameras)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from renderers.cameras import Cameras
from scenes.wardrobe.body import PARTS, Frame, body_cones, pose
from scenes.wardrobe.cones import Cones, cat_cones, local_points
from scenes.wardrobe.labels import BODY_25, CLOTHES, DENSEPOSE, TORSO_PARTS, atr_of, lip_of
from scenes.wardrobe.people import People
from scenes.wardrobe.shading import Surface, shade
from scenes.wardrobe.trace import Pairs, nearest, project, trace
from scenes.wardrobe.worn import Outfit, Worn, dress

__all__ = ["Buffers", "Scene", "cloth_slots", "render_buffers", "render_rgb"]


@dataclass(frozen=True)
class Scene:
    """Dressed people, ready to be seen; scene k belongs to camera k."""

    people: People
    outfit: Outfit
    frame: Frame
    worn: Worn
    cones: Cones
    """Garments first, then body."""

    @classmethod
    def build(cls, people: People, outfit: Outfit) -> Scene:
        """Pose and dress people."""
        frame = pose(people)
        worn = dress(people, frame, outfit)
        return cls(people, outfit, frame, worn, cat_cones([worn.cones, body_cones(people, frame)]))

    def visible(self, cameras: Cameras) -> Pairs:
        """All hits of pixel centres, without those in necklines."""
        pairs = trace(self.cones, cameras)
        of_cloth = (pairs.cone % len(self.cones)) < len(self.worn.panel)
        index = of_cloth.nonzero()[:, 0]
        some = pairs.only(of_cloth)
        cut = self.worn.is_cut_out(self.worn_index(some.cone), some.points())
        kept = torch.ones_like(of_cloth)
        kept[index[cut]] = False
        return pairs.only(kept)

    def worn_index(self, cone: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Number among the garments' cones of a cone of a garment."""
        return cone // len(self.cones) * len(self.worn.panel) + cone % len(self.cones)

    def surface(self, cone: Int[Tensor, " n"], points: Float[Tensor, "n 3"]) -> Surface:
        """What is at points of cones."""
        column = cone % len(self.cones)
        return Surface(self.people, self.frame, self.worn, self.cones, cone, column, points)


@dataclass(frozen=True)
class Buffers:
    """What cameras see of ``b`` people."""

    rgb: Float[Tensor, "b h w 3"]
    """In 0..1."""
    alpha: Float[Tensor, "b h w"]
    """Coverage by the person."""
    atr: Int[Tensor, "b h w"]
    lip: Int[Tensor, "b h w"]
    """Classes of scenes/wardrobe/labels.py."""
    cloth: Int[Tensor, "b h w"]
    """0 none, 1 the top or dress, 2 the bottom."""
    densepose: Int[Tensor, "b h w"]
    """Part of the body under the clothes, 0 for background and hair."""
    uv: Float[Tensor, "b h w 2"]
    """Place on that part, along and around, in 0..1."""
    flat: Float[Tensor, "b h w 2"]
    """Flat point of the garment shown, metres; nan elsewhere."""
    is_front: Bool[Tensor, "b h w"]
    """Whether the garment's front is shown."""
    keypoints: Float[Tensor, "b 25 3"]
    """BODY_25 in pixels (column, row), and 1 where inside of the image."""


def render_rgb(
    scene: Scene, cameras: Cameras, *, supersample: int = 2
) -> tuple[Float[Tensor, "b h w 3"], Float[Tensor, "b h w"]]:
    """Images and coverage."""
    s, b, h, w = supersample, len(cameras), cameras.height, cameras.width
    fine = cameras.resized(h * s, w * s)
    pairs = scene.visible(fine)
    depth, cone = nearest(pairs)
    hit = (cone >= 0).nonzero()[:, 0]
    points = pairs.at(hit, depth[hit])
    image = _backdrop(scene.people, h * s, w * s).reshape(-1, 3)
    image[hit] = shade(scene.surface(cone[hit], points), depth.reshape(b, h * s, w * s), hit)
    covered = (cone >= 0).to(image).reshape(b, h, s, w, s).mean(dim=(2, 4))
    return image.reshape(b, h, s, w, s, 3).mean(dim=(2, 4)).clamp(0.0, 1.0), covered


def render_buffers(scene: Scene, cameras: Cameras, *, supersample: int = 2) -> Buffers:
    """Images with all that is known of their pixels."""
    rgb, alpha = render_rgb(scene, cameras, supersample=supersample)
    shape, device = alpha.shape, alpha.device
    pairs = scene.visible(cameras)
    depth, cone = nearest(pairs)
    clothes = len(scene.worn.panel)
    label = _labels(scene, cone)
    tables = _class_tables(device)
    is_body = torch.arange(scene.cones.length.numel(), device=device) % len(scene.cones)
    body_depth, body = nearest(pairs, is_body >= clothes)
    part, uv = _body_parts(scene, pairs, body_depth, body)
    is_cloth = (cone >= 0) & (cone % len(scene.cones) < clothes)
    index = is_cloth.nonzero()[:, 0]
    points = pairs.at(index, depth[index])
    worn = scene.worn_index(cone[index])
    flat = torch.full((len(cone), 2), torch.nan, device=device)
    flat[index], front = scene.worn.flat_points(worn, points)
    is_front = torch.zeros_like(is_cloth)
    is_front[index] = front
    return Buffers(
        *(rgb, alpha, tables[0][label].reshape(shape), tables[1][label].reshape(shape)),
        *(_slots(scene, cone).reshape(shape), part.reshape(shape), uv.reshape(*shape, 2)),
        *(flat.reshape(*shape, 2), is_front.reshape(shape)),
        keypoints=_keypoints(scene.frame, cameras),
    )


def cloth_slots(scene: Scene, cameras: Cameras) -> Int[Tensor, "b h w"]:
    """Which garment each pixel's centre shows: 0 none, 1 the top or dress, 2 the bottom."""
    _, cone = nearest(scene.visible(cameras))
    return _slots(scene, cone).reshape(len(cameras), cameras.height, cameras.width)


def _slots(scene: Scene, cone: Int[Tensor, " rays"]) -> Int[Tensor, " rays"]:
    is_cloth = (cone >= 0) & (cone % len(scene.cones) < len(scene.worn.panel))
    worn = scene.worn_index(torch.where(is_cloth, cone, 0))
    slot = 1 + scene.worn.row.flatten()[worn] // len(scene.people)
    return torch.where(is_cloth, slot, 0)


def _backdrop(people: People, height: int, width: int) -> Float[Tensor, "b h w 3"]:
    top, low = people.backdrop[:, 0], people.backdrop[:, 1]
    share = torch.linspace(0.0, 1.0, height, device=top.device)[None, :, None]
    column = torch.lerp(top[:, None], low[:, None], share)
    return column[:, :, None].expand(-1, -1, width, -1).contiguous()


def _labels(scene: Scene, cone: Tensor) -> Tensor:
    """Row of the class tables: background, kinds of clothes, parts of the body."""
    clothes = len(scene.worn.panel)
    column = cone % len(scene.cones)
    is_cloth = (cone >= 0) & (column < clothes)
    row = scene.worn.row.flatten()[scene.worn_index(torch.where(is_cloth, cone, 0))]
    garments = scene.worn.garments
    # In the order of CLOTHES: a top, a dress, trousers, a skirt.
    kind = torch.where(garments.category == 0, 0, torch.where(garments.category == 2, 1, 2))
    kind = torch.where((garments.category == 1) & garments.skirt, 3, kind)
    body = 1 + len(CLOTHES) + column - clothes
    return torch.where(cone < 0, 0, torch.where(is_cloth, 1 + kind[row], body))


def _class_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    rows = ("background", *CLOTHES, *PARTS)
    tables = ([atr_of(row) for row in rows], [lip_of(row) for row in rows])
    return tuple(torch.tensor(table, device=device) for table in tables)


def _body_parts(
    scene: Scene, pairs: Pairs, depth: Tensor, cone: Tensor
) -> tuple[Int[Tensor, " rays"], Float[Tensor, "rays 2"]]:
    """DensePose ids and coordinates of the bare body."""
    clothes, device = len(scene.worn.panel), cone.device
    ids = torch.tensor([_densepose_of(part) for part in PARTS], device=device)
    index = (cone >= 0).nonzero()[:, 0]
    column = cone[index] % len(scene.cones) - clothes
    points = pairs.at(index, depth[index])
    person = cone[index] // len(scene.cones)
    local = local_points(scene.cones.to_local, cone[index], points)
    length = scene.cones.length.flatten()[cone[index]]
    r = scene.cones.radii.flatten(0, 1)[cone[index]]
    along = (local[2] + r[:, 0]) / (length + r.sum(-1))
    around = torch.atan2(local[1], local[0]) / (2.0 * torch.pi) + 0.5
    names = [part in TORSO_PARTS for part in PARTS]
    is_torso = torch.tensor(names, device=device)[column]
    rows = torch.cat([scene.frame.torso, scene.frame.head], dim=1)
    origin = scene.frame.joints["root"][person]
    upper = (rows[person, :3] @ (points - origin)[:, :, None])[:, :, 0]
    size = scene.people.stature[person]
    along = torch.where(is_torso, (upper[:, 2] / size + 0.16) / 0.68, along)
    around = torch.where(is_torso, torch.atan2(upper[:, 1], upper[:, 0]) / 6.2832 + 0.5, around)
    skull = points - scene.frame.joints["skull"][person]
    is_left = (rows[person, 4] * skull).sum(-1) >= 0.0
    is_head = ids[column, 0] == DENSEPOSE["head"][0]
    second = torch.where(is_head, is_left, torch.where(is_torso, upper[:, 0], local[0]) >= 0.0)
    part = torch.zeros_like(cone)
    part[index] = ids[column].gather(1, second.long()[:, None])[:, 0]
    uv = torch.zeros(len(cone), 2, device=device)
    shown = torch.stack([along, around], dim=-1).clamp(0.0, 1.0)
    uv[index] = torch.where((part[index] > 0)[:, None], shown, 0.0)
    return part, uv


def _densepose_of(part: str) -> tuple[int, int]:
    if part in TORSO_PARTS:
        return DENSEPOSE["torso"]
    if part.startswith("hair"):
        return (0, 0)
    return DENSEPOSE.get(part, DENSEPOSE["head"])


def _keypoints(frame: Frame, cameras: Cameras) -> Float[Tensor, "b 25 3"]:
    points = torch.stack([frame.joints[name] for name in BODY_25], dim=1)
    pixel, _ = project(cameras, points)
    size = torch.tensor([cameras.width, cameras.height], device=pixel.device)
    inside = ((pixel >= 0.0) & (pixel < size)).all(dim=-1, keepdim=True)
    return torch.cat([pixel, inside.to(pixel)], dim=-1)

"""Rounded cones against their definition: the hull of spheres that slide and grow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from renderers.cameras import orbit_cameras
from scenes.wardrobe.cones import Cones, Limb, cat_cones, cone_normals, ellipsoid, hit_cones
from scenes.wardrobe.trace import nearest, trace


def limb(r0: float, r1: float, **options) -> Cones:
    """A cone across the origin, flattened to 0.7 towards +x."""
    start, end = torch.tensor([[0.0, -0.2, -0.4]]), torch.tensor([[0.1, 0.1, 0.5]])
    front = torch.tensor([[1.0, 0.0, 0.0]])
    radii = torch.tensor([r0]), torch.tensor([r1])
    return Limb(start, end, *radii, front, torch.tensor([0.7])).cone(**options)


def depth_inside(cones: Cones, points: Tensor) -> Tensor:
    """How far points lie within the spheres between both ends, local units; below 0 outside."""
    matrix = cones.to_local[0, 0]
    local = points @ matrix[:, :3].t() + matrix[:, 3]
    share = torch.linspace(0.0, 1.0, 401)
    centers = share[:, None] * torch.tensor([0.0, 0.0, 1.0]) * cones.length[0, 0]
    radii = torch.lerp(cones.radii[0, 0, 0], cones.radii[0, 0, 1], share)
    return (radii - torch.cdist(local, centers)).amax(dim=1)


def rays(count: int) -> tuple[Tensor, Tensor]:
    """One origin, and directions around the cone."""
    generator = torch.Generator().manual_seed(0)
    origin = torch.tensor([[3.0, 0.4, 0.6]])
    targets = 0.4 * torch.randn(count, 3, generator=generator)
    return origin, torch.nn.functional.normalize(targets - origin, dim=-1)


@pytest.mark.parametrize(("r0", "r1"), [(0.3, 0.1), (0.15, 0.35), (0.2, 0.2)])
def test_rays_enter_where_the_spheres_begin(r0: float, r1: float) -> None:
    cones, (origin, d) = limb(r0, r1), rays(400)
    t = hit_cones(cones, torch.zeros(400, dtype=torch.long), origin, d.t().contiguous())
    hits = torch.isfinite(t)
    assert 100 < int(hits.sum()) < 350
    surface = origin + t[hits, None] * d[hits]
    assert depth_inside(cones, surface).abs().max() < 2e-4
    along = torch.linspace(0.6, 0.99, 20)
    before = origin + (t[hits, None] * along)[..., None] * d[hits][:, None]
    assert depth_inside(cones, before.reshape(-1, 3)).max() < 2e-4
    path = origin + torch.linspace(2.0, 4.5, 60)[:, None, None] * d[~hits]
    assert depth_inside(cones, path.reshape(-1, 3)).max() < 2e-3


@pytest.mark.parametrize(("r0", "r1"), [(0.3, 0.1), (0.2, 0.2)])
def test_normals_lead_out_at_right_angles(r0: float, r1: float) -> None:
    cones, (origin, d) = limb(r0, r1), rays(200)
    index = torch.zeros(200, dtype=torch.long)
    t = hit_cones(cones, index, origin, d.t().contiguous())
    hits = torch.isfinite(t)
    surface = origin + t[hits, None] * d[hits]
    normals = cone_normals(cones, index[: len(surface)], surface)
    assert torch.allclose(normals.norm(dim=-1), torch.ones(len(surface)), atol=1e-5)
    slopes = []
    for axis in torch.eye(3):
        ahead, behind = (depth_inside(cones, surface + e * axis) for e in (1e-2, -1e-2))
        slopes.append(behind - ahead)
    numeric = torch.nn.functional.normalize(torch.stack(slopes, dim=-1), dim=-1)
    assert (normals * numeric).sum(dim=-1).min() > 0.99


def test_an_ellipsoid_is_hit_where_its_equation_says() -> None:
    axes = torch.eye(3)[None]
    cones = ellipsoid(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[0.5, 0.3, 0.2]]), axes)
    origin, d = torch.tensor([[2.0, 0.0, 0.1]]), torch.tensor([[-1.0], [0.0], [0.0]])
    t = hit_cones(cones, torch.zeros(1, dtype=torch.long), origin, d)
    assert float(t) == pytest.approx(2.0 - 0.5 * math.sqrt(0.75), abs=1e-5)


def test_a_slab_takes_hits_away() -> None:
    cut = limb(0.3, 0.1, slab=(0.0, 0.0, 1.0, -9.0, 0.4))
    origin, d = rays(400)
    index, d = torch.zeros(400, dtype=torch.long), d.t().contiguous()
    whole, some = (hit_cones(cones, index, origin, d) for cones in (limb(0.3, 0.1), cut))
    kept = torch.isfinite(some)
    assert torch.equal(some[kept], whole[kept])
    matrix = cut.to_local[0, 0]
    height = ((origin + whole[:, None] * d.t()) @ matrix[:, :3].t() + matrix[:, 3])[:, 2]
    assert torch.equal(kept, torch.isfinite(whole) & (height <= 0.4))


def test_boxes_leave_no_pixel_out() -> None:
    """All pixels with all cones give the same picture."""
    cones = cat_cones([limb(0.3, 0.1), limb(0.05, 0.25)])
    cameras = orbit_cameras(1, elevation_deg=20.0, distance=3.0, fovy_deg=40.0, height=40, width=30)
    depth, cone = nearest(trace(cones, cameras))
    d = cameras.rays()[1].reshape(-1, 3).t().contiguous()
    index = torch.zeros(d.shape[1], dtype=torch.long)
    both = torch.stack([hit_cones(cones, index + k, cameras.position, d) for k in (0, 1)])
    wanted, first = both.min(dim=0)
    assert torch.equal(depth, wanted)
    assert torch.equal(cone, torch.where(torch.isfinite(wanted), first, -1))


def test_cones_that_are_not_there_are_not_seen() -> None:
    cameras = orbit_cameras(1, elevation_deg=0.0, distance=3.0, fovy_deg=40.0, height=16, width=12)
    depth, cone = nearest(trace(limb(0.3, 0.1, active=torch.tensor([False])), cameras))
    assert bool(torch.isinf(depth).all())
    assert bool((cone == -1).all())

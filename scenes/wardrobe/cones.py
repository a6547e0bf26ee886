"""Rounded cones: the one primitive of which people and clothes are made, with closed-form ray hits.

A rounded cone is the convex hull of two spheres on the local z axis, of radius r0 at 0 and r1 at h.
An affine map to the local frame makes ellipsoids (h = 0) and flattened limbs of it. With
``sin a = (r0 - r1) / h`` its side is ``rho = (r0 - z sin a) / cos a`` for
``r0 sin a <= z <= h + r1 sin a``, and the spheres close it. A slab ``low <= n p <= high`` in local
coordinates cuts away what a garment or hair leaves bare: a hit outside of it does not count.

All tensors are ``[b, p, ...]``: p cones of each of b scenes. Cones that are not active are not
there. Only entries of rays count, so cut cones are to be looked at from above their rim.

    t = hit_cones(cones, cone, origins, rays_d)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = [
    "NO_CUT",
    "Cones",
    "Limb",
    "cat_cones",
    "cone_normals",
    "ellipsoid",
    "hit_cones",
    "local_points",
]

NO_CUT = (0.0, 0.0, 0.0, -1.0, 1.0)
"""A slab that everything lies in."""


@dataclass(frozen=True)
class Cones:
    """Rounded cones of ``b`` scenes."""

    to_local: Float[Tensor, "b p 3 4"]
    """World to local coordinates."""
    length: Float[Tensor, "b p"]
    """Distance h of the two spheres, local units."""
    radii: Float[Tensor, "b p 2"]
    """r0 and r1, local units; they differ by less than h, or are equal where h is 0."""
    slab: Float[Tensor, "b p 5"]
    """Normal, low and high of what is kept, local units."""
    active: Bool[Tensor, "b p"]
    bounds: Float[Tensor, "b p 2 4"]
    """Two world spheres (centre, radius) whose hull holds the cone."""

    def __len__(self) -> int:
        """Number of cones of each scene."""
        return self.length.shape[1]


def cat_cones(parts: Sequence[Cones]) -> Cones:
    """All cones of several groups, in order."""
    return Cones(
        **{f.name: torch.cat([getattr(p, f.name) for p in parts], 1) for f in fields(Cones)}
    )


@dataclass(frozen=True)
class Limb:
    """A cone given by the centres of its spheres, to be drawn as it is or as a garment over it."""

    start: Float[Tensor, "b 3"]
    end: Float[Tensor, "b 3"]
    r0: Float[Tensor, " b"]
    r1: Float[Tensor, " b"]
    """Across, where the cone is flattened."""
    front: Float[Tensor, "b 3"]
    """Direction that local +x is turned to, as far as the axis allows."""
    squash: Float[Tensor, " b"]
    """Extent along local x as a share of that along y."""

    def inflated(self, by: Float[Tensor, " b"]) -> Limb:
        """The same limb, thicker."""
        return replace(self, r0=self.r0 + by, r1=self.r1 + by)

    def axes(self) -> Float[Tensor, "b 3 3"]:
        """Unit axes of the local frame as rows."""
        z = F.normalize(self.end - self.start, dim=-1)
        x = self.front - (self.front * z).sum(-1, keepdim=True) * z
        x = F.normalize(x, dim=-1)
        return torch.stack([x, torch.linalg.cross(z, x), z], dim=1)

    def cone(
        self,
        *,
        slab: Tensor | Sequence[float] = NO_CUT,
        active: Bool[Tensor, " b"] | None = None,
    ) -> Cones:
        """The limb as a group of one cone; ``slab`` in local coordinates, by default all of it."""
        stretch = torch.stack([1.0 / self.squash, *[torch.ones_like(self.squash)] * 2], dim=1)
        rows = self.axes() * stretch[:, :, None]
        length = (self.end - self.start).norm(dim=-1)
        outer = torch.stack([self.r0, self.r1], dim=1)
        spheres = outer * self.squash.clamp(min=1.0)[:, None]
        bounds = torch.cat([torch.stack([self.start, self.end], 1), spheres[..., None]], dim=-1)
        return _one(rows, self.start, length, outer, slab, active, bounds)


def ellipsoid(
    center: Float[Tensor, "b 3"],
    radii: Float[Tensor, "b 3"],
    axes: Float[Tensor, "b 3 3"],
    *,
    slab: Tensor | Sequence[float] = NO_CUT,
    active: Bool[Tensor, " b"] | None = None,
) -> Cones:
    """An ellipsoid; ``axes`` has its unit axes as rows, and local coordinates are in radii."""
    ones = torch.ones_like(radii[:, :2])
    sphere = torch.cat([center, radii.amax(1, keepdim=True)], dim=1)
    bounds = sphere[:, None].expand(-1, 2, -1)
    rows = axes / radii[:, :, None]
    return _one(rows, center, torch.zeros_like(radii[:, 0]), ones, slab, active, bounds)


def _one(rows, origin, length, radii, slab, active, bounds) -> Cones:
    b = len(origin)
    shift = -(rows @ origin[:, :, None])
    slab = torch.as_tensor(slab, device=origin.device, dtype=origin.dtype)
    active = torch.ones(b, dtype=torch.bool, device=origin.device) if active is None else active
    return Cones(
        to_local=torch.cat([rows, shift], dim=-1)[:, None],
        length=length[:, None],
        radii=radii[:, None],
        slab=slab.expand(b, 5)[:, None],
        active=active[:, None],
        bounds=bounds[:, None],
    )


def hit_cones(
    cones: Cones,
    cone: Int[Tensor, " n"],
    origins: Float[Tensor, "b 3"],
    rays_d: Float[Tensor, "3 n"],
) -> Float[Tensor, " n"]:
    """Distance along each ray at which it enters its cone; infinite where it does not.

    Args:
        cones: of all scenes.
        cone: which one, counted through all scenes.
        origins: of the rays of each scene, outside of its cones.
        rays_d: unit directions.
    """
    # One gather of all that depends on the cone alone; most of the time goes into gathers.
    table = _constants(cones, origins).index_select(1, cone)
    a = table[:9]
    dx, dy, dz = (a[k] * rays_d[0] + a[k + 1] * rays_d[1] + a[k + 2] * rays_d[2] for k in (0, 3, 6))
    ox, oy, oz, slope, u, side_c, first_c, second_c, h, low, high = table[9:20]
    flat_b, flat_a = ox * dx + oy * dy, dx * dx + dy * dy
    # Side: (ox + t dx)^2 + (oy + t dy)^2 = (u + t v)^2 with the radius u + t v at the ray's z.
    v = -slope * dz
    t = _falling_root(flat_a - v * v, flat_b - u * v, side_c)
    z = oz + t * dz
    entry = _where_valid((z >= low) & (z <= high), t)
    a, b = flat_a + dz * dz, flat_b + oz * dz
    t = _falling_root(a, b, first_c)
    entry = torch.minimum(entry, _where_valid(oz + t * dz <= low, t))
    t = _falling_root(a, b - h * dz, second_c)
    entry = torch.minimum(entry, _where_valid(oz + t * dz >= high, t))
    nx, ny, nz, slab_low, slab_high = table[20:25]
    along = nx * (ox + entry * dx) + ny * (oy + entry * dy) + nz * (oz + entry * dz)
    return _where_valid((along >= slab_low) & (along <= slab_high) & (entry > 0.0), entry)


def _constants(cones: Cones, origins: Tensor) -> Float[Tensor, "25 cones"]:
    """What hits need of each cone: axes, origin, the quadratics' last terms, limits and slab."""
    o = (cones.to_local[..., :3] @ origins[:, None, :, None])[..., 0] + cones.to_local[..., 3]
    x, y, z = o.unbind(-1)
    r0, r1 = cones.radii.unbind(-1)
    h, flat = cones.length, x * x + y * y
    sin, cos = _opening(h, r0, r1)
    u = (r0 - sin * z) / cos
    rows = [
        *cones.to_local[..., :3].flatten(-2).unbind(-1),
        *(x, y, z, sin / cos, u, flat - u * u, flat + z * z - r0 * r0),
        *(flat + (z - h).square() - r1 * r1, h, r0 * sin, h + r1 * sin),
        *cones.slab.unbind(-1),
    ]
    return torch.stack([row.flatten() for row in rows])


def _opening(h: Tensor, r0: Tensor, r1: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine of the angle between axis and side."""
    sin = torch.where(h > 0.0, (r0 - r1) / h.clamp(min=1e-9), 0.0)
    return sin, (1.0 - sin * sin).clamp(min=1e-9).sqrt()


def _falling_root(a: Tensor, half_b: Tensor, c: Tensor) -> Tensor:
    """Where ``a t^2 + 2 half_b t + c`` falls through zero; nan where it does not.

    That is the smaller root for a > 0, and the larger one, into the cone's own half, for a < 0.
    """
    return (-half_b - (half_b * half_b - a * c).sqrt()) / a


def _where_valid(valid: Tensor, t: Tensor) -> Tensor:
    """Comparisons with nan are false, so that valid ones are numbers."""
    return torch.where(valid, t, torch.inf)


def cone_normals(
    cones: Cones, cone: Int[Tensor, " n"], points: Float[Tensor, "n 3"]
) -> Float[Tensor, "n 3"]:
    """Unit outward normals, world axes, at points on the cones' surfaces."""
    p = local_points(cones.to_local, cone, points)
    h = cones.length.flatten()[cone]
    r0, r1 = cones.radii.flatten(0, 1).index_select(0, cone).unbind(-1)
    sin, cos = _opening(h, r0, r1)
    # The axis point that the normal comes from; on the spheres it is their centre.
    foot = torch.minimum((p[2] - sin / cos * p[:2].norm(dim=0)).clamp(min=0.0), h)
    x, y, z = p[0], p[1], p[2] - foot
    rows = cones.to_local[..., :3].reshape(-1, 9).t().contiguous().index_select(1, cone)
    world = [rows[k] * x + rows[3 + k] * y + rows[6 + k] * z for k in range(3)]
    return F.normalize(torch.stack(world, dim=-1), dim=-1)


def local_points(
    frames: Float[Tensor, "b p 3 4"], index: Int[Tensor, " n"], points: Float[Tensor, "n 3"]
) -> Float[Tensor, "3 n"]:
    """World points in the frames numbered ``index`` through all scenes."""
    m = frames.reshape(-1, 12).t().contiguous().index_select(1, index)
    x, y, z = points.unbind(-1)
    rows = [m[k] * x + m[k + 1] * y + m[k + 2] * z + m[k + 3] for k in (0, 4, 8)]
    return torch.stack(rows)

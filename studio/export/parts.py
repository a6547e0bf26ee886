"""Which connected parts of a surface are kept.

Two kinds of parts go. A *floater* is small against the largest part, by volume and by area, and
touches nothing that stays: so the legs of a separate table and the second ball of "two balls" stay,
and so do the eyes and the beak of a figure that is given as separate solids; specks go. A *hidden*
part lies wholly inside one larger solid, or is the wall of a cavity in it: it can never be seen. A
part that only reaches into another one stays; a field's level set has no such parts, a modelled
object has many.

Closed parts are judged exactly (manifold3d: smallest gap, boolean difference); parts with a border
by their vertices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from studio.export.triangles import Triangles, face_components, winding_number

if TYPE_CHECKING:
    from manifold3d import Manifold

__all__ = ["drop_parts"]

# Parts this close touch, in diagonals of the object's bounding box: half a cell of a 128^3 grid.
TOUCH_FRACTION = 3e-3
# A part of which a smaller share of the volume looks out of another solid is hidden by it.
VISIBLE_FRACTION = 1e-3

# Vertices of a part with a border that are asked whether they lie inside another part.
MAX_PROBES = 48


def drop_parts(mesh: Triangles, *, min_component: float) -> tuple[Triangles, int, int]:
    """Remove floaters and what can never be seen.

    Args:
        mesh: the surface; parts are connected by shared vertices.
        min_component: fraction of the largest part's volume and area below which a part is small;
            0 keeps all that can be seen.

    Returns:
        The remaining mesh, the number of floaters dropped, the number of hidden parts dropped.
    """
    labels = face_components(mesh)
    n_parts = int(labels.max(initial=-1)) + 1
    if n_parts <= 1:
        return mesh, 0, 0
    order = np.argsort(labels, kind="stable")
    pieces = np.split(order, np.cumsum(np.bincount(labels, minlength=n_parts))[:-1])
    parts = [_Part(mesh.keep_faces(faces)) for faces in pieces]
    hidden = _hidden_parts(parts)
    small = _small_parts(parts, min_component)
    floats = _floating_parts(parts, small & ~hidden, [*np.flatnonzero(~small & ~hidden)], mesh)
    keep = ~(floats | hidden)
    return mesh.keep_faces(keep[labels]), int(floats.sum()), int(hidden.sum())


@dataclass(frozen=True)
class _Part:
    """One connected part, with what the rules ask about it."""

    mesh: Triangles

    @cached_property
    def bounds(self) -> Float[np.ndarray, "2 3"]:
        return self.mesh.bounds()

    @cached_property
    def volume(self) -> float:
        """Signed; independent of where the part stands, which an open one's would not be."""
        centre = self.bounds.mean(axis=0)
        return Triangles(self.mesh.v_pos - centre, self.mesh.t_pos_idx).volume()

    @cached_property
    def area(self) -> float:
        return float(self.mesh.areas().sum())

    @cached_property
    def solid(self) -> Manifold | None:
        """The part as a solid, turned outwards; None when it is not closed."""
        from manifold3d import Error, Manifold, Mesh64

        faces = self.mesh.t_pos_idx if self.volume >= 0.0 else self.mesh.t_pos_idx[:, ::-1]
        solid = Manifold(Mesh64(self.mesh.v_pos, np.ascontiguousarray(faces, dtype=np.uint64)))
        return solid if solid.status() == Error.NoError and solid.volume() > 0.0 else None

    def contains(self, other: _Part) -> bool:
        """Whether ``other`` lies wholly inside this closed part."""
        (lower, upper), (low, high) = self.bounds, other.bounds
        if self.solid is None or (low < lower).any() or (high > upper).any():
            return False
        if winding_number(self.mesh, other.mesh.v_pos[0]) < 0.5:
            return False
        corners = self.mesh.corners()
        near = (corners.max(axis=1) >= low).all(axis=1) & (corners.min(axis=1) <= high).all(axis=1)
        if not near.any():
            return True  # no face of this part comes near, so one point tells for all
        if other.solid is None:
            return all(winding_number(self.mesh, vertex) > 0.5 for vertex in other.mesh.v_pos)
        outside = (other.solid - self.solid).volume()
        return outside <= VISIBLE_FRACTION * other.solid.volume()

    def touches(self, other: _Part, gap: float) -> bool:
        """Whether the parts meet, or come closer than ``gap``."""
        (lower, upper), (low, high) = self.bounds, other.bounds
        if (low > upper + gap).any() or (high < lower - gap).any():
            return False
        if self.solid is not None and other.solid is not None:
            return self.solid.min_gap(other.solid, 2.0 * gap) < gap
        if self._swallows(other) or other._swallows(self):
            return True
        from scipy.spatial import cKDTree

        distances, _ = cKDTree(self._points()).query(other._points(), distance_upper_bound=gap)
        return bool(np.isfinite(distances).any())

    def _swallows(self, other: _Part) -> bool:
        """Whether a vertex of ``other`` (of a few dozen) is inside this closed part."""
        if self.solid is None:
            return False
        vertices = other.mesh.v_pos[:: -(-len(other.mesh.v_pos) // MAX_PROBES)]
        return any(winding_number(self.mesh, vertex) > 0.5 for vertex in vertices)

    def _points(self) -> Float[np.ndarray, "n 3"]:
        """Vertices and centres of the faces."""
        return np.concatenate([self.mesh.v_pos, self.mesh.corners().mean(axis=1)])


def _hidden_parts(parts: list[_Part]) -> np.ndarray:
    """Mark parts inside a larger solid: inner solids and the walls of cavities."""
    hidden = np.zeros(len(parts), dtype=bool)
    shells: list[_Part] = []
    for index in np.argsort([-abs(part.volume) for part in parts], kind="stable"):
        part = parts[index]
        hidden[index] = any(shell.contains(part) for shell in shells)
        if not hidden[index] and part.volume > 0.0:
            shells.append(part)
    return hidden


def _small_parts(parts: list[_Part], min_component: float) -> np.ndarray:
    """Mark parts with little volume and little area against the largest."""
    volume = np.array([abs(part.volume) for part in parts])
    area = np.array([part.area for part in parts])
    return (volume < min_component * volume.max()) & (area < min_component * area.max())


def _floating_parts(
    parts: list[_Part], candidates: np.ndarray, body: list[int], mesh: Triangles
) -> np.ndarray:
    """Mark the candidates that no chain of touching parts joins to the body."""
    lower, upper = mesh.bounds()
    gap = TOUCH_FRACTION * float(np.linalg.norm(upper - lower))
    floating, reached = candidates.copy(), list(body)
    while reached and floating.any():
        anchor = parts[reached.pop()]
        joined = [k for k in np.flatnonzero(floating) if anchor.touches(parts[k], gap)]
        floating[joined] = False
        reached += joined
    return floating

"""Volume rendering of a field through an occupancy grid, with packed samples.

NeRF's quadrature (Mildenhall et al., arXiv 2003.08934, Eq. 3) with Instant-NGP's empty-space
skipping (arXiv 2201.05989). Only samples in occupied cells exist, and of those only the ones that
contribute to a pixel are queried for colour, normals and gradients.

Two modes, by whether gradients are enabled: with gradients one pass over all rays under the sample
cap, and the samples are kept for regularisers; without, chunks of rays at the finer step.

Usage::

    renderer.update_occupancy(step, generator)
    output = renderer.render(cameras, generator=generator, shading=shading)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from renderers.backends.ray_sums import sum_before, widest_float
from renderers.backgrounds import Background
from renderers.cameras import Cameras
from renderers.configs import MaterialConfig, VolumeRendererConfig
from renderers.fields.samples import Field, FieldSamples
from renderers.marching import RaySamples, composite, march_rays, select_samples
from renderers.materials import Shading, eval_shading, shade
from renderers.occupancy import OccupancyGrid
from renderers.outputs import RenderOutput

__all__ = ["VolumeRenderer"]

# Below this opacity the mean distance of a ray is noise; it only guards a division.
MIN_OPACITY = 1e-5
# Stands for "none" in the transmittance limit: no float32 image shows so little light.
SMALLEST_TRANSMITTANCE = 1e-30


@dataclass(frozen=True)
class _Rays:
    """Flattened rays, with what the samples on them need."""

    origins: Float[Tensor, "n 3"]
    directions: Float[Tensor, "n 3"]
    lights: Float[Tensor, "n 3"]
    distances: Float[Tensor, " n"]
    """Distance from camera to scene centre, where z-variance is expanded."""
    within: Float[Tensor, "n 2 3"] | None
    """Boxes that the rays are limited to."""

    def __getitem__(self, rows: slice) -> _Rays:
        return _Rays(
            self.origins[rows],
            self.directions[rows],
            self.lights[rows],
            self.distances[rows],
            None if self.within is None else self.within[rows],
        )


@dataclass(frozen=True)
class _Pixels:
    """Composited rays, before the background."""

    rgb: Float[Tensor, "n 3"]
    opacity: Float[Tensor, "n 1"]
    depth: Float[Tensor, "n 1"]
    z_variance: Float[Tensor, "n 1"]
    normal: Float[Tensor, "n 3"] | None


class VolumeRenderer(nn.Module):
    """Renders a field in front of a background.

    The state dict holds the field, the background and the occupancy grid: all that a resumed run
    needs to render the same images.

    Args:
        config: step counts, caps and the occupancy grid.
        field: density and albedo; a module, so that its parameters are trained and saved.
        background: what stands behind the object.
        material: how evaluation renders are lit (training steps pass their own draw).
    """

    def __init__(
        self,
        config: VolumeRendererConfig,
        field: Field,
        background: Background,
        material: MaterialConfig,
    ) -> None:
        super().__init__()
        self.config = config
        self.field = field
        self.background = background
        self.material = material
        grid = config.occupancy
        self.occupancy = OccupancyGrid(
            grid.resolution,
            field.radius,
            step_size=self._step_size(config.samples_per_ray),
            ema_decay=grid.ema_decay,
            threshold=grid.threshold,
            warmup_steps=grid.warmup_steps,
        )

    def set_fraction(self, fraction: float) -> None:
        """Tell the field how far the stage is (0 to 1)."""
        self.field.set_fraction(fraction)

    def update_occupancy(self, step: int, generator: torch.Generator) -> None:
        """Look at the field again every ``update_every`` steps, step 0 included."""
        if step % self.config.occupancy.update_every == 0:
            self.occupancy.update(self._occupancy_density, step=step, generator=generator)

    def render(
        self,
        cameras: Cameras,
        *,
        generator: torch.Generator | None = None,
        shading: Shading | None = None,
        with_normals: bool = False,
    ) -> RenderOutput:
        """Render a batch of views.

        Args:
            cameras: the views, on the field's device and in its type.
            generator: jitters the samples and draws the background; None for a deterministic
                evaluation render.
            shading: how the object is lit; None for the material's evaluation shading.
            with_normals: also composite normals when the shading does not need them.
        """
        shading = shading or eval_shading(self.material)
        with_normals = with_normals or shading.needs_normals
        rays_o, rays_d = cameras.rays()
        rays = self._flatten(cameras, rays_o, rays_d)
        jitter = self._jitter(rays, generator)
        background = self.background(rays_d, generator)
        if torch.is_grad_enabled():
            pixels, samples = self._render_training(rays, jitter, shading, with_normals)
        else:
            pixels, samples = self._render_chunks(rays, jitter, shading, with_normals), {}
        return self._assemble(pixels, background, samples)

    def _render_training(
        self, rays: _Rays, jitter: Tensor | None, shading: Shading, with_normals: bool
    ) -> tuple[_Pixels, dict[str, Tensor | None]]:
        """All rays in one differentiable pass."""
        samples = self._march(
            rays, jitter, self.config.samples_per_ray, max_samples=self.config.max_samples
        )
        values = self._query(samples, with_normals)
        pixels, weights = self._composite(rays, samples, values, shading)
        return pixels, {
            "weights": weights,
            "ray_indices": samples.ray_indices,
            "sample_dirs": rays.directions[samples.ray_indices],
            "sample_normals": values.normal,
            "sample_gradients": values.gradient,
        }

    def _render_chunks(
        self, rays: _Rays, jitter: Tensor | None, shading: Shading, with_normals: bool
    ) -> _Pixels:
        """Rays in bounded memory, without gradients."""
        size = self.config.eval_chunk_rays
        parts = []
        for start in range(0, len(rays.origins), size):
            rows = slice(start, start + size)
            part = rays[rows]
            samples = self._march(
                part,
                None if jitter is None else jitter[rows],
                self.config.eval_samples_per_ray,
                max_samples=None,
            )
            values = self._query(samples, with_normals)
            parts.append(self._composite(part, samples, values, shading)[0])
        return _Pixels(
            rgb=torch.cat([part.rgb for part in parts]),
            opacity=torch.cat([part.opacity for part in parts]),
            depth=torch.cat([part.depth for part in parts]),
            z_variance=torch.cat([part.z_variance for part in parts]),
            normal=torch.cat([part.normal for part in parts]) if with_normals else None,
        )

    def _march(
        self, rays: _Rays, jitter: Tensor | None, samples_per_ray: int, max_samples: int | None
    ) -> RaySamples:
        """Samples in occupied cells, without those that contribute nothing."""
        samples = march_rays(
            rays.origins,
            rays.directions,
            self.occupancy,
            step_size=self._step_size(samples_per_ray),
            near=self.config.near,
            within=rays.within,
            jitter=jitter,
            max_samples=max_samples,
            backend=self.config.backend,
        )
        if self.config.min_transmittance <= 0.0 and self.config.min_alpha <= 0.0:
            return samples
        return select_samples(samples, self._contributes(samples))

    @torch.no_grad()
    def _contributes(self, samples: RaySamples) -> Tensor:
        """Which samples light reaches and which stop some of it.

        The others change neither the image nor the gradient; on a solid object they are most. A
        density that is NaN always stays: its pixel is to be NaN, which the guard of the loss sees.
        """
        sigma = self.field.density(samples.positions)
        optical = sigma * (samples.t_ends - samples.t_starts)
        optical = optical.to(widest_float(optical.device))
        before = sum_before(optical, samples.ray_indices, samples.packed_info)
        # Both limits as optical depths, which needs no exponentials.
        deepest = -math.log(max(self.config.min_transmittance, SMALLEST_TRANSMITTANCE))
        thinnest = -math.log1p(-self.config.min_alpha)
        return ~((before >= deepest) | (optical <= thinnest)) | optical.isnan()

    def _query(self, samples: RaySamples, with_normals: bool) -> FieldSamples:
        if with_normals:
            return self.field.query_with_normals(samples.positions)
        return self.field.query(samples.positions)

    def _composite(
        self, rays: _Rays, samples: RaySamples, values: FieldSamples, shading: Shading
    ) -> tuple[_Pixels, Tensor]:
        """Sums along the rays, and the weights of the samples."""
        index = samples.ray_indices
        rgb = shade(values.albedo, values.normal, samples.positions, rays.lights[index], shading)
        # Distances relative to the scene's centre, so that squares lose no digits.
        offset = samples.middles - rays.distances[index]
        columns = [rgb, offset[:, None], offset.square()[:, None]]
        if values.normal is not None:
            columns.append(values.normal)
        features = torch.cat(columns, dim=1)
        sums = composite(values.sigma, features, samples, backend=self.config.backend)
        opacity = sums.opacity[:, None]
        moments = sums.values[:, 3:5] / opacity.clamp(min=MIN_OPACITY)
        variance = (moments[:, 1:] - moments[:, :1].square()).clamp(min=0.0)
        normal = None
        if values.normal is not None:
            normal = F.normalize(sums.values[:, 5:8], dim=-1)
        pixels = _Pixels(sums.values[:, :3], opacity, sums.depth[:, None], variance, normal)
        return pixels, sums.weights

    def _assemble(
        self, pixels: _Pixels, background: Tensor, samples: dict[str, Tensor | None]
    ) -> RenderOutput:
        """Put the rays back into images, over the background."""
        shape = background.shape[:3]
        opacity = pixels.opacity.view(*shape, 1)
        return RenderOutput(
            comp_rgb=pixels.rgb.view(*shape, 3) + (1.0 - opacity) * background,
            opacity=opacity,
            depth=pixels.depth.view(*shape, 1),
            comp_rgb_bg=background,
            normal=None if pixels.normal is None else pixels.normal.view(*shape, 3),
            z_variance=pixels.z_variance.view(*shape, 1),
            **samples,
        )

    def _flatten(self, cameras: Cameras, rays_o: Tensor, rays_d: Tensor) -> _Rays:
        per_view, within = cameras.height * cameras.width, cameras.within
        return _Rays(
            origins=rays_o.reshape(-1, 3),
            directions=rays_d.reshape(-1, 3),
            lights=cameras.light_position.repeat_interleave(per_view, dim=0),
            distances=cameras.position.norm(dim=-1).repeat_interleave(per_view),
            within=None if within is None else within.repeat_interleave(per_view, dim=0),
        )

    def _jitter(self, rays: _Rays, generator: torch.Generator | None) -> Tensor | None:
        if generator is None:
            return None
        n_rays = len(rays.origins)
        return torch.rand(n_rays, generator=generator, device=generator.device).to(rays.origins)

    def _occupancy_density(self, x: Tensor) -> Tensor:
        return self.field.density(x.to(self.occupancy.values.dtype))

    def _step_size(self, samples_per_ray: int) -> float:
        """The diagonal of the box in ``samples_per_ray`` steps."""
        return 2.0 * 3**0.5 * self.field.radius / samples_per_ray

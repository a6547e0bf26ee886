"""Configuration of fields and renderers: plain frozen dataclasses, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from renderers.box_configs import BoxesBlobConfig
from renderers.camera_configs import (
    CamerasConfig,
    DreamFusionLightConfig,
    LightConfig,
    Magic3DLightConfig,
    MultiViewCamerasConfig,
    RandomCamerasConfig,
    ResolutionMilestone,
    check_between,
    check_positive,
)

__all__ = [
    "AlbedoMaterialConfig",
    "AnalyticNormalsConfig",
    "BackgroundConfig",
    "CamerasConfig",
    "DensityBlobConfig",
    "DiffuseMaterialConfig",
    "DreamFusionBlobConfig",
    "DreamFusionLightConfig",
    "FieldConfig",
    "FiniteDifferenceNormalsConfig",
    "HashGridConfig",
    "HashSDFConfig",
    "HashVolumeConfig",
    "LightConfig",
    "Magic3DBlobConfig",
    "Magic3DLightConfig",
    "MaterialConfig",
    "MultiViewCamerasConfig",
    "NeuralBackgroundConfig",
    "NoBlobConfig",
    "NormalsConfig",
    "OccupancyConfig",
    "PredictedNormalsConfig",
    "ProgressiveBandsConfig",
    "RandomBackgroundConfig",
    "RandomCamerasConfig",
    "ResolutionMilestone",
    "SolidBackgroundConfig",
    "VolumeRendererConfig",
]

Color = tuple[float, float, float]


@dataclass(frozen=True)
class HashGridConfig:
    """Multiresolution hash encoding (Instant-NGP, arXiv 2201.05989)."""

    n_levels: int = 16
    """Number of resolution levels L."""
    n_features: int = 2
    """Features per level F."""
    log2_hashmap_size: int = 19
    """Base-2 logarithm of the table size T of each level."""
    base_resolution: int = 16
    """Resolution of the coarsest level, cells along one axis."""
    finest_resolution: int = 2048
    """Resolution of the finest level, cells along one axis."""
    backend: Literal["auto", "torch", "numba", "triton", "tinycudann"] = "auto"
    """Kernels; tinycudann stores its parameters in a layout of its own."""


@dataclass(frozen=True)
class OccupancyConfig:
    """Occupancy grid that lets the ray marcher skip empty space."""

    resolution: int = 64
    """Cells along one axis."""
    update_every: int = 16
    """Steps between two updates."""
    ema_decay: float = 0.85
    """Factor on the remembered density at each update (0.95 suits runs of many thousand steps)."""
    threshold: float = 0.01
    """A cell is occupied where density times step size exceeds min(threshold, mean)."""
    warmup_steps: int = 256
    """Before this step an update visits every cell, later a part of them."""

    def __post_init__(self) -> None:
        """Check sizes."""
        check_positive("occupancy", resolution=self.resolution, update_every=self.update_every)
        check_between("occupancy", 0.0, 1.0, ema_decay=self.ema_decay)


@dataclass(frozen=True)
class ProgressiveBandsConfig:
    """Open the hash grid's levels one after the other, coarse to fine."""

    start_levels: int = 4
    """Levels that are open from the beginning."""
    start_fraction: float = 0.1
    """Stage fraction at which the next level starts to open."""
    end_fraction: float = 0.6
    """Stage fraction from which all levels are open."""


@dataclass(frozen=True)
class Magic3DBlobConfig:
    """Initial density softplus(scale (1 - |x| / std)) (Magic3D, arXiv 2211.10440, section 4.1)."""

    kind: Literal["blob_magic3d"] = "blob_magic3d"
    """Tag of this choice."""
    scale: float = 10.0
    """Pre-activation density at the origin."""
    std: float = 0.5
    """Radius at which the pre-activation crosses zero, world units."""


@dataclass(frozen=True)
class DreamFusionBlobConfig:
    """Initial pre-activation with a Gaussian bump (DreamFusion, arXiv 2209.14988, appendix A.2).

    The paper adds 5 exp(-|x|^2 / (2 std^2)) to a network whose bias keeps space empty. Ours has no
    bias, so the bump rises from ``floor``; from 0 all of space would start as fog.
    """

    kind: Literal["blob_dreamfusion"] = "blob_dreamfusion"
    """Tag of this choice."""
    scale: float = 5.0
    """Pre-activation density at the origin."""
    std: float = 0.2
    """Width of the bump, world units."""
    floor: float = -5.0
    """Pre-activation density far from the origin."""


@dataclass(frozen=True)
class NoBlobConfig:
    """Uniform initial density: a constant added to the pre-activation."""

    kind: Literal["none"] = "none"
    """Tag of this choice."""
    bias: float = 0.0
    """Pre-activation density everywhere."""


DensityBlobConfig = Magic3DBlobConfig | DreamFusionBlobConfig | NoBlobConfig | BoxesBlobConfig


@dataclass(frozen=True)
class AnalyticNormalsConfig:
    """Exact field gradient from the grid's Jacobian, without double backward."""

    kind: Literal["analytic"] = "analytic"
    """Tag of this choice."""


@dataclass(frozen=True)
class FiniteDifferenceNormalsConfig:
    """Central differences of the field: smoother, at six more queries a sample."""

    kind: Literal["finite_difference"] = "finite_difference"
    """Tag of this choice."""
    epsilon: float = 0.01
    """Half distance of the two taps, world units."""


@dataclass(frozen=True)
class PredictedNormalsConfig:
    """Normals from a head of their own (Magic3D, arXiv 2211.10440, section 4.1)."""

    kind: Literal["predicted"] = "predicted"
    """Tag of this choice."""


NormalsConfig = AnalyticNormalsConfig | FiniteDifferenceNormalsConfig | PredictedNormalsConfig


@dataclass(frozen=True)
class HashVolumeConfig:
    """Density and albedo from a hash grid and small bias-free ReLU networks."""

    kind: Literal["hash_volume"] = "hash_volume"
    """Tag of this choice."""
    radius: float = 1.0
    """Half side of the scene box, world units."""
    grid: HashGridConfig = field(default_factory=HashGridConfig)
    """Encoding of positions."""
    heads: Literal["separate", "joint"] = "separate"
    """One network each for density and albedo, or one for both (half the cost)."""
    hidden_layers: int = 1
    """Hidden layers of each network."""
    hidden_width: int = 64
    """Units of a hidden layer."""
    blob: DensityBlobConfig = field(default_factory=Magic3DBlobConfig)
    """Initial density."""
    normals: NormalsConfig = field(default_factory=AnalyticNormalsConfig)
    """How normals are computed."""
    bands: ProgressiveBandsConfig | None = None
    """Coarse-to-fine opening of the grid's levels; none opens all at once."""

    def __post_init__(self) -> None:
        """Check sizes."""
        check_between("field", 1e-3, 1e3, radius=self.radius)
        check_positive("field", hidden_layers=self.hidden_layers, hidden_width=self.hidden_width)


@dataclass(frozen=True)
class HashSDFConfig:
    """Signed distance and albedo from a hash grid; VolSDF density (arXiv 2106.12052)."""

    kind: Literal["hash_sdf"] = "hash_sdf"
    """Tag of this choice."""
    radius: float = 1.0
    """Half side of the scene box, world units."""
    grid: HashGridConfig = field(default_factory=HashGridConfig)
    """Encoding of positions."""
    heads: Literal["separate", "joint"] = "separate"
    """One network each for distance and albedo, or one for both (half the cost)."""
    hidden_layers: int = 1
    """Hidden layers of each network."""
    hidden_width: int = 64
    """Units of a hidden layer."""
    semi_axes: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Half axes of the initial ellipsoid (equal values: a sphere), world units."""
    initial_beta: float = 0.05
    """Initial width of the density transition across the surface (VolSDF Eq. 2), world units."""
    minimum_beta: float = 0.001
    """Smallest width that training can reach, world units."""
    normals: NormalsConfig = field(default_factory=AnalyticNormalsConfig)
    """How normals are computed."""
    bands: ProgressiveBandsConfig | None = None
    """Coarse-to-fine opening of the grid's levels; none opens all at once."""

    def __post_init__(self) -> None:
        """Check sizes."""
        check_between("field", 1e-3, 1e3, radius=self.radius)
        check_positive("field", hidden_layers=self.hidden_layers, hidden_width=self.hidden_width)
        if min(self.semi_axes) <= 0.0:
            raise ValueError(
                f"field.semi_axes is {list(self.semi_axes)}, expected three positive lengths. "
                "Set half axes such as [0.5, 0.5, 0.5]."
            )
        check_between("field", self.minimum_beta, 10.0, initial_beta=self.initial_beta)


FieldConfig = HashVolumeConfig | HashSDFConfig


@dataclass(frozen=True)
class SolidBackgroundConfig:
    """One colour behind everything."""

    kind: Literal["solid"] = "solid"
    """Tag of this choice."""
    color: Color = (1.0, 1.0, 1.0)
    """Display-referred colour."""


@dataclass(frozen=True)
class RandomBackgroundConfig:
    """A random colour in training, a solid one in evaluation."""

    kind: Literal["random"] = "random"
    """Tag of this choice."""
    probability: float = 1.0
    """Probability of a random colour; otherwise the solid one."""
    share: Literal["image", "batch"] = "image"
    """A colour for each image, or one for all views of a batch (multi-view guidance needs it)."""
    color: Color = (1.0, 1.0, 1.0)
    """Solid colour."""

    def __post_init__(self) -> None:
        """Check the probability."""
        check_between("background", 0.0, 1.0, probability=self.probability)


@dataclass(frozen=True)
class NeuralBackgroundConfig:
    """Environment map: colour of a view direction from a small network."""

    kind: Literal["neural"] = "neural"
    """Tag of this choice."""
    hidden_layers: int = 2
    """Hidden layers of the network."""
    hidden_width: int = 16
    """Units of a hidden layer."""
    random_probability: float = 0.5
    """Probability that a random colour replaces the map in training."""
    share: Literal["image", "batch"] = "image"
    """Draw the replacement for each image, or once for all views of a batch."""

    def __post_init__(self) -> None:
        """Check probability and sizes."""
        check_between("background", 0.0, 1.0, random_probability=self.random_probability)
        check_positive(
            "background", hidden_layers=self.hidden_layers, hidden_width=self.hidden_width
        )


BackgroundConfig = SolidBackgroundConfig | RandomBackgroundConfig | NeuralBackgroundConfig


@dataclass(frozen=True)
class AlbedoMaterialConfig:
    """Unlit: the colour is the albedo."""

    kind: Literal["albedo"] = "albedo"
    """Tag of this choice."""


@dataclass(frozen=True)
class DiffuseMaterialConfig:
    """Lambertian surface with a point light (DreamFusion, arXiv 2209.14988, section 3.1)."""

    kind: Literal["diffuse"] = "diffuse"
    """Tag of this choice."""
    ambient_only_until: float = 0.2
    """Stage fraction up to which only albedo is rendered."""
    diffuse_probability: float = 0.75
    """Probability of a lit step afterwards."""
    textureless_probability: float = 0.5
    """Probability that a lit step uses white albedo."""
    ambient: float = 0.1
    """Ambient share of the light."""
    diffuse: float = 0.9
    """Diffuse share of the light."""
    light_mix: Literal["fixed", "soft"] = "fixed"
    """The shares above, or diffuse ~ U(0, 1) and ambient = 1 - diffuse (Magic3D's soft shading)."""
    eval_shading: Literal["albedo", "diffuse"] = "albedo"
    """What evaluation renders show."""

    def __post_init__(self) -> None:
        """Check probabilities and shares."""
        check_between(
            "material",
            0.0,
            1.0,
            ambient_only_until=self.ambient_only_until,
            diffuse_probability=self.diffuse_probability,
            textureless_probability=self.textureless_probability,
            ambient=self.ambient,
            diffuse=self.diffuse,
        )


MaterialConfig = AlbedoMaterialConfig | DiffuseMaterialConfig


@dataclass(frozen=True)
class VolumeRendererConfig:
    """Ray marching through occupied cells only."""

    kind: Literal["volume"] = "volume"
    """Tag of this choice."""
    backend: Literal["auto", "torch", "numba", "triton", "nerfacc"] = "auto"
    """Kernels of marching and compositing."""
    samples_per_ray: int = 128
    """Steps along the diagonal of the scene box."""
    eval_samples_per_ray: int = 256
    """The same in evaluation renders."""
    near: float = 0.05
    """Nearest sample in front of the camera, world units."""
    max_samples: int = 65536
    """Samples of one training step; more are avoided by a longer step while much is occupied."""
    eval_chunk_rays: int = 16384
    """Rays of one chunk in evaluation."""
    min_transmittance: float = 0.001
    """Samples that less of the light reaches are dropped before colours are computed; 0: none."""
    min_alpha: float = 0.0001
    """Samples that absorb a smaller share of the light are dropped too; 0: none."""
    occupancy: OccupancyConfig = field(default_factory=OccupancyConfig)
    """Occupancy grid."""

    def __post_init__(self) -> None:
        """Check counts and limits."""
        check_positive(
            "renderer",
            samples_per_ray=self.samples_per_ray,
            eval_samples_per_ray=self.eval_samples_per_ray,
            max_samples=self.max_samples,
            eval_chunk_rays=self.eval_chunk_rays,
        )
        check_between("renderer", 0.0, 0.5, min_transmittance=self.min_transmittance)
        check_between("renderer", 0.0, 0.5, min_alpha=self.min_alpha)

"""What the pocket recipe makes: images, networks, lengths; the presets ``cpu`` and ``gpu``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from studio.training.contrast import ContrastConfig
from studio.training.denoiser import DenoiserConfig
from studio.training.loop import LoopConfig
from studio.training.vae import VAEConfig

__all__ = ["PRESETS", "REFINE_PRESETS", "PocketConfig"]


@dataclass(frozen=True)
class PocketConfig:
    """All choices of the recipe."""

    images: int = 40_000
    """Rendered training images of the toybox."""
    objects_share: float = 0.2
    """Share of all images that shows the pack's objects, which are rendered on top; 0 is none."""
    pair_images: int = 0
    """Further images of the toybox, with two objects each; one in ten of the others has two too."""
    seed: int = 1
    """Seed of data, initial weights and batches."""
    vae: VAEConfig = field(default_factory=VAEConfig)
    """The autoencoder."""
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    """The UNet."""

    def __post_init__(self) -> None:
        """Refuse a share without toybox."""
        if not 0.0 <= self.objects_share < 1.0:
            raise ValueError(
                f"objects_share is {self.objects_share} - expected at least 0 and less than 1."
            )

    @property
    def object_images(self) -> int:
        """Rendered training images of the pack's objects."""
        return round(self.images * self.objects_share / (1.0 - self.objects_share))


PRESETS: dict[str, PocketConfig] = {
    "cpu": PocketConfig(),
    "gpu": PocketConfig(
        images=80_000,
        objects_share=0.25,
        pair_images=24_000,
        vae=VAEConfig(
            batch_size=96,
            loop=replace(VAEConfig().loop, steps=6000),
            decoder_loop=replace(VAEConfig().decoder_loop, steps=2000),
        ),
        denoiser=DenoiserConfig(
            batch_size=512,
            noise_tilt=1.25,
            contrast=ContrastConfig(share=0.5, bindings=0.4),
            loop=LoopConfig(steps=5000, learning_rate=8e-4, warmup=200, precision="bfloat16"),
        ),
    ),
}
REFINE_PRESETS: dict[str, PocketConfig] = {
    name: replace(
        preset,
        seed=2,
        pair_images=preset.images // 4,
        denoiser=replace(
            preset.denoiser,
            noise_tilt=1.25,
            contrast=ContrastConfig(share=0.75, bindings=0.5),
            loop=replace(preset.denoiser.loop, steps=3000, learning_rate=4e-4, warmup=100),
        ),
    )
    for name, preset in PRESETS.items()
}
"""To go on from a finished model: new images, more of them with two objects, more draws of the
noisy timesteps, in which layout and side are decided, and captions compared with wrong ones."""

"""Configuration of the 2D priors and samplers: frozen dataclasses, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from image_tools.personalization.personalized_configs import GuidanceMix, SubjectConfig
from image_tools.personalization.reference_configs import ReferenceToolConfig

__all__ = [
    "AestheticsConfig",
    "BasePriorConfig",
    "DdimConfig",
    "DiffusersPriorConfig",
    "MVDreamPriorConfig",
    "PersonalizedPriorConfig",
    "PocketMultiViewPriorConfig",
    "PocketPriorConfig",
    "Precision",
    "PriorConfig",
    "PriorMemoryConfig",
    "ReferencedPriorConfig",
    "SingleFilePriorConfig",
]

Precision = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class PriorMemoryConfig:
    """Ways to fit a prior into less memory. Each one trades time or precision for space."""

    dtype: Precision = "float32"
    """Number format of denoiser and text encoder. float16 halves memory on a GPU; on a CPU
    float32 is both faster and exact."""
    vae_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format of the image encoder and decoder. auto is dtype, but float32 where the VAE's
    own configuration says that it overflows in float16 (force_upcast)."""
    vae_slicing: bool = False
    """Encode and decode images one at a time. Saves in passes without gradient (previews, critic);
    what a gradient needs is stored for all images anyway, unless it is checkpointed."""
    vae_tiling: bool = False
    """Encode and decode images in overlapping, blended tiles of half their side: less working
    memory, twice the time, and another result, because each tile is normalised on its own (pocket's
    latents move by 0.4 of their spread). A last resort for images that fit no other way."""
    vae_checkpointing: bool = False
    """Recompute the VAE encoder in the backward pass instead of storing its activations: the
    largest saving for guidance, which sends a gradient through it. Same result."""
    attention_slicing: bool = False
    """Compute the denoiser's attention in slices. Slower than the default fused attention."""
    text_encoder: Literal["keep", "cpu", "drop"] = "keep"
    """keep the text encoder on the device, run it on the cpu, or drop it after each encoding
    (it is read again from disk when a new prompt comes)."""
    device: str | None = None
    """Where the prior lives: cpu, cuda, cuda:1, mps; empty for the scene's device. Renders and
    predictions cross over, the 3D scene stays where it is."""

    def __post_init__(self) -> None:
        """Refuse a device that no machine has."""
        if self.device is None:
            return
        kind, colon, index = self.device.partition(":")
        if kind not in ("cpu", "cuda", "mps") or (colon and not index.isdigit()):
            raise ValueError(
                f"device is {self.device!r} - expected cpu, cuda, cuda:N or mps, or nothing for "
                "the scene's device."
            )


@dataclass(frozen=True)
class AestheticsConfig:
    """Quality scores, 0 to 10, that SDXL refiners are told beside the text; others ignore them."""

    positive: float = 6.0
    """Score asked for with the prompt. 6.0 is the stock pipelines' value."""
    negative: float = 2.5
    """Score that goes with the negative prompt. 2.5 is the stock pipelines' value."""

    def __post_init__(self) -> None:
        """Refuse scores outside the scale."""
        for name in ("positive", "negative"):
            if not 0.0 <= getattr(self, name) <= 10.0:
                raise ValueError(f"{name} is {getattr(self, name)} - expected 0 to 10.")


@dataclass(frozen=True)
class PocketPriorConfig:
    """The small latent diffusion model that ships with the package (64 px, runs on a CPU)."""

    kind: Literal["pocket"] = "pocket"
    path: str | None = None
    """Folder of another pocket model in stock diffusers layout; empty for the shipped one."""
    prompt_cache: str | None = None
    """Folder in which text embeddings are kept between runs; empty keeps none."""
    memory: PriorMemoryConfig = PriorMemoryConfig()
    """Memory options."""


@dataclass(frozen=True)
class DiffusersPriorConfig:
    """Stable Diffusion 1.x, 2.x (epsilon or v-prediction), SDXL or an SDXL refiner in stock
    diffusers layout."""

    model: str
    """A local folder, or a hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5. Looked for
    as a folder first, then in the Hugging Face cache, then on the hub unless HF_HUB_OFFLINE."""
    kind: Literal["diffusers"] = "diffusers"
    revision: str | None = None
    """Branch, tag or commit of a hub id; empty for its default branch."""
    variant: str | None = None
    """Weight variant, for instance fp16 for files named *.fp16.safetensors."""
    prompt_cache: str | None = None
    """Folder in which text embeddings are kept between runs; empty keeps none."""
    aesthetics: AestheticsConfig = AestheticsConfig()
    """Quality scores for an SDXL refiner."""
    memory: PriorMemoryConfig = PriorMemoryConfig()
    """Memory options."""


@dataclass(frozen=True)
class SingleFilePriorConfig:
    """A Stable Diffusion checkpoint in one original-layout .safetensors file."""

    path: str
    """The .safetensors file. Pickled .ckpt, .pt and .bin files are refused."""
    config: str
    """Folder with the matching diffusers JSON files and tokenizer (no weights needed)."""
    kind: Literal["single_file"] = "single_file"
    prompt_cache: str | None = None
    """Folder in which text embeddings are kept between runs; empty keeps none."""
    aesthetics: AestheticsConfig = AestheticsConfig()
    """Quality scores for an SDXL refiner."""
    memory: PriorMemoryConfig = PriorMemoryConfig()
    """Memory options."""


@dataclass(frozen=True)
class PocketMultiViewPriorConfig:
    """The small multi-view model that ships with the package: four views of one object at a time.

    Only its denoiser is its own; text encoder and VAE are those of the pocket prior.
    """

    kind: Literal["pocket_mv"] = "pocket_mv"
    path: str | None = None
    """Folder of another multi-view denoiser, as `studio train pocket-mv` writes; empty for the
    shipped one."""
    base: str | None = None
    """Folder of the pocket model it was trained from; empty for the shipped one."""
    prompt_cache: str | None = None
    """Folder in which text embeddings are kept between runs; empty keeps none."""
    memory: PriorMemoryConfig = PriorMemoryConfig()
    """Memory options."""


@dataclass(frozen=True)
class MVDreamPriorConfig:
    """A public MVDream checkpoint (arXiv 2308.16512): four views of one object, 256 px each."""

    weights: str
    """Its denoiser: sd-v2.1-base-4view.pt, a .safetensors file, or a folder that holds one. The
    layouts of bytedance/MVDream and of its conversions to diffusers are understood."""
    base: str
    """The Stable Diffusion it was trained from, as a folder or hub id in stock diffusers layout:
    its VAE, text encoder, schedule and the denoiser's settings are used."""
    kind: Literal["mvdream"] = "mvdream"
    revision: str | None = None
    """Branch, tag or commit of a base that is a hub id; empty for its default branch."""
    variant: str | None = None
    """Weight variant of the base, for instance fp16."""
    prompt_cache: str | None = None
    """Folder in which text embeddings are kept between runs; empty keeps none."""
    memory: PriorMemoryConfig = PriorMemoryConfig()
    """Memory options."""


BasePriorConfig = (
    PocketPriorConfig
    | DiffusersPriorConfig
    | SingleFilePriorConfig
    | PocketMultiViewPriorConfig
    | MVDreamPriorConfig
)


@dataclass(frozen=True)
class PersonalizedPriorConfig:
    """A prior that was taught a subject or a style: LoRAs, words, or weights of a DreamBooth."""

    kind: Literal["personalized"] = "personalized"
    base: BasePriorConfig = PocketPriorConfig()
    """The prior that it was trained from."""
    subjects: tuple[SubjectConfig, ...] = ()
    """What it was taught, one entry per subject or style."""
    guidance: GuidanceMix = "plain"
    """plain lets all subjects act together. consistency (DCO) keeps the base's own prediction for
    the prompt with the class word, and adds each subject's difference from it with a weight of its
    own: views and styles that the base knows stay. Three denoiser evaluations instead of two, and
    one more for each further subject."""
    parallel: float = 1.0
    """Consistency guidance: factor of the part of a subject's difference that lies along the
    guidance direction; below 1 against over-saturation (arXiv 2506.00607)."""

    @property
    def memory(self) -> PriorMemoryConfig:
        """Memory options, which are the base's."""
        return self.base.memory

    def __post_init__(self) -> None:
        """Refuse consistency guidance with nothing to be consistent about."""
        if self.guidance == "consistency" and not self.subjects:
            raise ValueError("guidance is 'consistency' without subjects - expected at least one.")


@dataclass(frozen=True)
class ReferencedPriorConfig:
    """A prior with a tool that looks at reference images: subjects, styles, faces."""

    tool: ReferenceToolConfig
    """Which tool, and what it looks at."""
    kind: Literal["referenced"] = "referenced"
    base: BasePriorConfig | PersonalizedPriorConfig = PocketPriorConfig()
    """The prior that draws."""

    @property
    def memory(self) -> PriorMemoryConfig:
        """Memory options, which are the base's."""
        return self.base.memory


PriorConfig = BasePriorConfig | PersonalizedPriorConfig | ReferencedPriorConfig


@dataclass(frozen=True)
class DdimConfig:
    """Denoising diffusion implicit models sampler (arXiv 2010.02502)."""

    kind: Literal["ddim"] = "ddim"
    steps: int = 50
    """Number of denoising steps."""
    guidance_scale: float = 7.5
    """s in eps_u + s (eps_c - eps_u); 1 switches guidance off and halves the cost. Turbo models
    want 1, which other tools may call 0; here 0 would leave the prompt out."""
    guidance_rescale: float = 0.0
    """Share phi of the standard-deviation rescale (arXiv 2305.08891, Eq. 16); 0 = none."""
    eta: float = 0.0
    """Noise added at each step, 0 = deterministic, 1 = as much as DDPM."""

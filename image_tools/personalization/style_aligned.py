"""Pictures in one style without training (StyleAligned, Hertz et al., arXiv 2312.02133).

What images share inside the denoiser is in ``style_sharing``. Two priors say with whom:

* ``StyleAlignedPrior``: the first image of every batch is the reference of the others, in both
  halves of guidance. With ``draw_style_set`` it draws a set, or with a reference picture, whose
  inverted latents are put into the first row after every step.
* ``StyleReferencePrior``: rows of the reference picture ride along with every batch, noised to the
  batch's timesteps, and are cut off from the result. Samplers and guidance rules, whose rows may
  have different timesteps, take it as it is.

With a picture the authors' score shift is log 2, and SDXL shares its group norms, too; without one
neither is so.

Controls around a ``StyleAlignedPrior`` leave the reference free: their residuals are 0 in its row.
Controls inside of it act on all rows. Additions around a ``StyleReferencePrior`` act on its batch
alone. With nothing shared the prediction is the inner prior's bit for bit.

    images = draw_style_set(prior, ["a toy train.", "a toy plane."], generators=[...], config=...)
    prior = StyleReferencePrior(prior, noised_reference(prior, image, "a vase, watercolour"))
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from image_tools.configs import DdimConfig
from image_tools.diffusion.additions import DenoiserCall
from image_tools.diffusion.conditions import (
    Condition,
    TextEmbedding,
    as_condition,
    cat_embeddings,
)
from image_tools.diffusion.modified import ModifiedPrior, WrappedPrior, conditional_rows
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.sampling import denoise_latents, unit_noise
from image_tools.errors import UnsupportedModel
from image_tools.personalization.partial_addition import PartialAddition
from image_tools.personalization.photos import load_photo
from image_tools.personalization.style_aligned_configs import (
    StyleAlignedConfig,
    StyleSharingConfig,
)
from image_tools.personalization.style_references import (
    InvertedReference,
    StyleReference,
    noised_reference,
)
from image_tools.personalization.style_sharing import StyleRows, is_off, style_sharing
from renderers.errors import ShapeError, StudioError

__all__ = [
    "StyleAlignedPrior",
    "StyleReferencePrior",
    "draw_style_set",
    "load_style_reference",
    "styled",
]

ROLE = "style"


def styled(prompt: str, style: str) -> str:
    """A prompt with the words of a style, as published; itself where there are none."""
    return f"{prompt.rstrip(' .')}, {style.rstrip(' .')}." if style.strip() else prompt


class StyleAlignedPrior(ModifiedPrior):
    """A prior for batches of images in the style of their first."""

    def __init__(self, plain: NoisePrior, config: StyleSharingConfig | None = None) -> None:
        """Wrap a prior.

        Args:
            plain: the prior.
            config: what is shared; ``with_picture`` where the first row is one.
        """
        super().__init__(plain)
        self.config = config or StyleSharingConfig()
        self._is_off = is_off(self.config, plain.unet)

    def modify(self, condition: Condition, rows: int, *, is_cond: bool) -> Condition:
        """The condition, in which nothing controls the first row."""
        if self._is_off or not condition.additions:
            return condition
        condition = condition.expand(rows)
        free = _FreeRows(torch.arange(rows) == 0)
        return replace(condition, additions=(*condition.additions, free))

    def predict_output(
        self,
        latents: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        condition: Condition | TextEmbedding,
    ) -> Float[Tensor, "b c h w"]:
        """The denoiser's output; the rows are one batch, and every row counts as conditional."""
        with self._sharing(len(latents)):
            return super().predict_output(latents, t, condition)

    def guided_noise(
        self,
        latents: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        cond: Condition | TextEmbedding,
        uncond: Condition | TextEmbedding,
        guidance_scale: float,
        *,
        rescale: float = 0.0,
    ) -> Float[Tensor, "b c h w"]:
        """Guidance in which each half has the first row as its reference."""
        with self._sharing(len(latents)):
            return super().guided_noise(latents, t, cond, uncond, guidance_scale, rescale=rescale)

    def _sharing(self, batch: int) -> AbstractContextManager[None]:
        rows = StyleRows((0,) * batch)
        return style_sharing(self.unet, rows, self.config)


@dataclass(frozen=True)
class _FreeRows:
    """Takes the residuals of all additions before it out of some rows."""

    is_free: Bool[Tensor, " rows"]

    def __len__(self) -> int:
        return len(self.is_free)

    def expand(self, rows: int) -> _FreeRows:
        """Itself, which has all rows already."""
        return self

    def stack(self, others: Sequence[_FreeRows]) -> _FreeRows:
        """More rows."""
        return _FreeRows(torch.cat([self.is_free, *(other.is_free for other in others)]))

    def apply(self, call: DenoiserCall) -> DenoiserCall:
        """The call with zeros for the residuals of these rows."""
        if call.mid is None:
            return call
        is_free = self.is_free.to(call.mid.device).reshape(-1, 1, 1, 1)
        down = tuple(part.masked_fill(is_free, 0.0) for part in call.down)
        return replace(call, down=down, mid=call.mid.masked_fill(is_free, 0.0))


@dataclass(frozen=True)
class _Riders:
    """The rows of a reference beside those of a batch."""

    latents: Float[Tensor, "k c h w"]
    """One for every timestep of the batch, and for each half of guidance that is in it."""
    t: Int[Tensor, " k"]
    places: Int[Tensor, " b"]
    """Which of them each row of the batch looks at."""

    @property
    def rows(self) -> StyleRows:
        """The batch, and the reference's rows behind it."""
        batch = len(self.places)
        theirs = (self.places + batch).tolist()
        return StyleRows((*theirs, *range(batch, batch + len(self.t))))

    @property
    def hosts(self) -> Int[Tensor, " k"]:
        """The first row of the batch that looks at each of them."""
        return torch.stack([(self.places == k).nonzero()[0, 0] for k in range(len(self.t))])


class StyleReferencePrior(WrappedPrior):
    """A prior whose images are in the style of a picture."""

    def __init__(
        self,
        plain: NoisePrior,
        reference: StyleReference,
        config: StyleSharingConfig | None = None,
    ) -> None:
        """Encode the reference's prompt.

        Args:
            plain: the prior.
            reference: the picture.
            config: what is shared; what it leaves open is as published for pictures.

        Raises:
            StudioError: the config has all images see each other.
        """
        super().__init__(plain)
        self.reference = reference
        self.config = (config or StyleSharingConfig()).with_picture()
        if self.config.attention == "full":
            raise StudioError(
                "sharing.attention is full with a reference picture - expected reference or off."
            )
        self._is_off = is_off(self.config, plain.unet)
        with torch.no_grad():
            self._text = plain.encode_prompt([reference.prompt])

    def predict_output(
        self,
        latents: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        condition: Condition | TextEmbedding,
    ) -> Float[Tensor, "b c h w"]:
        """The denoiser's output; rows without roles count as conditional."""
        if self._is_off:
            return self.plain.predict_output(latents, t, condition)
        condition = as_condition(condition).expand(len(t))
        is_cond = conditional_rows(condition, len(t), is_cond=True)
        riders = self._riders(latents, t, is_cond)
        with self._sharing(riders):
            output = self.plain.predict_output(
                torch.cat([latents, riders.latents]),
                torch.cat([t, riders.t]),
                self._joined(condition, riders, is_cond),
            )
        return output[: len(latents)]

    def guided_noise(
        self,
        latents: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        cond: Condition | TextEmbedding,
        uncond: Condition | TextEmbedding,
        guidance_scale: float,
        *,
        rescale: float = 0.0,
    ) -> Float[Tensor, "b c h w"]:
        """Guidance; the reference is led away from what its first host is led away from."""
        if self._is_off:
            return self.plain.guided_noise(
                latents, t, cond, uncond, guidance_scale, rescale=rescale
            )
        told = torch.ones(len(t), dtype=torch.bool)
        riders = self._riders(latents, t, told)
        cond, uncond = as_condition(cond).expand(len(t)), as_condition(uncond).expand(len(t))
        with self._sharing(riders):
            noise = self.plain.guided_noise(
                torch.cat([latents, riders.latents]),
                torch.cat([t, riders.t]),
                self._joined(cond, riders, told),
                self._joined(uncond, riders, ~told),
                guidance_scale,
                rescale=rescale,
            )
        return noise[: len(latents)]

    def _riders(self, latents: Tensor, t: Tensor, is_cond: Bool[Tensor, " b"]) -> _Riders:
        keys, places = (2 * t + is_cond.to(t)).unique(return_inverse=True)
        steps = keys // 2
        return _Riders(self.reference.at(steps).to(latents), steps, places)

    def _sharing(self, riders: _Riders) -> AbstractContextManager[None]:
        return style_sharing(self.unet, riders.rows, self.config)

    def _joined(
        self, condition: Condition, riders: _Riders, is_cond: Bool[Tensor, " b"]
    ) -> Condition:
        """A condition and below it the reference's rows, to which nothing is added.

        Raises:
            UnsupportedModel: the rows are views with cameras.
            ShapeError: a tool around this prior gave text of another shape.
        """
        if condition.class_labels is not None:
            raise UnsupportedModel(
                "A style reference got views with cameras - expected single images. Use a "
                "single-view prior."
            )
        text, own = condition.text, self._text
        found, wanted = list(text.tokens.shape[1:]), list(own.tokens.shape[1:])
        if found != wanted:
            raise ShapeError(
                f"The text has shape {found}, the style reference's {wanted} - expected the same. "
                "Put tools that change the text inside of the style reference."
            )
        hosts, batch = riders.hosts, len(condition)
        halves = is_cond[hosts.cpu()].tolist()
        theirs = [
            own if told else text.select(host[None]).seen_from(None)
            for host, told in zip(hosts, halves, strict=True)
        ]
        roles = [f"{'cond' if told else 'uncond'}:{ROLE}" for told in halves]
        rows = batch + len(hosts)
        return Condition(
            cat_embeddings([text, *theirs]),
            roles=(*condition.roles, *roles) if condition.roles else (),
            additions=tuple(
                PartialAddition(addition, torch.arange(batch), rows)
                for addition in condition.additions
            ),
        )


def load_style_reference(config: StyleAlignedConfig, prior: NoisePrior) -> StyleReferencePrior:
    """A prior in the style of a config's picture, for samplers and guidance rules of any kind.

    Raises:
        PhotosError: the picture cannot be read.
        StudioError: there is none.
    """
    if config.image is None:
        raise StudioError(
            "tool.image is empty - expected a picture whose style is taken. Sets that take it from "
            "their first picture are drawn by task reference_image alone."
        )
    photo = load_photo(config.image, size=prior.image_size, config=config.photos)
    prompt = styled(config.image_prompt, config.style)
    reference = noised_reference(prior, photo[None], prompt, seed=config.seed)
    return StyleReferencePrior(prior, reference, config.sharing)


def draw_style_set(
    prior: NoisePrior,
    prompts: Sequence[str],
    *,
    generators: Sequence[torch.Generator],
    config: DdimConfig,
    sharing: StyleSharingConfig | None = None,
    reference: InvertedReference | None = None,
    negative_prompt: str = "",
) -> Float[Tensor, "n height width 3"]:
    """Pictures in one style: that of the first, or of a reference picture.

    Args:
        prior: draws; it may be modified by other tools.
        prompts: what is drawn.
        generators: one for each picture.
        config: of the sampler.
        sharing: what is shared.
        reference: a picture, inverted with as many steps.
        negative_prompt: for all of them.

    Raises:
        ValueError: the numbers of prompts and generators, or of steps, differ.
    """
    if len(prompts) != len(generators):
        raise ValueError(
            f"{len(prompts)} prompts came with {len(generators)} generators. Give one each."
        )
    size = prior.latent_size
    latents = unit_noise((prior.latent_channels, size, size), generators, prior.device)
    if reference is None:
        tool, after_step = StyleAlignedPrior(prior, sharing), None
    else:
        if len(reference.timesteps) != config.steps:
            raise ValueError(
                f"the sampler has {config.steps} steps and the reference was inverted with "
                f"{len(reference.timesteps)}. Give both the same."
            )
        tool = StyleAlignedPrior(prior, (sharing or StyleSharingConfig()).with_picture())
        after_step = reference.after_step
        prompts, latents = [reference.prompt, *prompts], torch.cat([reference.start, latents])
        generators = [torch.Generator(), *generators]  # the reference's own row is overwritten
    latents = denoise_latents(
        tool,
        latents,
        prior.encode_prompt(prompts),
        prior.encode_negative([negative_prompt]).expand(len(prompts)),
        generators=generators,
        config=config,
        after_step=after_step,
    )
    return prior.decode_latents(latents if reference is None else latents[1:])

"""Edits of pictures: for each seed the picture as it was, and what each edit makes of it.

    draw = make_editor(prior, config)
    source, *edited = draw(seed)

Words, masks and weights are looked at when the editor is made, before anything is drawn.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from image_tools.control.self_guidance import (
    Reference,
    ReferenceRecorder,
    SelfGuidedPrior,
    reference_of_latents,
)
from image_tools.control.self_guidance_configs import (
    MoveConfig,
    ResizeConfig,
    SelfGuidanceConfig,
    SelfGuidanceEdit,
)
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.sampling import sample_latents
from image_tools.editing.dds import DeltaBranch, edit_latents
from image_tools.editing.edit_weights import read_edit_unet
from image_tools.editing.editing_configs import (
    EditedPromptConfig,
    NullTextConfig,
    PromptToPromptConfig,
)
from image_tools.editing.instruct_pix2pix import InstructPix2PixPrior
from image_tools.editing.inversion import (
    Inversion,
    InvertedPrior,
    check_inversion_dtype,
    invert_latents,
    negative_prompt_inversion,
    null_text_inversion,
)
from image_tools.editing.prompt_to_prompt import PromptToPromptPrior, edit_images
from image_tools.pocket.paths import adapter_path
from studio.images.configs import EditImageConfig
from studio.images.method_configs import (
    DdsMethodConfig,
    InstructPix2PixMethodConfig,
    NullTextMethodConfig,
    PromptToPromptMethodConfig,
)
from studio.images.picture import Draw, Picture, draw_plainly, noise_of
from studio.images.reading import read_mask, read_picture

__all__ = ["make_editor"]


def make_editor(prior: DiffusionPrior, config: EditImageConfig) -> Draw:
    """What edits by the scene's method.

    Raises:
        WordsError: words or prompts do not fit.
        ConfigError: a picture cannot be read, or a mask has another size.
        WeightsMissing: the edit model is not there.
        UnsupportedModel: the prior is of a design that the method does not fit.
    """
    method = config.method
    if isinstance(method, PromptToPromptMethodConfig):
        return _PromptToPrompt(prior, config)
    if isinstance(method, NullTextMethodConfig):
        return _NullText(prior, config)
    if isinstance(method, DdsMethodConfig):
        return _DeltaDenoising(prior, config)
    if isinstance(method, InstructPix2PixMethodConfig):
        return _Instructed(prior, config)
    return _SelfGuided(prior, config)


class _Editor:
    """A prior, a scene, and the picture that is edited."""

    def __init__(self, prior: DiffusionPrior, config: EditImageConfig) -> None:
        self.prior, self.config, self.method = prior, config, config.method
        self.given: Tensor | None = None
        if config.image is not None:
            self.given = read_picture(config.image, "image", size=prior.image_size)
            self.given = self.given.to(prior.device)

    @torch.no_grad()
    def source(self, seed: int) -> tuple[Picture, Float[Tensor, "1 c h w"]]:
        """The picture before the edit and its latents."""
        config, prior = self.config, self.prior
        if self.given is not None:
            name = Path(config.image).name
            return self._before(name, self.given), prior.encode_images(self.given)
        latents = sample_latents(
            prior,
            prior.encode_prompt([config.prompt]),
            prior.encode_negative([config.negative_prompt]),
            generators=[noise_of(seed)],
            config=config.sampler,
        )
        return self._before(config.prompt, prior.decode_latents(latents)), latents

    def _before(self, caption: str, images: Float[Tensor, "1 h w 3"]) -> Picture:
        return Picture("source", f"source: {caption}", images[0], self.config.prompt)

    def _after(
        self, number: int, caption: str, image: Tensor, prompt: str | None = None
    ) -> Picture:
        return Picture(f"edit{number}", caption, image, prompt)

    def mask(self) -> Bool[Tensor, "h w"] | None:
        """Latents that edits may change; None for all of them."""
        if self.method.mask is None:
            return None
        size, side = self.prior.image_size, self.prior.latent_size
        mask = read_mask(self.method.mask, "method.mask", size=size)
        small = torch.nn.functional.adaptive_avg_pool2d(mask[None], side)[0]
        return (small > 0.5).to(self.prior.device)

    def shared_attention(self) -> PromptToPromptConfig:
        """The edits by attention."""
        method, steps = self.method, self.config.sampler.steps
        return PromptToPromptConfig(self.config.prompt, method.edits, method.blend, steps)

    def edited_by_attention(self, images: Float[Tensor, "prompts 1 h w 3"]) -> list[Picture]:
        """The edits among the images of source and edits."""
        return [
            self._after(number, _edit_caption(edit, self.config.prompt), image[0], edit.prompt)
            for number, (edit, image) in enumerate(
                zip(self.method.edits, images[1:], strict=True), start=1
            )
        ]


class _PromptToPrompt(_Editor):
    def __init__(self, prior: DiffusionPrior, config: EditImageConfig) -> None:
        super().__init__(prior, config)
        self.tool = PromptToPromptPrior(prior, self.shared_attention(), mask=self.mask())

    def __call__(self, seed: int) -> list[Picture]:
        images = edit_images(
            self.tool,
            generators=[noise_of(seed)],
            config=self.config.sampler,
            negative_prompt=self.config.negative_prompt,
        )
        return [self._before(self.config.prompt, images[0]), *self.edited_by_attention(images)]


class _NullText(_Editor):
    def __init__(self, prior: DiffusionPrior, config: EditImageConfig) -> None:
        super().__init__(prior, config)
        self.place = self.mask()
        if config.method.inversion == "null_text":
            check_inversion_dtype(prior)
        # Words that do not fit must be told before minutes of learning.
        PromptToPromptPrior(prior, self.shared_attention())

    def __call__(self, seed: int) -> list[Picture]:
        before, latents = self.source(seed)
        inversion = self._invert(latents)
        inverted = InvertedPrior(self.prior, inversion)
        images = edit_images(
            PromptToPromptPrior(inverted, self.shared_attention(), mask=self.place),
            generators=[noise_of(seed)],
            config=self.config.sampler,
            start=inversion.start,
        )
        back = Picture("inverted", "brought back", images[0, 0], self.config.prompt)
        return [before, back, *self.edited_by_attention(images)]

    def _invert(self, latents: Float[Tensor, "1 c h w"]) -> Inversion:
        prior, config, learning = self.prior, self.config, self.method.learning
        cond = prior.encode_prompt([config.prompt])
        path = invert_latents(prior, latents, cond, steps=config.sampler.steps)
        if self.method.inversion == "negative_prompt":
            return negative_prompt_inversion(prior, path, cond)
        tool = NullTextConfig(
            inner_steps=learning.inner_steps,
            learning_rate=learning.learning_rate,
            tolerance=learning.tolerance,
            tolerance_growth=learning.tolerance_growth,
            steps=config.sampler.steps,
            guidance_scale=config.sampler.guidance_scale,
        )
        uncond = prior.encode_negative([config.negative_prompt])
        return null_text_inversion(prior, path, cond, uncond, tool)


class _DeltaDenoising(_Editor):
    def __call__(self, seed: int) -> list[Picture]:
        before, latents = self.source(seed)
        prior, uncond = self.prior, self.prior.encode_negative([self.config.negative_prompt])
        source = DeltaBranch(latents, prior.encode_prompt([self.config.prompt]), uncond)
        pictures = [before]
        for number, prompt in enumerate(self.method.prompts, start=1):
            target = replace(source, cond=prior.encode_prompt([prompt]))
            edited = edit_latents(
                prior, target, source, generator=noise_of(seed), config=self.method.descent
            )
            image = prior.decode_latents(edited)[0]
            pictures.append(self._after(number, prompt, image, prompt))
        return pictures


class _Instructed(_Editor):
    def __init__(self, prior: DiffusionPrior, config: EditImageConfig) -> None:
        super().__init__(prior, config)
        method = self.method
        settings = None if method.settings is None else Path(method.settings)
        unet = read_edit_unet(
            adapter_path(method.model, role="method.model"), settings, prior.dtype
        )
        self.tool = InstructPix2PixPrior(
            prior,
            unet.to(prior.device),
            image_scale=method.image_scale,
            condition_latents=method.condition_latents,
        )

    def __call__(self, seed: int) -> list[Picture]:
        before, _ = self.source(seed)
        self.tool.show(before.image[None])
        instructed = [
            self._after(number, text, draw_plainly(self.tool, self.config, seed, text))
            for number, text in enumerate(self.method.instructions, start=1)
        ]
        return [before, *instructed]


class _SelfGuided(_Editor):
    def __init__(self, prior: DiffusionPrior, config: EditImageConfig) -> None:
        super().__init__(prior, config)
        method, strength = config.method, config.method.guidance
        self.tool = SelfGuidanceConfig(
            prompt=method.prompt or config.prompt,
            edits=method.edits,
            reference_prompt=config.prompt,
            steps=config.sampler.steps,
            scale=strength.scale,
            sigma_weight=strength.sigma_weight,
            full_steps=strength.full_steps,
            alternating_steps=strength.alternating_steps,
            levels=strength.levels,
            distance=strength.distance,
            features=strength.features,
        )
        SelfGuidedPrior(prior, self.tool, Reference(config.prompt))  # are the words there?

    def __call__(self, seed: int) -> list[Picture]:
        if self.given is None:
            recorder = ReferenceRecorder(self.prior, self.tool)
            image = draw_plainly(recorder, self.config, seed)
            before, reference = self._before(self.config.prompt, image[None]), recorder.reference
        else:
            before, latents = self.source(seed)
            reference = reference_of_latents(
                self.prior, self.tool, latents, generator=noise_of(seed)
            )
        guided = SelfGuidedPrior(self.prior, self.tool, reference)
        image = draw_plainly(guided, self.config, seed, self.tool.prompt)
        caption = "; ".join(_guided_caption(edit) for edit in self.method.edits)
        return [before, self._after(1, caption, image, self.tool.prompt)]


def _edit_caption(edit: EditedPromptConfig, source: str) -> str:
    """The edited prompt, and the words that weigh more or less."""
    weights = ", ".join(f"{one.word} x {one.weight:g}" for one in edit.word_weights)
    if not weights:
        return edit.prompt
    return weights if edit.prompt == source else f"{edit.prompt} ({weights})"


def _guided_caption(edit: SelfGuidanceEdit) -> str:
    """What an edit does, in a few words."""
    words = " ".join(map(str, edit.words)) or "everything"
    if isinstance(edit, MoveConfig):
        return f"move {words} by {edit.shift[0]:g}, {edit.shift[1]:g}"
    if isinstance(edit, ResizeConfig):
        return f"resize {words} by {edit.scale:g}"
    return f"{edit.kind.replace('_', ' ')}: {words}"

"""PhotoMaker (arXiv 2312.04461): a prior that draws the person of a few photos, without training.

A prompt holds a trigger behind the class word, "a portrait of a man img", which is taken out. The
noisy steps know the text alone, and later ones the person too (delayed merging):

    t >  t_merge   "a portrait of a man"
    t <= t_merge   the class word repeated for each row of the photos and fused with them,
                   tokens and pooled vector

The first share of the steps, ``style_strength`` percent, is text only; it sets composition, view
and style. The file's LoRA acts in all of them, and negative prompts are as ever. In 3D each view
follows its own timestep, so that view words decide the geometry and the person comes late.

Embeddings of this prior hold both texts side by side in their width, so samplers and guidance rules
need not know of it. ``merge_timestep`` counts timesteps; ``merge_timestep_of`` counts the steps of
a sampler as the authors' pipeline does, which leaves one step more to the text. Photos of several
people make one who looks like all of them, by the number of photos and their weights.

    prior = photomaker_prior(prior, read_photomaker(path), images, merge_t=merge_timestep(20, 1000))
    pictures = sample_images(prior, ["a portrait of a man img"], generators=[generator])
    with prior.off(): ...                     # predicts as the plain prior, bit for bit
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from image_tools.diffusion.conditions import (
    Condition,
    TextEmbedding,
    as_condition,
    cat_embeddings,
)
from image_tools.diffusion.lora_deltas import LoraFile
from image_tools.diffusion.modified import WrappedPrior
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.text import TextStack
from image_tools.errors import UnsupportedModel
from image_tools.personalization.ip_adapter_lora import SwitchedLora
from image_tools.personalization.photomaker_encoder import FuseModule, fuse_rows
from image_tools.personalization.photomaker_files import PhotoMakerFile
from image_tools.personalization.photomaker_prompts import split_trigger
from image_tools.personalization.photomaker_tokens import RepeatingTokenizer
from renderers.errors import StudioError

__all__ = [
    "Person",
    "PhotoMakerPrior",
    "encode_repeated",
    "merge_timestep",
    "merge_timestep_of",
    "photomaker_prior",
]


@dataclass(frozen=True)
class Person:
    """What photos say about somebody."""

    rows: Float[Tensor, "n width"]
    """Each takes the place of one copy of the class word."""
    fuse: FuseModule
    """Puts them there."""
    trigger: str = "img"
    """The word in prompts that stands behind the class word."""
    weights: Float[Tensor, " n"] | None = None
    """Factors of what takes those places, to mix several people unevenly; None for ones."""


def merge_timestep(style_strength: float, num_train_timesteps: int) -> int:
    """The first timestep that knows the person, where the noisiest percent do not."""
    return math.ceil((1.0 - style_strength / 100.0) * num_train_timesteps) - 1


def merge_timestep_of(style_strength: float, timesteps: Sequence[int]) -> int:
    """The same for the steps of a sampler: step number ``style_strength`` percent is still text."""
    last_text = int(style_strength / 100.0 * len(timesteps))
    later = timesteps[last_text + 1 :]
    return later[0] if later else -1


def encode_repeated(
    prior: DiffusionPrior, prompt: str, trigger: str, copies: int
) -> tuple[TextEmbedding, range]:
    """A prompt whose class word stands ``copies`` times, and where; nothing is cached.

    Raises:
        TriggerError: the prompt does not name one person, or the copies do not fit.
        UnsupportedModel: the text encoders disagree about the place.
    """
    towers = [
        replace(tower, tokenizer=RepeatingTokenizer(tower.tokenizer, trigger, copies=copies))
        for tower in prior.text.towers
    ]
    spans = {tower.tokenizer.span(prompt) for tower in towers}
    if len(spans) > 1:
        raise UnsupportedModel(
            f"The text encoders read '{prompt:.60}' as different numbers of tokens before the "
            "trigger. Expected encoders with one vocabulary, as those of SDXL."
        )
    stack = TextStack(lambda: towers, prior.text.layout, device=prior.text.device)
    return stack.encode([prompt]).to(prior.device), spans.pop()


class PhotoMakerPrior(WrappedPrior):
    """A prior that knows a person."""

    def __init__(
        self,
        plain: DiffusionPrior,
        person: Person,
        lora: LoraFile,
        *,
        merge_t: int,
        lora_weight: float = 1.0,
    ) -> None:
        """Wrap a prior.

        Args:
            plain: without tools around it; gets the LoRA, which acts in this prior's calls only.
            person: whom prompts with the trigger mean.
            lora: what the denoiser must be changed by to know people.
            merge_t: rows at this timestep and below know the person; -1 for none.
            lora_weight: factor of the LoRA.

        Raises:
            UnsupportedModel: encoder or LoRA were made for another kind of model.
            StudioError: ``plain`` has tools around it.
        """
        super().__init__(plain)
        if not isinstance(plain, DiffusionPrior):
            raise StudioError(
                f"PhotoMaker got a {type(plain).__name__} - expected a plain prior, whose text "
                "encoders it reads prompts with. Put other tools around it, not inside."
            )
        own, wanted = person.rows.shape[1], plain.unet.config.cross_attention_dim
        if own != wanted:
            raise UnsupportedModel(
                f"PhotoMaker's rows have {own} numbers, the denoiser reads text of {wanted}. "
                "Expected the prior that it was trained for: SDXL for the public weights."
            )
        self.person, self.merge_t = person, merge_t
        """May be changed between calls."""
        self._is_on, self._lora = True, None
        if lora_weight != 0.0:
            self._lora = SwitchedLora(plain, lora, weight=lora_weight)

    @property
    def fingerprint(self) -> str:
        """Hash of the model, the person and when they come in."""
        if not self._is_on:
            return self.plain.fingerprint
        weight = 0.0 if self._lora is None else self._lora.weight
        digest = hashlib.sha256(f"{self.plain.fingerprint}\0{self.merge_t}\0{weight}".encode())
        for part in (self.person.rows, self.person.weights):
            if part is not None:
                digest.update(part.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the plain prior predicts, for the prompts without their trigger."""
        was_on, self._is_on = self._is_on, False
        try:
            yield
        finally:
            self._is_on = was_on

    def remove(self) -> None:
        """Switch it off and take the LoRA off the plain prior; a second call does nothing."""
        if self._lora is not None:
            self._lora.remove()
        self._lora, self._is_on = None, False

    def encode_prompt(self, prompts: Sequence[str]) -> TextEmbedding:
        """Each prompt without and with the person, side by side.

        Raises:
            TriggerError: a prompt does not name one person.
        """
        parts = [split_trigger(prompt, self.person.trigger) for prompt in prompts]
        # First, so that the plain prior may drop its text encoders afterwards.
        fused = [self._fused(prompt) for prompt in prompts]
        texts = self.plain.encode_prompt([part.text for part in parts])
        return _beside(texts, cat_embeddings(fused))

    def encode_negative(self, prompts: Sequence[str]) -> TextEmbedding:
        """Negative prompts in the same layout."""
        text = self.plain.encode_negative(prompts)
        return _beside(text, text)

    def predict_output(
        self,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        condition: Condition | TextEmbedding,
    ) -> Float[Tensor, "b c s s"]:
        """The denoiser's output, with or without the person as each row's timestep says."""
        with self._acting():
            return self.plain.predict_output(latents, t, self._at(t, condition))

    def guided_noise(
        self,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        cond: Condition | TextEmbedding,
        uncond: Condition | TextEmbedding,
        guidance_scale: float,
        *,
        rescale: float = 0.0,
    ) -> Float[Tensor, "b c s s"]:
        """The plain prior's own guidance of what each row is told."""
        told, untold = self._at(t, cond), self._at(t, uncond)
        with self._acting():
            return self.plain.guided_noise(
                latents, t, told, untold, guidance_scale, rescale=rescale
            )

    def _acting(self) -> AbstractContextManager[None]:
        """Inside, the LoRA acts; outside, others may use the plain prior as it is."""
        is_plain = self._lora is None or not self._is_on
        return nullcontext() if is_plain else self._lora.on()

    @torch.no_grad()
    def _fused(self, prompt: str) -> TextEmbedding:
        person = self.person
        text, span = encode_repeated(self.plain, prompt, person.trigger, len(person.rows))
        tokens = fuse_rows(person.fuse, text.tokens, span, person.rows, weights=person.weights)
        return replace(text, tokens=tokens)

    def _at(self, t: Int[Tensor, " b"], condition: Condition | TextEmbedding) -> Condition:
        """What each row is told at its timestep."""
        condition = as_condition(condition)
        is_merged = (t <= self.merge_t) & self._is_on
        if not is_merged.any():
            return replace(condition, text=_half(condition.text, 0))
        if is_merged.all():
            return replace(condition, text=_half(condition.text, 1))
        condition = condition.expand(len(t))
        plain, merged = (_half(condition.text, index) for index in (0, 1))
        rows = torch.arange(len(t), device=t.device) + len(t) * is_merged
        return replace(condition, text=cat_embeddings([plain, merged]).select(rows))


def photomaker_prior(
    plain: DiffusionPrior,
    maker: PhotoMakerFile,
    images: Float[Tensor, "n h w 3"],
    *,
    faces: Float[Tensor, "n face"] | None = None,
    merge_t: int,
    trigger: str = "img",
    lora_weight: float = 1.0,
    photo_weights: Sequence[float] = (),
) -> PhotoMakerPrior:
    """A prior that knows the person of some photos; the ID encoder is used once and let go.

    Args:
        plain: gets the file's LoRA, which acts in the new prior's calls only.
        maker: as of ``read_photomaker``.
        images: photos of one person, or of several who are mixed, in 0..1.
        faces: embeddings of the faces in them, which v2 needs.
        merge_t: see ``PhotoMakerPrior``.
        trigger: the word behind the class word.
        lora_weight: factor of the LoRA.
        photo_weights: factor of each photo; empty for ones.

    Raises:
        StudioError: no photos, no faces where they are needed, or a prior with tools around it.
        UnsupportedModel: the file was made for another kind of model. The prior is unchanged.
    """
    encoder = maker.encoder.to(plain.device)
    with torch.no_grad():
        rows = encoder.identify(images, faces).flatten(0, 1)
    weights = None
    if photo_weights:
        weights = rows.new_tensor(photo_weights).repeat_interleave(encoder.tokens)
    person = Person(rows, encoder.fuse_module, trigger, weights)
    return PhotoMakerPrior(plain, person, maker.lora, merge_t=merge_t, lora_weight=lora_weight)


def _beside(first: TextEmbedding, second: TextEmbedding) -> TextEmbedding:
    pooled = None
    if first.pooled is not None and second.pooled is not None:
        pooled = torch.cat([first.pooled, second.pooled], dim=-1)
    return replace(first, tokens=torch.cat([first.tokens, second.tokens], dim=-1), pooled=pooled)


def _half(text: TextEmbedding, index: int) -> TextEmbedding:
    pooled = None if text.pooled is None else text.pooled.chunk(2, dim=-1)[index].contiguous()
    return replace(text, tokens=text.tokens.chunk(2, dim=-1)[index].contiguous(), pooled=pooled)

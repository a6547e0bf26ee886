"""Consistency guidance (DCO, Lee et al. 2024): a personalized model beside the one it came from.

    eps = eps_phi(0) + w_text (eps_phi(c_b) - eps_phi(0))
                     + sum_i w_i (eps_theta_i(c_s,i) - eps_phi(c_b))

phi is the prior with every student off, theta_i with one student on; c_b names the class, c_s,i
the subject. w_i = w_text with one student is ordinary guidance of it with the prior's negative;
w_i = 0 is the prior. Two students (a subject and a style) are two terms that share no weights.
Optionally each student's term is split along and across the guidance direction ``eps_phi(c_b) -
eps_phi(0)``, and its part along scaled by ``parallel`` (the idea of arXiv 2506.00607), against
over-saturation.

A ``ConsistencyPrior`` is a ``NoisePrior`` whose embeddings hold c_b and all c_s,i side by side in
their width, so that samplers, view prompts and guidance rules need not know of it. Its guidance
scale is w_text. Without guidance (``predict_output``, and rules that combine predictions by
themselves) it is the first student.

    prior = ConsistencyPrior(plain, [Student(loras={"subject": 1.0}, words={"<dog>": "dog"})])
    images = sample_images(prior, ["<dog> on the moon"], generators=[generator])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from image_tools.diffusion.conditions import (
    Condition,
    TextEmbedding,
    as_condition,
    cat_conditions,
)
from image_tools.diffusion.lora_apply import Modules, active_loras, loras_active, prior_modules
from image_tools.diffusion.modified import WrappedPrior
from image_tools.diffusion.parametrization import classifier_free_guidance, rescale_guidance
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.protocol import NoisePrior
from renderers.errors import StudioError

__all__ = ["ConsistencyPrior", "Student", "consistency_guidance", "consistency_of"]

# Below this squared length the prompt has no direction.
MIN_SQUARED_NORM = 1e-20


@dataclass(frozen=True)
class Student:
    """A personalization as consistency guidance needs it."""

    loras: Mapping[str, float]
    """Names and weights of the prior's LoRAs that make this student."""
    words: Mapping[str, str] = field(default_factory=dict)
    """For each placeholder of prompts the words that the base reads in its place."""
    scale: float = 3.0
    """w_i: 3 for images beside w_text 7.5; 10 to 30 beside 30 to 100 in 3D."""


def consistency_guidance(
    uncond: Float[Tensor, "b ..."],
    base: Float[Tensor, "b ..."],
    students: Sequence[Float[Tensor, "b ..."]],
    text_scale: float,
    scales: Sequence[float],
    *,
    parallel: float = 1.0,
) -> Float[Tensor, "b ..."]:
    """The formula above, of predictions in any one parametrisation."""
    guided = classifier_free_guidance(uncond, base, text_scale)
    for student, scale in zip(students, scales, strict=True):
        difference = student - base
        if parallel != 1.0:
            difference = _scale_parallel(difference, base - uncond, parallel)
        guided = guided + scale * difference
    return guided


def _scale_parallel(difference: Tensor, direction: Tensor, parallel: float) -> Tensor:
    """Scale the part of ``difference`` along ``direction``, sample by sample."""
    flat, axis = difference.flatten(1), direction.flatten(1)
    squared = axis.square().sum(dim=1, keepdim=True).clamp(min=MIN_SQUARED_NORM)
    along = (flat * axis).sum(dim=1, keepdim=True) / squared * axis
    return (flat + (parallel - 1.0) * along).reshape(difference.shape)


class ConsistencyPrior(WrappedPrior):
    """A prior and its students as one ``NoisePrior``; a critic may adapt its UNet as well."""

    def __init__(
        self, prior: DiffusionPrior, students: Sequence[Student], *, parallel: float = 1.0
    ) -> None:
        """Wrap a prior that has the students' LoRAs and words attached.

        Raises:
            StudioError: there is no student, a placeholder has two meanings, or the prior has tools
                around it.
        """
        if not students:
            raise StudioError("Consistency guidance got no student - expected at least one.")
        if not isinstance(prior, DiffusionPrior):
            raise StudioError(
                f"Consistency guidance got a {type(prior).__name__} - expected a plain prior, "
                "whose LoRAs the students are. Put other tools around it, not inside; an edit "
                "model (InstructPix2Pix) has a denoiser of its own, without these LoRAs."
            )
        super().__init__(prior)
        self.students, self.parallel = tuple(students), parallel
        """May be changed between calls, such as to raise w_i as a scene forms."""
        self.strength = 1.0
        """Factor of all w_i; may be changed between calls too."""
        prior.pin_text_encoder()
        words: dict[str, str] = {}
        for student in students:
            for token, meaning in student.words.items():
                if words.setdefault(token, meaning) != meaning:
                    raise StudioError(
                        f"'{token}' stands for '{words[token]}' and for '{meaning}' - expected one "
                        "class word for each placeholder."
                    )
        self._words = words

    @property
    def scales(self) -> list[float]:
        """w_i of each student."""
        return [self.strength * student.scale for student in self.students]

    def encode_prompt(self, prompts: Sequence[str]) -> TextEmbedding:
        """Each prompt as the base and as every student reads it, side by side."""
        return self._encode(prompts, self.plain.encode_prompt)

    def encode_negative(self, prompts: Sequence[str]) -> TextEmbedding:
        """Negative prompts in the same layout."""
        return self._encode(prompts, self.plain.encode_negative)

    def predict_output(
        self,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        condition: Condition | TextEmbedding,
    ) -> Float[Tensor, "b c s s"]:
        """The first student's output, in the denoiser's own parametrisation."""
        parts = self._split(as_condition(condition))
        with self._only(self.students[0]):
            return self.plain.predict_output(latents, t, parts[1])

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
        """Consistency guidance; ``guidance_scale`` is w_text, the students' scales are theirs.

        ``rescale`` compares with the conditional prediction that the result is a guidance of: the
        base's, moved towards the students by w_i / w_text.
        """
        batch = len(latents)
        parts = self._split(as_condition(cond).expand(batch))
        negative = self._split(as_condition(uncond).expand(batch))[0]
        with loras_active(self._modules(), self._base_loras()):
            both = self.plain.predict_output(
                torch.cat([latents, latents]),
                torch.cat([t, t]),
                cat_conditions([negative, parts[0]]),
            )
        out_uncond, out_base = both.chunk(2)
        outputs = []
        for student, part in zip(self.students, parts[1:], strict=True):
            with self._only(student):
                outputs.append(self.plain.predict_output(latents, t, part))
        guided = consistency_guidance(
            out_uncond, out_base, outputs, guidance_scale, self.scales, parallel=self.parallel
        )
        if rescale > 0.0:
            shares = [scale / guidance_scale if guidance_scale else 1.0 for scale in self.scales]
            reference = consistency_guidance(out_base, out_base, outputs, 1.0, shares)
            guided = rescale_guidance(guided, reference, rescale)
        return self.to_noise(guided, latents, t)

    def _modules(self) -> Modules:
        """Everything whose adapters must be switched: text encoders count once they are read."""
        _ = self.plain.text.towers
        return prior_modules(self.plain)

    def _own_loras(self) -> set[str]:
        return {name for student in self.students for name in student.loras}

    def _base_loras(self) -> dict[str, float]:
        """What acts on the prior beside all students: nothing of theirs, everything else."""
        own = self._own_loras()
        return {name: w for name, w in active_loras(self._modules()).items() if name not in own}

    @contextmanager
    def _only(self, student: Student) -> Iterator[None]:
        """Inside, one student acts on the prior."""
        with loras_active(self._modules(), {**self._base_loras(), **student.loras}):
            yield

    def _encode(self, prompts: Sequence[str], encode: Any) -> TextEmbedding:
        with loras_active(self._modules(), self._base_loras()):
            parts = [encode([_replaced(prompt, self._words) for prompt in prompts])]
        for student in self.students:
            others = {k: v for k, v in self._words.items() if k not in student.words}
            with self._only(student):
                parts.append(encode([_replaced(prompt, others) for prompt in prompts]))
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return replace(
            parts[0],
            tokens=torch.cat([part.tokens for part in parts], dim=-1),
            pooled=torch.cat(pooled, dim=-1) if pooled else None,
        )

    def _split(self, condition: Condition) -> list[Condition]:
        """The base's condition and the students'."""
        text, count = condition.text, 1 + len(self.students)
        tokens = text.tokens.chunk(count, dim=-1)
        pooled = [None] * count if text.pooled is None else text.pooled.chunk(count, dim=-1)
        texts = [
            replace(text, tokens=tokens[k].contiguous(), pooled=pooled[k]) for k in range(count)
        ]
        return [replace(condition, text=each) for each in texts]


def consistency_of(prior: NoisePrior) -> ConsistencyPrior | None:
    """The consistency guidance in a prior, below whatever modifies it; None where there is none."""
    while isinstance(prior, WrappedPrior):
        if isinstance(prior, ConsistencyPrior):
            return prior
        prior = prior.plain
    return None


def _replaced(prompt: str, words: Mapping[str, str]) -> str:
    """Placeholders by what they stand for; a longer one is not cut by one that it contains."""
    for token in sorted(words, key=len, reverse=True):
        prompt = prompt.replace(token, words[token])
    return prompt

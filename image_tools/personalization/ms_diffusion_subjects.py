"""Subjects of MS-Diffusion (arXiv 2406.07209) as their encoders see them, before they have places.

Images are seen by CLIP, phrases pooled by the prior's first text encoder as CLIP pools them; of
encoders that do not (pocket's), the mean of their states. Places come last, so that 3D scenes may
have others in each view.

    seen = see_subjects(prior, clip, config, images, prompt="a dog and a cat")
    subjects = seen.at(adapter)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.editing.align import PromptTokens, WordsError, tokenize_prompt
from image_tools.editing.phrases import phrase_starts
from image_tools.personalization.ms_diffusion import MSAdapter
from image_tools.personalization.ms_diffusion_attention import SubjectRows
from image_tools.personalization.ms_diffusion_configs import MSDiffusionConfig
from image_tools.vision.clip_images import ClipImages

__all__ = ["SeenSubjects", "phrase_embeddings", "see_subjects", "words_of_phrases"]

NOWHERE = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class SeenSubjects:
    """What is known of each image of each subject, in their order."""

    features: Float[Tensor, "images m width"]
    """CLIP's tokens."""
    phrases: Float[Tensor, "images phrase_width"]
    boxes: Float[Tensor, "images 4"]
    """Of the config; all 0 where a subject has none."""
    scales: Float[Tensor, " images"]
    words: Float[Tensor, "images length"]
    """1 for the text's tokens that name the subject; all 0 where nobody asked."""
    is_grounded: bool
    """Whether tokens start from boxes and phrases, not from learned latents."""

    @torch.no_grad()
    def at(
        self, adapter: MSAdapter, boxes: Float[Tensor, "rows images 4"] | None = None
    ) -> SubjectRows:
        """The subjects in boxes of their own in each row, or in those of the config in one row."""
        boxes = self.boxes[None] if boxes is None else boxes.to(self.boxes)
        rows, images = boxes.shape[:2]
        weight = next(adapter.parameters())
        tokens = adapter.image_proj(
            self.features.repeat(rows, 1, 1).to(weight),
            self.phrases.repeat(rows, 1).to(weight),
            boxes.flatten(0, 1).to(weight),
            torch.full((rows * images,), not self.is_grounded, device=weight.device),
        )
        return SubjectRows(
            tokens.unflatten(0, (rows, images)).to(boxes.device),
            boxes,
            self.scales.expand(rows, -1),
            self.words.expand(rows, -1, -1),
        )


@torch.no_grad()
def see_subjects(
    prior: DiffusionPrior,
    clip: ClipImages,
    config: MSDiffusionConfig,
    images: Sequence[Float[Tensor, "n h w 3"]],
    *,
    prompt: str | None = None,
) -> SeenSubjects:
    """Look at the subjects of a config.

    Args:
        prior: encodes phrases, and knows which of its tokens are which words.
        clip: image encoder that the adapter was trained with.
        config: phrases, boxes and scales.
        images: of each subject, in 0..1.
        prompt: of the picture, for layouts; None for boxes alone.

    Raises:
        WordsError: a phrase is not in the prompt, or not as often as subjects have it.
    """
    counts = torch.tensor([len(own) for own in images])
    subjects = [s for s, own in zip(config.subjects, images, strict=True) for _ in own]
    scales = [config.scale if s.scale is None else s.scale for s in subjects]
    words = torch.zeros(len(config.subjects), 1)
    if prompt is not None:
        tokens = tokenize_prompt(prior.text.towers[0].tokenizer, prompt)
        words = words_of_phrases(tokens, [subject.phrase for subject in config.subjects])
    device = prior.device
    return SeenSubjects(
        features=clip.hidden(torch.cat(list(images))),
        phrases=phrase_embeddings(prior, [subject.phrase for subject in subjects]),
        boxes=torch.tensor([subject.box or NOWHERE for subject in subjects], device=device),
        scales=torch.tensor(scales, device=device),
        words=words.repeat_interleave(counts, dim=0).to(device),
        is_grounded=config.grounding == "box_and_phrase",
    )


@torch.no_grad()
def phrase_embeddings(prior: DiffusionPrior, phrases: Sequence[str]) -> Float[Tensor, "n width"]:
    """One vector for each phrase, of the first text encoder."""
    tower = prior.text.towers[0]
    encoded = tower.tokenizer(
        list(phrases),
        padding="max_length",
        max_length=tower.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    device = next(tower.encoder.parameters()).device
    ids, mask = encoded.input_ids.to(device), encoded.attention_mask.to(device)
    if tower.encoder.config.model_type != "bert":
        output = tower.encoder(ids)
        # A CLIP with a projection (an SDXL refiner's) gives the projected vector first.
        pooled = output[0] if output[0].ndim == 2 else output.pooler_output
        return pooled.to(prior.device)
    # Its pooler is no part of the shipped weights.
    states = tower.encoder(ids, attention_mask=mask)[0]
    shares = mask.to(states) / mask.sum(dim=1, keepdim=True).to(states)
    return (shares[..., None] * states).sum(dim=1).to(prior.device)


def words_of_phrases(
    prompt: PromptTokens, phrases: Sequence[str]
) -> Float[Tensor, "phrases length"]:
    """1 for each phrase's tokens; of equal phrases the second one has the words' second place.

    Raises:
        WordsError: the prompt has one less often, or its text encoder does not read that far.
    """
    factors, named = torch.zeros(len(phrases), prompt.length), Counter()
    for row, phrase in zip(factors, phrases, strict=True):
        starts = phrase_starts(prompt.words, phrase)
        taken = named[phrase.lower()]
        named[phrase.lower()] += 1
        if len(starts) <= taken:
            raise WordsError(
                f"The phrase '{phrase}' stands {len(starts)} times in the prompt '{prompt.text}' - "
                f"expected at least {taken + 1}, one for each subject of that name. Use words of "
                "the prompt, or name the subject there."
            )
        own = range(starts[taken], starts[taken] + len(phrase.split()))
        places = [token for k in own for token in prompt.tokens_of[k]]
        if not places:
            raise WordsError(
                f"The phrase '{phrase}' of the prompt '{prompt.text}' lies behind the "
                f"{prompt.length} tokens that the text encoder reads. Shorten the prompt, or move "
                "it to the front."
            )
        row[places] = 1.0
    return factors

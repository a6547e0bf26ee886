"""MS-Diffusion (arXiv 2406.07209): several subjects of one's own in one picture, each in its box.

An adapter turns each subject's image, with its box and phrase, into tokens
(``ms_diffusion_resampler``), to which the denoiser attends inside of the box beside the text
(``ms_diffusion_attention``). The unconditional half has no subjects and is text alone. Scales of
0 are the inner prior bit for bit.

Works with any prior of the Stable Diffusion family: phrases are pooled by the first text encoder,
as CLIP pools them; of encoders that do not (pocket's), the mean of their states.

    adapter = read_ms_adapter(Path("ms_adapter.bin"), prior.unet)
    subjects = encode_subjects(prior, clip, adapter, config, images, prompt="a dog and a cat")
    prior = MSDiffusionPrior(prior, adapter, subjects)
    images = sample_images(prior, ["a dog and a cat"], generators=[generator])
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.diffusion.additions import DenoiserCall
from image_tools.diffusion.attention import AttentionHub
from image_tools.diffusion.conditions import Condition
from image_tools.diffusion.modified import ModifiedPrior, conditional_rows
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.sampling import ddim_steps
from image_tools.diffusion.step_clock import StepClock
from image_tools.editing.align import PromptTokens, WordsError, tokenize_prompt
from image_tools.editing.phrases import phrase_starts
from image_tools.errors import UnsupportedModel
from image_tools.personalization.ms_diffusion_attention import (
    PhraseMaps,
    SubjectAttention,
    SubjectRows,
)
from image_tools.personalization.ms_diffusion_configs import (
    AutoLayoutConfig,
    MSDiffusionConfig,
    MSShape,
)
from image_tools.personalization.ms_diffusion_resampler import GroundingResampler
from image_tools.vision.clip_images import ClipImages

__all__ = [
    "MSAdapter",
    "MSDiffusionPrior",
    "SubjectAddition",
    "encode_subjects",
    "phrase_embeddings",
    "stack_subjects",
    "words_of_phrases",
]

NOWHERE = (0.0, 0.0, 0.0, 0.0)


class ImageProjections(nn.Module):
    """Keys and values of one layer for images."""

    def __init__(self, width: int, inner: int) -> None:
        """From tokens of ``width`` to the layer's ``inner``."""
        super().__init__()
        self.to_k_ip = nn.Linear(width, inner, bias=False)
        self.to_v_ip = nn.Linear(width, inner, bias=False)


class MSAdapter(nn.Module):
    """Everything that MS-Diffusion adds to a denoiser, by the names of the published file."""

    def __init__(self, unet: nn.Module, shape: MSShape) -> None:
        """An adapter of a denoiser's layers, untrained.

        Raises:
            UnsupportedModel: the denoiser's text has another width.
        """
        super().__init__()
        self.shape = shape
        self.image_proj = GroundingResampler(shape)
        self.ms_adapter = nn.ModuleDict()
        for index, layer in _text_layers(unet).items():
            inner, width = layer.to_k.weight.shape
            if width != shape.text_width:
                raise UnsupportedModel(
                    f"The denoiser reads text of {width} numbers, the adapter was made for "
                    f"{shape.text_width}. Expected an adapter of this prior's family."
                )
            self.ms_adapter[str(index)] = ImageProjections(width, inner)
        self.dummy_image_tokens = nn.Parameter(torch.randn(1, shape.dummies, shape.text_width))

    @torch.no_grad()
    def start(self, unet: nn.Module, generator: torch.Generator) -> None:
        """Initial values: the denoiser's own projections of text, and draws for the rest."""
        self.image_proj.draw(generator)
        self.dummy_image_tokens.normal_(generator=generator)
        for index, layer in _text_layers(unet).items():
            own = self.projections[index]
            own.to_k_ip.weight.copy_(layer.to_k.weight)
            own.to_v_ip.weight.copy_(layer.to_v.weight)

    @property
    def projections(self) -> dict[int, nn.Module]:
        """Projections by the index of their layer."""
        return {int(index): own for index, own in self.ms_adapter.items()}


def _text_layers(unet: nn.Module) -> dict[int, nn.Module]:
    """Layers that see the text, by their index."""
    layers = [layer for layer in AttentionHub(unet).layers if layer.is_cross]
    return {layer.index: unet.get_submodule(layer.name) for layer in layers}


class MSDiffusionPrior(ModifiedPrior):
    """A prior whose pictures hold subjects."""

    def __init__(
        self,
        plain: NoisePrior,
        adapter: MSAdapter,
        subjects: SubjectRows,
        *,
        layout: AutoLayoutConfig | None = None,
        steps: int | None = None,
    ) -> None:
        """Wrap a prior.

        Args:
            plain: the prior that the adapter was trained for.
            adapter: makes tokens and attends to them.
            subjects: one row, or one for each image of a batch.
            layout: finds places while a sampler draws; None for boxes alone.
            steps: number of steps of that sampler, for ``layout``.

        Raises:
            ValueError: a layout without steps.
        """
        super().__init__(plain)
        self.adapter, self.subjects = adapter, subjects
        self.maps, self.clock = None, None
        if layout is None:
            return
        if steps is None:
            raise ValueError("a layout came without steps. Give the sampler's number of them.")
        self.maps = PhraseMaps(layout)
        self.clock = StepClock([step.t for step in ddim_steps(plain, steps)])

    def showing(self, subjects: SubjectRows) -> MSDiffusionPrior:
        """The same prior with other subjects, or the same ones at other places."""
        moved = copy.copy(self)
        moved.subjects = subjects
        return moved

    def modify(self, condition: Condition, rows: int, *, is_cond: bool) -> Condition:
        """The condition with its subjects; none of them in unconditional rows."""
        if not bool(self.subjects.scales.any()):
            return condition
        condition = condition.expand(rows)
        sees = conditional_rows(condition, rows, is_cond=is_cond)
        subjects = self.subjects.repeated(rows).kept(sees)
        addition = SubjectAddition(self.adapter, subjects, self.maps, self.clock)
        return replace(condition, additions=(*condition.additions, addition))


@dataclass(frozen=True)
class SubjectAddition:
    """Subjects for the rows of a denoiser call."""

    adapter: MSAdapter
    subjects: SubjectRows
    maps: PhraseMaps | None
    clock: StepClock | None

    def __len__(self) -> int:
        return len(self.subjects)

    def expand(self, rows: int) -> SubjectAddition:
        """Itself, or its rows repeated."""
        return replace(self, subjects=self.subjects.repeated(rows))

    def stack(self, others: Sequence[SubjectAddition]) -> SubjectAddition:
        """More rows of the same adapter."""
        return replace(self, subjects=self.subjects.below([o.subjects for o in others]))

    def apply(self, call: DenoiserCall) -> DenoiserCall:
        """The call with attention to the subjects."""
        operation = SubjectAttention(
            self.adapter.projections,
            self.adapter.dummy_image_tokens,
            self.subjects,
            maps=self.maps,
            step=0 if self.clock is None else self.clock.step(call.t),
        )
        return call.with_operations(operation)


@torch.no_grad()
def encode_subjects(
    prior: DiffusionPrior,
    clip: ClipImages,
    adapter: MSAdapter,
    config: MSDiffusionConfig,
    images: Sequence[Float[Tensor, "n h w 3"]],
    *,
    prompt: str | None = None,
) -> SubjectRows:
    """The subjects of one picture, a place for each of their images.

    Args:
        prior: encodes phrases, and knows which of its tokens are which words.
        clip: image encoder that the adapter was trained with.
        adapter: makes the tokens.
        config: phrases, boxes and scales.
        images: of each subject, in 0..1.
        prompt: of the picture, for layouts; None for boxes alone.

    Raises:
        WordsError: a phrase is not in the prompt, or not as often as subjects have it.
    """
    counts = torch.tensor([len(own) for own in images])
    subjects = [s for s, own in zip(config.subjects, images, strict=True) for _ in own]
    boxes = torch.tensor([subject.box or NOWHERE for subject in subjects], device=prior.device)
    scales = [config.scale if s.scale is None else s.scale for s in subjects]
    weight = next(adapter.parameters())
    made = adapter.image_proj(
        clip.hidden(torch.cat(list(images))).to(weight),
        phrase_embeddings(prior, [subject.phrase for subject in subjects]).to(weight),
        boxes.to(weight),
        torch.full((len(subjects),), config.grounding == "learned", device=weight.device),
    )
    words = torch.zeros(len(config.subjects), 1)
    if prompt is not None:
        tokens = tokenize_prompt(prior.text.towers[0].tokenizer, prompt)
        words = words_of_phrases(tokens, [subject.phrase for subject in config.subjects])
    return SubjectRows(
        made[None].to(prior.device),
        boxes[None],
        boxes.new_tensor(scales)[None],
        words.repeat_interleave(counts, dim=0)[None].to(boxes),
    )


def stack_subjects(rows: Sequence[SubjectRows]) -> SubjectRows:
    """Subjects of several images of a batch; where one has fewer, the rest are nowhere."""
    most = max(row.boxes.shape[1] for row in rows)
    return rows[0].padded(most).below([row.padded(most) for row in rows[1:]])


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
        return tower.encoder(ids).pooler_output.to(prior.device)
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

"""Personalized results on a prior: LoRA files, words, and the weights of a full DreamBooth.

Words that a LoRA file brings along (``bundle_emb``) are attached with it, as A1111 does; a file
under ``embeddings`` comes before a bundled word of the same name.

Attached in place, so that samplers, scenes, guidance rules and critics see the prior they know.
Its fingerprint says at every moment what acts on it, so cached prompts are never stale. Inside
``off()`` and after ``remove()`` it predicts bit for bit as before.

    attached = attach_subjects(prior, [SubjectConfig(loras=(LoraUseConfig("dog.safetensors"),))])
    with attached.off(): ...
    prior = personalized_prior(prior, subjects, guidance="consistency")
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor, nn

from image_tools.diffusion.loading import read_tensors
from image_tools.diffusion.lora_apply import (
    active_loras,
    attach_to_prior,
    detach_from_prior,
    loras_active,
    prior_modules,
)
from image_tools.diffusion.lora_deltas import LoraFile
from image_tools.diffusion.lora_files import read_lora
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.weights import check_safetensors_file, find_weights
from image_tools.errors import UnsupportedModel
from image_tools.personalization.consistency import ConsistencyPrior, Student
from image_tools.personalization.embedding_files import bundled_words, read_embeddings
from image_tools.personalization.personalized_configs import GuidanceMix, SubjectConfig
from image_tools.personalization.tokens import attach_tokens
from renderers.errors import StudioError

__all__ = ["AttachedSubjects", "attach_subjects", "personalized_prior"]

logger = logging.getLogger(__name__)

WEIGHTS_ROLE = "DreamBooth"
ORIGIN_ROLE = "the model that DreamBooth began with"
PART = "weights"


class AttachedSubjects:
    """Subjects on a prior until ``remove``."""

    def __init__(self, prior: DiffusionPrior, subjects: Sequence[SubjectConfig]) -> None:
        """Attach all of them, or none if one cannot be."""
        self.prior, self.loras = prior, [dict[str, float]() for _ in subjects]
        self._weights: list[_ReplacedWeights] = []
        with ExitStack() as undo:
            for index, subject in enumerate(subjects):
                self._attach(index, subject, undo)
            self._undo = undo.pop_all()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the prior predicts as it did; the subjects' words stay known to it."""
        _ = self.prior.text.towers  # adapters of text encoders that are not read would stay on
        modules, own = prior_modules(self.prior), {n for loras in self.loras for n in loras}
        others = {n: w for n, w in active_loras(modules).items() if n not in own}
        with loras_active(modules, others), ExitStack() as stack:
            for weights in self._weights:
                stack.enter_context(weights.off())
            yield

    def remove(self) -> None:
        """Leave the prior as it was found; a second call does nothing."""
        self._undo.close()
        self.loras, self._weights = [], []

    def keep(self) -> None:
        """Let go of what the subjects replaced, the half of the memory; then there is no way back.

        The prior stays as it is. ``off`` and ``remove`` are over.
        """
        for weights in self._weights:
            weights.keep()
        self._undo.pop_all()

    def _attach(self, index: int, subject: SubjectConfig, undo: ExitStack) -> None:
        prior = self.prior
        if subject.weights is not None:
            if self._weights:
                raise StudioError(
                    "Two subjects have DreamBooth weights - expected one: each replaces the whole "
                    "denoiser. Train the second subject as a LoRA."
                )
            origin = subject.weights_from and Path(subject.weights_from).expanduser()
            weights = _ReplacedWeights(prior, Path(subject.weights).expanduser(), origin)
            self._weights.append(weights)
            undo.callback(self._weights[-1].remove)
        given = set[str]()
        for use in subject.embeddings:
            words = read_embeddings(Path(use.path).expanduser(), token=use.token)
            undo.callback(attach_tokens(prior, words, fix_eos=use.fix_eos).remove)
            given |= {word.token.casefold() for word in words}
        per_block = getattr(prior.unet.config, "layers_per_block", 2)
        for position, use in enumerate(subject.loras):
            name = f"subject{index}_{position}"
            lora = read_lora(
                Path(use.path), layers_per_block=per_block if isinstance(per_block, int) else 2
            )
            attach_to_prior(prior, lora, name=name, weight=use.weight)
            undo.callback(detach_from_prior, prior, name)
            self.loras[index][name] = use.weight
            if Path(use.path) not in {Path(word.path) for word in subject.embeddings}:
                self._attach_bundled(lora, use.path, given, undo)

    def _attach_bundled(
        self, lora: LoraFile, path: str, given: Collection[str], undo: ExitStack
    ) -> None:
        """The words that a LoRA brings along, but for those that the subject has files for."""
        words = []
        for word in bundled_words(lora.embeddings):
            if word.token.casefold() in given:
                logger.info("The word '%s' of '%s' is that of embeddings.", word.token, path)
            else:
                words.append(word)
        if not words:
            return
        try:
            undo.callback(attach_tokens(self.prior, words).remove)
        except StudioError as error:
            raise type(error)(
                f"'{path}' brings words along: {error} To call one otherwise, list the file under "
                "embeddings too, with a token."
            ) from error


def attach_subjects(prior: DiffusionPrior, subjects: Sequence[SubjectConfig]) -> AttachedSubjects:
    """Attach personalized results to a prior; all of them act together.

    Raises:
        WeightsMissing: a file is absent or damaged; UnsafeWeights if it is an unsafe pickle.
        UnsupportedModel: a file was made for another kind of model.
        StudioError: names or weights exclude each other. In all cases the prior is unchanged.
    """
    return AttachedSubjects(prior, subjects)


def personalized_prior(
    prior: DiffusionPrior,
    subjects: Sequence[SubjectConfig],
    *,
    guidance: GuidanceMix,
    parallel: float = 1.0,
) -> DiffusionPrior | ConsistencyPrior:
    """A prior with subjects, for good.

    Args:
        prior: gets the subjects attached.
        subjects: what to attach.
        guidance: plain lets all act together; consistency keeps the prior beside each of them.
        parallel: see ``consistency``.

    Raises:
        StudioError: as ``attach_subjects``; and DreamBooth weights with consistency guidance.
    """
    if guidance == "consistency":
        _check_students(subjects)
    attached = attach_subjects(prior, subjects)
    if guidance == "plain":
        attached.keep()
        return prior
    students = [
        Student(
            loras,
            {subject.token: subject.word} if subject.token and subject.word else {},
            subject.consistency_scale,
        )
        for loras, subject in zip(attached.loras, subjects, strict=True)
    ]
    return ConsistencyPrior(prior, students, parallel=parallel)


def _check_students(subjects: Sequence[SubjectConfig]) -> None:
    for subject in subjects:
        if subject.weights is not None:
            raise StudioError(
                f"weights is '{subject.weights}' with consistency guidance - expected LoRAs, which "
                "can be switched off for the prior's own prediction. Train with DCO or "
                "dreambooth_lora, or use guidance: plain."
            )


class _ReplacedWeights:
    """Trained weights in the place of a prior's own."""

    def __init__(self, prior: DiffusionPrior, path: Path, origin: Path | None) -> None:
        """Put them in.

        Args:
            prior: what they were trained from, or a relative of it.
            path: the trained weights.
            origin: folder of the model they were trained from; None if that is the prior.
        """
        check_safetensors_file(path, role=WEIGHTS_ROLE)
        tensors = read_tensors([path], WEIGHTS_ROLE)
        self._prior, self._pairs = prior, []
        targets = _targets(prior, tensors, path)
        if origin is not None:
            tensors = _carried(tensors, targets, origin)
        digest = hashlib.sha256()
        for name, parameter in targets.items():
            own = tensors[name].to(parameter.device, parameter.dtype)
            digest.update(name.encode())
            digest.update(tensors[name].float().contiguous().numpy().tobytes())
            self._pairs.append((parameter, own, parameter.data))
        self._digest, self._is_on = digest.hexdigest()[:32], False
        prior.fingerprint_parts[PART] = lambda: self._digest if self._is_on else ""
        self._switch(True)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the prior's own weights."""
        self._switch(False)
        try:
            yield
        finally:
            self._switch(True)

    def remove(self) -> None:
        """The prior's own weights again, for good."""
        self._switch(False)
        del self._prior.fingerprint_parts[PART]

    def keep(self) -> None:
        """Let go of the prior's own weights."""
        self._pairs.clear()

    def _switch(self, is_on: bool) -> None:
        for parameter, own, base in self._pairs:
            parameter.data = own if is_on else base
        self._is_on = is_on


def _carried(
    tensors: Mapping[str, Tensor], targets: Mapping[str, nn.Parameter], origin: Path
) -> dict[str, Tensor]:
    """The prior's own weights and what was learned by a relative, added.

    Raises:
        UnsupportedModel: the weights are not those of a denoiser alone, or were trained from
            another model.
        WeightsMissing: there is no denoiser in the folder.
    """
    files = find_weights(origin / "unet", "diffusion_pytorch_model", role=ORIGIN_ROLE)
    before = {f"unet.{name}": one for name, one in read_tensors(files, ORIGIN_ROLE).items()}
    found = {}
    for name, tensor in tensors.items():
        base = before.get(name)
        if base is None or base.shape != tensor.shape:
            raise UnsupportedModel(
                f"'{origin}' has no weights '{name}' of shape {list(tensor.shape)}. Expected in "
                "weights_from the model that the weights were trained from, and weights of its "
                "denoiser alone."
            )
        own = targets[name].data.float().cpu()
        found[name] = own + (tensor.float() - base.float())
    return found


def _targets(
    prior: DiffusionPrior, tensors: Mapping[str, Tensor], path: Path
) -> dict[str, nn.Parameter]:
    """The parameters that the tensors replace."""
    if any(not name.startswith("unet.") for name in tensors):
        _ = prior.text.towers
        prior.pin_text_encoder()
    known = {
        f"{section}.{name.replace('.base_layer.', '.')}": parameter
        for section, module in prior_modules(prior).items()
        for name, parameter in module.named_parameters()
    }
    found = {}
    for name, tensor in tensors.items():
        parameter = known.get(name)
        if parameter is None or parameter.shape != tensor.shape:
            there = "absent" if parameter is None else f"{list(parameter.shape)}"
            raise UnsupportedModel(
                f"'{path}' has weights '{name}' of shape {list(tensor.shape)}, which are {there} "
                "in the prior. Expected a DreamBooth checkpoint that was trained from this prior."
            )
        found[name] = parameter
    return found

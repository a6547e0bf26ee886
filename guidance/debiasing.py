"""Prompt debiasing: each view's prompt without the words that speak against that view.

"Debiasing Scores and Prompts of 2D Diffusion for View-consistent Text-to-3D Generation" (arXiv
2303.15413, section 4.2). A masked language model says how likely each view is for a prompt; a word
without which a view becomes more likely is left out of that view's prompt:

    p(view | prompt) / p(view | prompt without the word) < threshold

"a smiling cat" loses its "smiling" in the prompt of the back view, because smiles are seen from the
front. Deviations from the authors' code: the plain ratio above instead of one that is averaged with
1 first, and a view that would lose all its words keeps its prompt.

    prompts = debias_prompt(DebiasConfig(model="~/models/bert-base-uncased"), "a smiling cat")
    prompts["back"]
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.debiasing_configs import DebiasConfig
from guidance.views import VIEWS
from image_tools.diffusion.loading import quiet_libraries, readable_weights
from image_tools.diffusion.weights import find_weights
from image_tools.errors import WeightsMissing

__all__ = [
    "MaskedLanguageModel",
    "debias_prompt",
    "find_masked_language_model",
    "load_masked_language_model",
    "view_odds",
]

logger = logging.getLogger(__name__)

QUESTION = "This image is depicting a {view} view of {prompt}"  # the authors' wording
ROLE = "prompt debiasing"


@dataclass(frozen=True)
class MaskedLanguageModel:
    """A transformers tokenizer and its masked language model."""

    tokenizer: Any
    model: torch.nn.Module


def find_masked_language_model(folder: str) -> list[Path]:
    """The weight files of a model in a folder on this machine.

    Raises:
        WeightsMissing: the folder or its weights are not there; UnsafeWeights for pickles.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise WeightsMissing(
            f"Weights for {ROLE} are missing: '{folder}'. Expected the folder of a masked language "
            "model, such as bert-base-uncased; set debias.model, or leave debias out."
        )
    return find_weights(path, "model", role=ROLE, variant=None)


def load_masked_language_model(folder: str) -> MaskedLanguageModel:
    """Read a model from a folder on this machine; pickles are refused.

    Raises:
        WeightsMissing: the folder or its weights are not there, or are no masked language model.
    """
    path = find_masked_language_model(folder)[0].parent
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    with readable_weights(path, ROLE), quiet_libraries():
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model, info = AutoModelForMaskedLM.from_pretrained(
            path, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    if info["missing_keys"] or tokenizer.mask_token_id is None:
        lack = min(info["missing_keys"], default="a mask token")
        raise WeightsMissing(
            f"Weights for {ROLE} in '{folder}' lack '{lack}'. Expected a masked language model; an "
            "encoder without its word prediction does not fit."
        )
    return MaskedLanguageModel(tokenizer, model.eval().requires_grad_(False))


def debias_prompt(
    config: DebiasConfig, prompt: str, language_model: MaskedLanguageModel | None = None
) -> dict[str, str]:
    """The prompt of each of ``VIEWS``, without the words that speak against it.

    Args:
        config: model folder, threshold, and which words may go.
        prompt: the scene's prompt.
        language_model: a model already read; by default that of the config.

    Raises:
        WeightsMissing: the model is not there.
        ValueError: a word of the config is not in the prompt.
    """
    words = prompt.split()
    absent = [word for word in config.words if word not in words]
    if absent:
        raise ValueError(f"debias.words has {absent[0]!r}, which is not a word of {prompt!r}.")
    movable = [i for i, word in enumerate(words) if not config.words or word in config.words]
    if len(words) < 2 or not movable:
        return dict.fromkeys(VIEWS, prompt)
    language_model = language_model or load_masked_language_model(config.model)
    shorter = [" ".join(words[:i] + words[i + 1 :]) for i in movable]
    odds = view_odds(language_model, [" ".join(words), *shorter])
    ratio = odds[0] / odds[1:]  # [movable words, views]
    prompts = {}
    for column, view in enumerate(VIEWS):
        dropped = {i for i, r in zip(movable, ratio[:, column]) if float(r) < config.threshold}
        kept = [word for i, word in enumerate(words) if i not in dropped]
        prompts[view] = " ".join(kept) if kept and dropped else prompt
        if prompts[view] != prompt:
            logger.info("The prompt of the %s view is '%s'.", view, prompts[view])
    return prompts


@torch.no_grad()
def view_odds(
    language_model: MaskedLanguageModel, prompts: list[str]
) -> Float[Tensor, "prompts views"]:
    """p(view | prompt) over ``VIEWS``, from the model's guess at a masked word.

    A view that the tokenizer writes in several pieces gets as many masks, and the geometric mean of
    their probabilities.
    """
    log_odds = torch.stack([_log_probability(language_model, view, prompts) for view in VIEWS], 1)
    return log_odds.softmax(dim=1)


def _log_probability(
    language_model: MaskedLanguageModel, view: str, prompts: list[str]
) -> Float[Tensor, " prompts"]:
    """Mean log probability of the pieces of ``view`` in place of the masks."""
    tokenizer = language_model.tokenizer
    pieces = tokenizer(view, add_special_tokens=False).input_ids
    masks = " ".join([tokenizer.mask_token] * len(pieces))
    texts = [QUESTION.format(view=masks, prompt=prompt) for prompt in prompts]
    encoded = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    logits = language_model.model(**encoded).logits.log_softmax(dim=-1)
    places = encoded.input_ids == tokenizer.mask_token_id
    places &= places.cumsum(dim=1) <= len(pieces)  # a prompt may hold the mask's own spelling
    at_masks = logits[places].reshape(len(prompts), len(pieces), -1)
    wanted = torch.tensor(pieces).expand(len(prompts), -1)[..., None]
    return at_masks.gather(2, wanted).mean(dim=(1, 2))

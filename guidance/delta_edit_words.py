"""Which words of two scenes' prompts share attention in a view: those of its texts as encoded.

Words for views stand behind a prompt, so that in prompts of unlike lengths they have other places,
and so has the end. Each view's texts are aligned with them. Views between two directions count as
the nearer one.

Deviation from the texts themselves: words that ``guidance.debiasing`` left out of some views' text
are not known here; words behind them are paired as if they were there.

    sharing = ViewSharing(config, prior, original.prompts, prompts)
    for rows, shared in sharing.groups(cameras, t): ...
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from guidance.delta_edit_configs import SharedAttentionConfig
from guidance.prompts import DirectionalPrompts, InterpolatedPrompts, ViewPrompts, view_texts
from guidance.views import OVERHEAD, CameraAngles, azimuth_mix, direction_index, sided_row
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.editing.editing_configs import EditedPromptConfig, PromptToPromptConfig
from image_tools.editing.prompt_to_prompt import PromptToPromptPrior

__all__ = ["ViewSharing", "texts_at"]


def texts_at(prompts: ViewPrompts, cameras: CameraAngles) -> list[str]:
    """The text of each view, with its words for the view; of views in between, the nearer one."""
    azimuth, elevation = cameras.azimuth_deg, cameras.elevation_deg
    if isinstance(prompts, DirectionalPrompts):
        index = direction_index(azimuth, elevation, prompts.config)
    elif isinstance(prompts, InterpolatedPrompts):
        mix = azimuth_mix(azimuth)
        index = torch.where(mix.closeness >= 0.5, mix.near, mix.far)
        index = index.masked_fill(elevation > prompts.config.overhead_deg, OVERHEAD)
    else:
        return [prompts.prompt] * len(azimuth)
    texts = view_texts(prompts.config.words, prompts.prompt)
    return [texts[row] for row in sided_row(index, azimuth).tolist()]


class ViewSharing:
    """A prior whose rows [source, target] share attention, for each pair of texts of a view."""

    def __init__(
        self,
        config: SharedAttentionConfig,
        prior: DiffusionPrior,
        source: ViewPrompts,
        target: ViewPrompts,
    ) -> None:
        """Align the prompts without words for views, to say at once what does not fit.

        Args:
            config: how much is shared.
            prior: what predicts the noise.
            source: of the scene before the edit.
            target: of the edited scene.

        Raises:
            StudioError: prompts to swap word by word differ in their number of words.
        """
        self.config, self.prior, self.source, self.target = config, prior, source, target
        self._priors: dict[tuple[str, str], PromptToPromptPrior] = {}
        self.between(source.prompt, target.prompt)

    def between(self, source: str, target: str) -> PromptToPromptPrior:
        """The prior for two texts; the same one where texts align alike."""
        if (source, target) not in self._priors:
            made = self._made(source, target)
            alike = (known for known in self._priors.values() if _align_alike(known, made))
            self._priors[source, target] = next(alike, made)
        return self._priors[source, target]

    def groups(
        self, cameras: CameraAngles, t: Int[Tensor, " b"]
    ) -> Iterator[tuple[Int[Tensor, " n"], PromptToPromptPrior]]:
        """Views that one call may predict, and the prior that does.

        What is shared depends on the timestep and on the places of words.
        """
        texts = zip(texts_at(self.source, cameras), texts_at(self.target, cameras), strict=True)
        priors = [self.between(*pair) for pair in texts]
        rows: dict[tuple[int, int], list[int]] = {}
        for row, (value, prior) in enumerate(zip(t.tolist(), priors, strict=True)):
            rows.setdefault((value, id(prior)), []).append(row)
        for chosen in rows.values():
            yield torch.tensor(chosen, device=t.device), priors[chosen[0]]

    def _made(self, source: str, target: str) -> PromptToPromptPrior:
        edit = EditedPromptConfig(
            target,
            align=self.config.align,
            cross_steps=(0.0, self.config.cross),
            self_steps=(0.0, self.config.own),
            self_max_tokens=self.config.own_max_tokens,
        )
        return PromptToPromptPrior(self.prior, PromptToPromptConfig(source, (edit,)))


def _align_alike(one: PromptToPromptPrior, other: PromptToPromptPrior) -> bool:
    (mine,), (theirs,) = one.edits, other.edits
    return torch.equal(mine.mapping, theirs.mapping) and torch.equal(mine.share, theirs.share)

"""Two prompts with one attention among pixels: how InstructPix2Pix's images were drawn.

Section 3.1.2 of arXiv 2211.09800 says Prompt-to-Prompt. The authors' code does another thing: in
step i of S with i / (S - 1) < p, the second prompt takes the first one's attention logits in every
layer of self-attention, in both halves of guidance,

    [s_0, s_1, s_2, s_3] of the rows [uncond 0, uncond 1, cond 0, cond 1]  ->  [s_0, s_0, s_2, s_2]

and attention to words stays each prompt's own. Here probabilities are copied, which are a function
of their logits.

    prior = PixelSharingPrior(prior, "a red duck", "a blue duck", shared=0.6, steps=50)
    images = edit_images(prior, generators=[generator], config=DdimConfig(steps=50))
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.attention import (
    AttentionCall,
    AttentionOperation,
    attention_operations,
)
from image_tools.diffusion.protocol import NoisePrior
from image_tools.editing.editing_configs import EditedPromptConfig, PromptToPromptConfig
from image_tools.editing.prompt_to_prompt import PromptToPromptPrior

__all__ = ["PixelSharing", "PixelSharingPrior"]

NEVER = (0.0, 0.0)


class PixelSharing(AttentionOperation):
    """Gives rows of the role "uncond:1" the attention of "uncond:0", and likewise "cond"."""

    def __init__(self, shared: float, steps: int) -> None:
        """Act in the first share of the steps."""
        self.shared, self.steps = shared, steps

    def applies_to(self, call: AttentionCall) -> bool:
        """In self-attention of early steps."""
        step = call.batch.step
        if call.layer.is_cross or step is None:
            return False
        return step < self.shared * max(self.steps - 1, 1)

    def needs_probabilities(self, call: AttentionCall) -> bool:
        """Always, where it applies."""
        return True

    def probabilities(
        self, call: AttentionCall, probabilities: Float[Tensor, "rows heads n m"]
    ) -> Float[Tensor, "rows heads n m"]:
        """The first prompt's in the place of the second's."""
        rows, result = len(probabilities), probabilities
        for half in ("uncond", "cond"):
            first, second = (call.rows_of(f"{half}:{lane}", rows) for lane in (0, 1))
            if second:
                own = torch.tensor(second, device=result.device)
                result = result.index_copy(0, own, probabilities[first])
        return result


class PixelSharingPrior(PromptToPromptPrior):
    """A prior for batches [first prompt, second prompt], each of as many rows."""

    def __init__(
        self, plain: NoisePrior, before: str, after: str, *, shared: float, steps: int
    ) -> None:
        """Share attention among pixels.

        Args:
            plain: the prior.
            before: the first prompt.
            after: the second one.
            shared: p, the share of the steps.
            steps: of the sampler.
        """
        edit = EditedPromptConfig(after, cross_steps=NEVER, self_steps=NEVER)
        super().__init__(plain, PromptToPromptConfig(before, (edit,), steps=steps))
        self.shared = shared

    def _sharing(self, t: Tensor) -> AbstractContextManager:
        operation = PixelSharing(self.shared, self.config.steps)
        return attention_operations(self.unet, [operation], step=self.clock.step(t))

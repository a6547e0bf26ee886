"""InstantID (arXiv 2401.07519): a person's face from one photo, where landmarks say.

A perceiver makes 16 tokens of a face's raw embedding. They reach the denoiser twice:

* by attention of their own beside the text's, as in IP-Adapter (Eq. 3);
* by IdentityNet, a ControlNet whose condition is a drawing of five landmarks and whose attention
  sees the tokens *in the place of the text* (section 3.4).

In the unconditional half of guidance the tokens are those of an embedding of zeros; the drawing is
the same in both halves. A mask limits both. With both factors 0 the prediction is the inner prior's
bit for bit. Further ControlNets see the text, as ever.

For 3D a head with known place stands for the photo's pose: ``see_cameras`` draws its landmarks for
each camera and fades both factors where the face turns away.

    prior = InstantIDPrior(prior, read_instant_id(folder, prior.unet), draw_keypoints(kps, size))
    prior.show_identity(face.embedding[None])
    images = sample_images(prior, ["a film still of a man"], generators=[generator])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.control.controlnet import Control, ControlledPrior
from image_tools.control.controlnet_training import new_controlnet
from image_tools.diffusion.conditions import Condition
from image_tools.diffusion.modified import rows_of
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.protocol import NoisePrior
from image_tools.errors import UnsupportedModel
from image_tools.personalization.face_keypoints import draw_keypoints
from image_tools.personalization.head_keypoints import head_keypoints
from image_tools.personalization.instant_id_configs import HeadConfig
from image_tools.personalization.ip_adapter import IPAdapter, PlusProjector, new_ip_adapter
from image_tools.personalization.ip_adapter_configs import ViewFadeConfig
from image_tools.personalization.ip_adapter_prior import IPAdapterPrior
from image_tools.personalization.reference_features import ReferenceFeatures
from image_tools.vision.identity_files import check_identity
from renderers.cameras import Cameras
from renderers.errors import StudioError

if TYPE_CHECKING:
    from diffusers import ControlNetModel

__all__ = ["InstantID", "InstantIDPrior", "identity_tokens", "new_instant_id"]

NET_NAME = "landmarks"
# Views count by the head's own visibility instead.
NO_FADE = ViewFadeConfig(least=1.0)


@dataclass(frozen=True)
class InstantID:
    """What InstantID adds to a denoiser."""

    adapter: IPAdapter
    """Perceiver, keys and values."""
    net: ControlNetModel
    """IdentityNet: a stock ControlNet."""

    def __post_init__(self) -> None:
        """Refuse adapters that read something else than an embedding.

        Raises:
            UnsupportedModel: the projector is no perceiver.
        """
        if not isinstance(self.adapter.image_proj, PlusProjector):
            raise UnsupportedModel(
                f"The adapter is an IP-Adapter ({self.adapter.image_proj.variant}) - expected "
                "InstantID's, whose image_proj is a resampler. Name InstantID's own file."
            )

    @property
    def identity_width(self) -> int:
        """Numbers of the embedding that it reads."""
        return self.adapter.image_proj.settings.image_width


def new_instant_id(
    prior: DiffusionPrior,
    *,
    identity_width: int,
    generator: torch.Generator,
    width: int | None = None,
) -> InstantID:
    """Untrained: keys and values are the text's, the ControlNet changes nothing yet.

    Args:
        prior: what it is for.
        identity_width: numbers of an embedding, 512 for ArcFace.
        generator: draws the perceiver.
        width: channels inside of the perceiver, a multiple of 64; None for 1280 (SDXL) or the
            text's.
    """
    adapter = new_ip_adapter(
        prior.unet, "plus", image_width=identity_width, generator=generator, width=width
    )
    return InstantID(adapter.to(prior.device), new_controlnet(prior))


def identity_tokens(
    adapter: IPAdapter, embedding: Float[Tensor, "b d"]
) -> Float[Tensor, "b tokens width"]:
    """Tokens of embeddings, each a sequence of one."""
    like = next(adapter.parameters())
    return adapter.tokens(ReferenceFeatures(clip=embedding[:, None].to(like)))


class InstantIDPrior(IPAdapterPrior):
    """A prior that draws a person.

    Attributes:
        parts: adapter and ControlNet.
        head: where a 3D scene has the head; None for pictures.
    """

    def __init__(
        self,
        plain: NoisePrior,
        parts: InstantID,
        keypoints: Float[Tensor, "b h w 3"],
        *,
        scale: float = 0.8,
        control_scale: float = 0.8,
        mask: Float[Tensor, "h w"] | None = None,
        others: Sequence[Control] = (),
        head: HeadConfig | None = None,
    ) -> None:
        """Wrap a prior; ``show_identity`` says who it draws.

        Args:
            plain: the prior; it may be wrapped itself.
            parts: on its device, in its number format.
            keypoints: drawings of landmarks, one or one for each latent.
            scale: factor of the attention to the identity.
            control_scale: factor of the landmarks' ControlNet.
            mask: where both act, at any size.
            others: more ControlNets.
            head: for 3D scenes.

        Raises:
            UnsupportedModel: weights of another family.
        """
        own = Control(parts.net, keypoints, control_scale, name=NET_NAME, mask=mask)
        self.controlled = ControlledPrior(plain, [own, *others])
        masks = None if mask is None else mask[None]
        super().__init__(self.controlled, parts.adapter, scale=scale, masks=masks, fade=NO_FADE)
        self.parts, self.head = parts, head
        self._visibility: Tensor | None = None

    def show_identity(self, embedding: Float[Tensor, "b d"]) -> None:
        """Draw this person: one for all rows, or one for each latent. Differentiable.

        Raises:
            UnsupportedModel: embeddings of another width, or no numbers.
        """
        width = self.parts.identity_width
        check_identity(embedding, width=width, source="the person")
        told = identity_tokens(self.adapter, embedding)
        untold = identity_tokens(self.adapter, torch.zeros_like(embedding))
        self.show_tokens(told[:, None], untold[:, None])
        own, *others = self.controlled.controls
        self.controlled.controls = (replace(own, context=(told, untold)), *others)

    def show_keypoints(self, images: Float[Tensor, "b h w 3"]) -> None:
        """Follow other drawings, one or one for each latent."""
        others = [control.images for control in self.controlled.controls[1:]]
        self.controlled.show([images, *others])

    def see_cameras(self, cameras: Cameras) -> None:
        """Follow the head as these cameras see it; each row is one of them.

        Raises:
            StudioError: the scene has no head.
        """
        if self.head is None:
            raise StudioError(
                "InstantID in 3D follows a head, and none is given. Say where it is: "
                "prior.tool.head={center: [0, 0, 0], height: 1.0}."
            )
        seen = head_keypoints(cameras, self.head)
        size = (self.image_size, self.image_size)
        self.show_keypoints(draw_keypoints(seen.pixels(*size), size, seen=seen.seen))
        own, *others = self.controlled.controls
        self.controlled.controls = (replace(own, shares=seen.visibility), *others)
        self._visibility = seen.visibility

    def modify(self, condition: Condition, rows: int, *, is_cond: bool) -> Condition:
        """The condition with the identity for each row.

        Raises:
            StudioError: the ControlNet is on, and nobody is shown.
        """
        own = self.controlled.controls[0]
        if own.strength != 0.0 and own.context is None:
            raise StudioError("InstantID draws nobody yet. Call show_identity first.")
        return super().modify(condition, rows, is_cond=is_cond)

    def view_shares(self, condition: Condition, rows: int) -> Float[Tensor, " rows"]:
        """How much the identity counts in each row."""
        if self._visibility is None:
            return torch.ones(rows)
        return rows_of(self._visibility, rows, "views of the head").cpu()

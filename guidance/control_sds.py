"""Score distillation under conditions that are rendered from the scene (ControlNet, arXiv
2302.05543; Uni-ControlNet, arXiv 2305.16322).

    g = w(t) (eps_guided(z_t; y, c_view) - eps)

with ``c_view`` the depth, the normals, the edges or the parts of the very geometry that is being
painted, seen from the camera of each render; SDS and VSD stay what they are, the prior's prediction
is the controlled one. Conditions carry no gradient, or the shape would be moved to please them.
With no controls, or strengths of 0, the rule is the plain one bit for bit, and nothing is drawn.
ControlNets add up, and so do their residuals and a Uni-ControlNet's.

    guidance = ControlSDSGuidance(config, prior, prompts, seed=0)
    guidance.look(output, cameras)
    guided = guidance(output.comp_rgb, cameras, fraction=0.3, generator=generator)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from guidance.base import GuidanceOutput, GuidanceRule
from guidance.control_sds_configs import (
    MADE_OF_NORMALS,
    ConditionView,
    ControlSDSConfig,
    SceneControlConfig,
)
from guidance.critic import LoraCritic
from guidance.critic_configs import VSDConfig
from guidance.prompts import ViewPrompts
from guidance.scene_uni import SceneUniPrior
from guidance.sds import SDSGuidance
from guidance.vsd import VSDGuidance
from image_tools.control.annotators import (
    canny_image,
    depth_of_render,
    normals_of_render,
    segmentation_image,
)
from image_tools.control.control_weights import read_controlnet
from image_tools.control.controlnet import Control, ControlledPrior
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.pocket.paths import adapter_path
from renderers.cameras import Cameras
from renderers.condition_images import part_ids
from renderers.errors import StudioError
from renderers.outputs import RenderOutput

__all__ = ["ControlSDSGuidance", "condition_image", "scene_controls"]


class ControlSDSGuidance(GuidanceRule):
    """SDS or VSD with a prior that sees the scene's geometry."""

    def __init__(
        self, config: ControlSDSConfig, prior: DiffusionPrior, prompts: ViewPrompts, *, seed: int
    ) -> None:
        """Read the ControlNets and build the rule around the controlled prior.

        Args:
            config: controls and rule.
            prior: what the ControlNets were trained beside.
            prompts: by view.
            seed: of a critic's initial values.

        Raises:
            WeightsMissing: a ControlNet or an adapter is not there.
            UnsupportedModel: it belongs to another kind of prior.
        """
        self.config = config
        self.nets = ControlledPrior(prior, scene_controls(config.controls, prior))
        self.uni = None if config.uni is None else SceneUniPrior(config.uni, self.nets)
        self.prior = self.nets if self.uni is None else self.uni
        if isinstance(config.rule, VSDConfig):
            critic = LoraCritic(prior, config.rule.critic, seed=seed)
            self.rule: GuidanceRule = VSDGuidance(
                config.rule, self.prior, prompts, seed=seed, critic=critic
            )
        else:
            self.rule = SDSGuidance(config.rule, self.prior, prompts)
        self._seen: Cameras | None = None
        self.wants_normals = self.is_on and bool(self._kinds & MADE_OF_NORMALS)

    @property
    def is_on(self) -> bool:
        """Whether any control acts."""
        uni = self.config.uni
        acts = uni is not None and uni.is_on
        return acts or any(one.net.strength != 0.0 for one in self.config.controls)

    @property
    def _kinds(self) -> set[ConditionView]:
        """Pictures of the scene that are drawn."""
        maps = () if self.config.uni is None else self.config.uni.maps
        return {one.sees for one in (*self.config.controls, *maps)}

    @torch.no_grad()
    def look(self, output: RenderOutput, cameras: Cameras) -> None:
        """Draw the conditions of a render."""
        if not self.is_on:
            return
        size = self.prior.image_size
        drawn = {kind: condition_image(kind, output, cameras, size=size) for kind in self._kinds}
        self.nets.show([drawn[one.sees] for one in self.config.controls])
        if self.uni is not None:
            self.uni.show_scene(drawn)
        self._seen = cameras

    def __call__(
        self,
        images: Float[Tensor, "b h w 3"],
        cameras: Cameras,
        *,
        fraction: float,
        generator: torch.Generator,
    ) -> GuidanceOutput:
        """The rule's guidance for the render that ``look`` was shown.

        Raises:
            StudioError: it was shown another one, or none.
        """
        if self.is_on and self._seen is not cameras:
            raise StudioError(
                "Controlled guidance was asked about views whose geometry it has not seen - "
                "expected look(output, cameras) with the same cameras before."
            )
        return self.rule(images, cameras, fraction=fraction, generator=generator)

    def after_step(
        self,
        images: Float[Tensor, "b h w 3"],
        cameras: Cameras,
        *,
        fraction: float,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """The rule's own learning."""
        return self.rule.after_step(images, cameras, fraction=fraction, generator=generator)

    def metric_names(self) -> tuple[str, ...]:
        """The rule's."""
        return self.rule.metric_names()

    def state(self) -> dict[str, Tensor]:
        """The rule's."""
        return self.rule.state()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """The rule's."""
        self.rule.load_state(tensors)

    def close(self) -> None:
        """Take a critic off the prior."""
        self.rule.close()


def condition_image(
    kind: ConditionView, output: RenderOutput, cameras: Cameras, *, size: int
) -> Float[Tensor, "b s s 3"]:
    """What a ControlNet sees of a render, at the prior's size.

    Args:
        kind: which picture; see ``SceneControlConfig``.
        output: the render, with normals where ``kind`` is made of them.
        cameras: its cameras.
        size: rows and columns of the result.
    """
    if kind == "depth":
        return _resized(depth_of_render(output, cameras), size)
    if kind in ("normals", "normals_bae"):
        right = -1.0 if kind == "normals_bae" else 1.0
        return _resized(normals_of_render(output, cameras, right=right), size)
    if kind == "edges":
        return canny_image(_resized(normals_of_render(output, cameras), size))
    ids = part_ids(output, cameras)[:, None].float()
    near = F.interpolate(ids, (size, size), mode="nearest-exact")[:, 0]
    return segmentation_image(near.long()).to(output.opacity)


def _resized(images: Float[Tensor, "b h w 3"], size: int) -> Float[Tensor, "b s s 3"]:
    if tuple(images.shape[1:3]) == (size, size):
        return images
    shrinks = max(images.shape[1:3]) > size
    shape = (size, size)
    # As the prior shrinks renders, so that condition and image stay aligned.
    moved = F.interpolate(images.movedim(-1, 1), shape, mode="bilinear", antialias=shrinks)
    return moved.movedim(1, -1).clamp(0.0, 1.0)


def scene_controls(configs: Sequence[SceneControlConfig], prior: DiffusionPrior) -> list[Control]:
    """ControlNets from their files, for ``ControlledPrior``; ``show`` gives them their pictures.

    Args:
        configs: which, and how they act.
        prior: what they were trained beside.

    Raises:
        WeightsMissing: one is not there.
    """
    return [_control(config, prior) for config in configs]


def _control(config: SceneControlConfig, prior: DiffusionPrior) -> Control:
    net = replace(config.net, weights=str(adapter_path(config.net.weights, role="ControlNet")))
    model = read_controlnet(net, prior.dtype).to(prior.device)
    side, channels = prior.image_size, model.config.conditioning_channels
    return Control(
        model=model,
        images=torch.zeros(1, side, side, channels, device=prior.device),
        strength=net.strength,
        window=net.window,
        mode=net.mode,
        name=f"{config.sees} ({Path(net.weights).name})",
    )
